process SCANPYSCVIPYRO_REPORT {
    tag "$meta.id"
    label 'process_low'

    conda "${moduleDir}/environment.yml"
    container "scanpy-scvipyro:0.1.0"

    input:
    tuple val(meta), path(h5ad)

    output:
    tuple val(meta), path("${prefix}.html")        , emit: html
    tuple val(meta), path("${prefix}.summary.json"), emit: summary
    path "versions.yml"                            , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix   = task.ext.prefix ?: "${meta.id}_report"
    """
    scanpy-scvipyro report \\
        ${h5ad} \\
        --output ${prefix}.html \\
        --summary ${prefix}.summary.json \\
        --threads ${task.cpus} \\
        ${args}

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        scanpy-scvipyro: \$(scanpy-scvipyro --version)
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}_report"
    """
    touch ${prefix}.html ${prefix}.summary.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        scanpy-scvipyro: \$(scanpy-scvipyro --version)
    END_VERSIONS
    """
}
