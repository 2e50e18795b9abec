process SCANPYSCVIPYRO_FIT {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "scanpy-scvipyro:0.1.0"

    input:
    tuple val(meta), path(counts)

    output:
    tuple val(meta), path("${prefix}.h5ad")        , emit: h5ad
    tuple val(meta), path("${prefix}.summary.json"), emit: summary
    path "versions.yml"                            , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix   = task.ext.prefix ?: "${meta.id}_fitted"
    """
    scanpy-scvipyro fit \\
        ${counts} \\
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
    prefix = task.ext.prefix ?: "${meta.id}_fitted"
    """
    touch ${prefix}.h5ad ${prefix}.summary.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        scanpy-scvipyro: \$(scanpy-scvipyro --version)
    END_VERSIONS
    """
}
