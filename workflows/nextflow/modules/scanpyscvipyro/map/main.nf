process SCANPYSCVIPYRO_MAP {
    tag "$meta.id"
    label 'process_low'

    conda "${moduleDir}/environment.yml"
    container "scanpy-scvipyro:0.1.0"

    input:
    tuple val(meta), path(query)
    tuple val(meta2), path(reference)

    output:
    tuple val(meta), path("${prefix}.h5ad")        , emit: h5ad
    tuple val(meta), path("${prefix}.summary.json"), emit: summary
    path "versions.yml"                            , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix   = task.ext.prefix ?: "${meta.id}_mapped"
    """
    scanpy-scvipyro map \\
        ${query} \\
        --reference ${reference} \\
        --output ${prefix}.h5ad \\
        --summary ${prefix}.summary.json \\
        --threads ${task.cpus} \\
        ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        scanpy-scvipyro: \$(scanpy-scvipyro --version)
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}_mapped"
    """
    touch ${prefix}.h5ad ${prefix}.summary.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        scanpy-scvipyro: \$(scanpy-scvipyro --version)
    END_VERSIONS
    """
}
