"""The workflows beside the package: Snakemake runs its example, and the scripts of Nextflow's modules are run by bash.

Nextflow itself is not run: its modules are taken apart as text.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import pytest

import scanpy_scvipyro as scvip
from scanpy_scvipyro.cli._listed import SUMMARIES

WORKFLOWS = Path(__file__).parents[1] / "workflows"
MODULES = WORKFLOWS / "nextflow" / "modules" / "scanpyscvipyro"
SNAKEMAKE = os.environ.get("SNAKEMAKE") or shutil.which("snakemake")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

pytestmark = pytest.mark.skipif(not WORKFLOWS.exists(), reason="workflows/ is not packaged with the tests")
needs_program = pytest.mark.skipif(
    shutil.which("scanpy-scvipyro", path=PATH) is None, reason="needs the package installed, not only on the path"
)


def run(*command, **options):
    environment = os.environ | {"PATH": PATH}
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True, **options)


def test_each_command_has_a_rule_of_snakemake():
    rules = (WORKFLOWS / "snakemake" / "rules.smk").read_text()
    started = re.findall(r'^ +"scanpy-scvipyro ([\w-]+) ', rules, flags=re.MULTILINE)
    assert sorted(started) == sorted(SUMMARIES.keys() - {"demo"})


@pytest.mark.slow
@needs_program
@pytest.mark.skipif(SNAKEMAKE is None, reason="needs snakemake: on the path, or named by SNAKEMAKE")
def test_snakemake_runs_the_example(tmp_path):
    shutil.copytree(WORKFLOWS / "snakemake", tmp_path / "snakemake")
    example = tmp_path / "snakemake" / "example"
    ran = run(SNAKEMAKE, "--cores", "1", cwd=example)
    assert ran.returncode == 0, ran.stderr
    results = example / "results" / "mixtures"
    annotated = ad.read_h5ad(results / "annotated.h5ad")
    assert (annotated.obs["scanvi_pyro"].astype(str) == annotated.obs["cell_type"].astype(str)).mean() > 0.95
    assert json.loads((results / "fit.json").read_text())["settings"]["n_top_genes"] == 500
    assert (results / "report.html").stat().st_size > 100_000


@pytest.mark.slow
@needs_program
@pytest.mark.skipif(SNAKEMAKE is None, reason="needs snakemake: on the path, or named by SNAKEMAKE")
def test_snakemake_runs_the_other_rules(tmp_path):
    """On results that are there, and a query with a name that is not simple."""
    shutil.copytree(WORKFLOWS / "snakemake", tmp_path / "snakemake")
    example = tmp_path / "snakemake" / "example"
    cells = scvip.datasets.cell_mixtures()
    scvip.tl.scvi_pyro(cells, batch_key="batch", max_epochs=1, impute=False, progress_bar=False)
    (example / "results" / "mixtures").mkdir(parents=True)
    cells[:40].write_h5ad(example / "new cells.h5ad")
    cells.write_h5ad(example / "counts.h5ad")
    cells.write_h5ad(example / "results" / "mixtures" / "fitted.h5ad")
    (example / "config.yaml").write_text(
        "counts: {mixtures: [counts.h5ad]}\nqueries: {query: 'new cells.h5ad'}\noptions: run.toml\n"
    )
    (example / "run.toml").write_text('[rank-genes]\ngroupby = "cell_type"\nn_samples = 50\n')
    targets = [f"results/mixtures/{name}" for name in ("genes.csv", "imputed.zarr", "mapped/query.h5ad")]
    ran = run(SNAKEMAKE, "--cores", "1", "--rerun-triggers", "input", "--", *targets, cwd=example)
    assert ran.returncode == 0, ran.stderr
    assert all((example / target).exists() for target in targets)


@pytest.mark.slow
@needs_program
@pytest.mark.skipif(shutil.which("Rscript") is None, reason="needs R, with anndataR and SingleCellExperiment")
def test_the_script_of_the_page_from_r_brings_codes_back(empty_directory):
    cells = scvip.datasets.cell_mixtures()
    cells.write_h5ad("cells.h5ad")
    setup = (
        "suppressPackageStartupMessages({library(SingleCellExperiment); library(anndataR)}); "
        'read <- read_h5ad("cells.h5ad", as = "SingleCellExperiment"); '
        'cells <- SingleCellExperiment(list(counts = assay(read, "X")), colData = colData(read)); '
        'saveRDS(cells, "counts.rds")'
    )
    made = run("Rscript", "-e", setup)
    if "there is no package called" in made.stderr:
        pytest.skip(made.stderr.strip().splitlines()[0])
    assert made.returncode == 0, made.stderr
    ran = run("Rscript", str(WORKFLOWS.parent / "docs" / "from_r.R"), "counts.rds", "fitted.rds", "batch")
    assert ran.returncode == 0, ran.stderr
    shown = run("Rscript", "-e", 'library(SingleCellExperiment); cat(dim(reducedDim(readRDS("fitted.rds"), "scvi")))')
    assert shown.stdout == "1345 10"


def scripts(name):
    """Return the script of a module and its stub, as Groovy writes them."""
    text = (MODULES / name / "main.nf").read_text()
    script, stub = re.findall(r'"""\n(.*?)"""', text, flags=re.DOTALL)
    return text, script, stub


def rendered(script, **values):
    """Fill in what Groovy does: values, and escaped characters."""
    filled = re.sub(r"(?<!\\)\$\{([\w.]+)\}", lambda found: str(values[found[1].replace(".", "_")]), script)
    return textwrap.dedent(filled.replace("\\$", "$").replace("\\\\", "\\"))


@pytest.mark.slow
@needs_program
def test_scripts_of_nextflow_modules_run(trained_small, empty_directory):
    trained_small.write_h5ad("trained.h5ad")
    query = trained_small[:30].copy()
    del query.uns["scvi_pyro"]
    query.write_h5ad("counts.h5ad")
    values = {
        "counts": "counts.h5ad",
        "query": "counts.h5ad",
        "reference": "trained.h5ad",
        "h5ad": "trained.h5ad",
        "prefix": "sample1",
        "task_cpus": 1,
        "task_process": "PIPELINE:SCANPYSCVIPYRO",
    }
    for name, args, expected in (
        ("fit", "--batch-key batch --max-epochs 1", "sample1.h5ad"),
        ("map", "--max-epochs 1", "sample1.h5ad"),
        ("report", "--max-cells 50", "sample1.html"),
    ):
        script = rendered(scripts(name)[1], args=args, **values)
        ran = run("bash", "-euo", "pipefail", "-c", script)
        assert ran.returncode == 0, ran.stderr
        written = {expected, "sample1.summary.json", "versions.yml"}
        assert written <= {path.name for path in Path().iterdir()}
        assert Path("versions.yml").read_text().split() == [
            '"PIPELINE:SCANPYSCVIPYRO":',
            "scanpy-scvipyro:",
            scvip.__version__,
        ]
        for file in written:
            Path(file).unlink()


@pytest.mark.parametrize("name", ["fit", "map", "report"])
def test_nextflow_modules_have_the_layout_of_nf_core(name):
    text, script, stub = scripts(name)
    assert text.startswith(f"process SCANPYSCVIPYRO_{name.upper()} {{\n")
    for part in ('tag "$meta.id"', 'conda "${moduleDir}/environment.yml"', "container ", "input:", "output:", "when:"):
        assert part in text
    outputs = re.findall(r'path\(?\s*"(?:\$\{prefix\}\.)?([\w.]+)"', text.partition("output:")[2].partition("when:")[0])
    for output in outputs:
        assert output in script
        assert output in stub
    assert {path.name for path in (MODULES / name).iterdir()} == {"main.nf", "meta.yml", "environment.yml"}
    meta = (MODULES / name / "meta.yml").read_text()
    for emitted in re.findall(r"emit: (\w+)", text):
        assert f"  - {emitted}:\n" in meta
    for given in re.findall(r"(?:val|path)\((\w+)\)", text.partition("output:")[0]):
        assert f" {given}:\n" in meta


def test_versions_of_workflows_are_that_of_the_package():
    files = [*MODULES.glob("*/main.nf"), *MODULES.glob("*/environment.yml"), WORKFLOWS.parent / "Dockerfile"]
    assert len(files) == 7
    for file in files:
        found = re.findall(r"scanpy-scvipyro(?::|==)(\d[\w.]*)", file.read_text())
        assert found
        assert set(found) == {scvip.__version__}


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="needs PyYAML")
def test_yaml_of_workflows_is_yaml():
    import yaml

    for file in [*WORKFLOWS.rglob("*.yml"), *WORKFLOWS.rglob("*.yaml"), WORKFLOWS.parent / "environment.yml"]:
        assert isinstance(yaml.safe_load(file.read_text()), dict)
