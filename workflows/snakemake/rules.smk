# A rule for each command of scanpy-scvipyro. Include this file in your Snakefile; it needs in config:
#
#   counts:   {NAME: [FILE, ...]}   counts of each data set: .h5ad, .zarr, 10x .h5, or 10x folders
#   options:  FILE.toml             options of the commands, in a table for each
#   queries:  {NAME: FILE}          new cells to map, if any
#
# {name} in a target is a data set: results/{name}/fitted.h5ad, report.html, annotated.h5ad, genes.csv, and so on.

wildcard_constraints:
    name="[^/]+",
    query="[^/]+",

OPTIONS = config["options"]

# Thread pools beyond the threads of a job would slow down its neighbours; memory grows with cells times genes, since
# imputed counts take 4 bytes each.
rule scvi_fit:
    input:
        counts=lambda wildcards: config["counts"][wildcards.name],
        options=OPTIONS,
    output:
        data="results/{name}/fitted.h5ad",
        summary="results/{name}/fit.json",
    log:
        "results/{name}/logs/fit.log",
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    shell:
        "scanpy-scvipyro fit {input.counts:q} -o {output.data:q} --summary {output.summary:q}"
        " --config {input.options:q} --threads {threads} --overwrite 2> {log:q}"


rule scvi_annotate:
    input:
        counts=lambda wildcards: config["counts"][wildcards.name],
        options=OPTIONS,
    output:
        data="results/{name}/annotated.h5ad",
        summary="results/{name}/annotate.json",
    log:
        "results/{name}/logs/annotate.log",
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
    shell:
        "scanpy-scvipyro annotate {input.counts:q} -o {output.data:q} --summary {output.summary:q}"
        " --config {input.options:q} --threads {threads} --overwrite 2> {log:q}"


rule scvi_report:
    input:
        data="results/{name}/fitted.h5ad",
        options=OPTIONS,
    output:
        page="results/{name}/report.html",
        summary="results/{name}/report.json",
    log:
        "results/{name}/logs/report.log",
    threads: 2
    shell:
        "scanpy-scvipyro report {input.data:q} -o {output.page:q} --summary {output.summary:q}"
        " --config {input.options:q} --threads {threads} --overwrite 2> {log:q}"


rule scvi_rank_genes:
    input:
        data="results/{name}/fitted.h5ad",
        options=OPTIONS,
    output:
        "results/{name}/genes.csv",
    log:
        "results/{name}/logs/rank_genes.log",
    threads: 2
    shell:
        "scanpy-scvipyro rank-genes {input.data:q} -o {output:q} --config {input.options:q}"
        " --threads {threads} --overwrite 2> {log:q}"


rule scvi_abundance:
    input:
        data="results/{name}/fitted.h5ad",
        options=OPTIONS,
    output:
        "results/{name}/abundance.csv",
    log:
        "results/{name}/logs/abundance.log",
    threads: 2
    shell:
        "scanpy-scvipyro abundance {input.data:q} -o {output:q} --config {input.options:q}"
        " --threads {threads} --overwrite 2> {log:q}"


rule scvi_impute:
    input:
        data="results/{name}/fitted.h5ad",
        options=OPTIONS,
    output:
        directory("results/{name}/imputed.zarr"),
    log:
        "results/{name}/logs/impute.log",
    threads: 2
    shell:
        "scanpy-scvipyro impute {input.data:q} --out {output:q} --config {input.options:q}"
        " --threads {threads} --overwrite 2> {log:q}"


rule scvi_convert:
    input:
        "results/{name}/fitted.h5ad",
    output:
        "results/{name}/model.safetensors",
    log:
        "results/{name}/logs/convert.log",
    shell:
        "scanpy-scvipyro convert {input:q} -o {output:q} --overwrite 2> {log:q}"


rule scvi_map:
    input:
        query=lambda wildcards: config["queries"][wildcards.query],
        model="results/{name}/model.safetensors",
        options=OPTIONS,
    output:
        data="results/{name}/mapped/{query}.h5ad",
        summary="results/{name}/mapped/{query}.json",
    log:
        "results/{name}/logs/map_{query}.log",
    threads: 2
    shell:
        "scanpy-scvipyro map {input.query:q} --reference {input.model:q} -o {output.data:q}"
        " --summary {output.summary:q} --config {input.options:q} --threads {threads} --overwrite 2> {log:q}"
