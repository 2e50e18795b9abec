"""The commands: what each reads, which function it calls, and what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from scanpy_scvipyro import _demo, model_file, pl, tl
from scanpy_scvipyro.cli import _genes, _inputs, _summary, _tables
from scanpy_scvipyro.cli._command import COMMANDS, Input, Output, command
from scanpy_scvipyro.pl._report import write_page

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scvipyro.cli._run import Run

__all__ = ["COMMANDS"]

_DATA, _TABLES = (".h5ad", ".zarr"), (".csv", ".tsv")


def _cells() -> list[click.Parameter]:
    return [
        Input("input", f"Counts: {_inputs.FORMATS}. Several become one.", several=True),
        click.Option(
            ["--join"],
            type=click.Choice(["inner", "outer"]),
            default="inner",
            show_default=True,
            help="Genes of several inputs: those that all have, or all, with 0 where an input lacks one. Where an "
            "input has no column of --batch-key, its name becomes the batch.",
        ),
    ]


def _trained() -> Input:
    return Input("input", "AnnData with counts and a trained model: .h5ad or .zarr.")


def _data(text: str = "AnnData to write: .h5ad or .zarr.", **options: bool) -> Output:
    return Output(["--output", "-o"], _DATA, text, metavar="FILE", **({"required": True} | options))


def _n_top_genes() -> click.Option:
    return click.Option(
        ["--n-top-genes"],
        type=click.IntRange(min=1),
        help="Choose so many highly variable genes within batches, by Pearson residuals of the counts, and model them; "
        "by default all genes. --mask-var, if given, is used instead.",
    )


@command(
    "fit",
    tl.scvi_pyro,
    [*_cells(), _data(), _n_top_genes()],
    example="scanpy-scvipyro fit counts.h5ad -o fitted.h5ad --batch-key sample \\\n  --layer counts --n-top-genes 2000",
)
def fit(run: Run) -> None:
    """Write codes, imputed counts and the model itself into the AnnData, for the other commands."""
    adata = run.read(batch_key=run.arguments["batch_key"])
    _genes.select(adata, run)
    _train(adata, run)


@command(
    "annotate",
    tl.scanvi_pyro,
    [*_cells(), _data(), _n_top_genes()],
    example="scanpy-scvipyro annotate counts.h5ad -o labelled.h5ad --batch-key sample \\\n"
    "  --labels-key cell_type --unlabeled-category Unknown",
)
def annotate(run: Run) -> None:
    """Give each cell a label, its calibrated probability, and how unlike all labelled cells it is."""
    adata = run.read(batch_key=run.arguments["batch_key"])
    if run.arguments["init_from"] is None:  # whose genes are those of that model
        _genes.select(adata, run)
    _train(adata, run)


def _train(adata: AnnData, run: Run) -> None:
    run.call(adata)
    if "summary" in run.places:
        run.messages.warnings += _summary.warnings_of_training(adata, run.arguments["key_added"])
    run.write(adata)


@command(
    "map",
    tl.map_query,
    [
        *_cells(),
        click.Option(
            ["--reference"],
            type=click.Path(path_type=Path),
            required=True,
            help="The model: a .safetensors, or the .h5ad or .zarr that it was trained in.",
        ),
        _data(),
    ],
    without=["adata_ref"],
    example="scanpy-scvipyro map new.h5ad --reference atlas.safetensors -o mapped.h5ad",
)
def map_query(run: Run) -> None:
    """Learn their batches, if they are new; the codes of the reference stay as they are."""
    reference = _inputs.read_reference(run.values["reference"], run.messages.say)
    run.check_class(reference)
    model = reference.uns.get(run.arguments["key"], {})
    batch_key = model.get("params", {}).get("batch_key")
    adata = run.read(batch_key=batch_key)
    if batch_key is not None and batch_key not in adata.obs:
        _inputs.name_batches({run.values["input"][0].stem: adata}, batch_key, run.messages.say)
    run.call(adata, reference)
    run.write(adata)


@command(
    "impute",
    tl.impute,
    [
        _trained(),
        _data("AnnData to write, with the result as a layer: .h5ad or .zarr.", required=False),
        Output(
            ["--out"], (".zarr",), "Write the result alone there, in chunks: needs little memory.", metavar="X.zarr"
        ),
    ],
    without=["out"],
    example="scanpy-scvipyro impute fitted.h5ad --out imputed.zarr \\\n  --transform-batch all --library-size 10000",
)
def impute(run: Run) -> None:
    """Compute expected counts at any depth, with or without the effect of batches."""
    if ("output" in run.places) == ("out" in run.places):
        raise click.UsageError("Pass one of --output (AnnData with a layer) and --out (the result alone).")
    adata = run.read()
    if "out" in run.places:
        run.call(adata, out=run.places["out"])
    else:
        run.call(adata)
        run.write(adata)


@command(
    "rank-genes",
    tl.rank_genes_groups,
    [
        _trained(),
        Output(
            ["--output", "-o"],
            (*_TABLES, *_DATA),
            "Table of all groups (.csv, .tsv), or AnnData (.h5ad, .zarr) for Scanpy.",
            metavar="FILE",
            required=True,
        ),
    ],
    example="scanpy-scvipyro rank-genes fitted.h5ad --groupby leiden -o genes.csv",
)
def rank_genes(run: Run) -> None:
    """Use Bayesian differential expression: pvals_adj < 0.05 leaves less than 5 % of false discoveries."""
    adata = run.read()
    run.call(adata)
    if run.places["output"].suffix in _DATA:
        run.write(adata)
    else:
        with run.timed("write"):
            key = run.arguments["key_added"] or f"rank_genes_groups_{run.arguments['key']}"
            _tables.write(_tables.ranked(adata, key), run.places["output"])


@command(
    "abundance",
    tl.differential_abundance,
    [
        _trained(),
        Output(
            ["--output", "-o"],
            (*_TABLES, *_DATA),
            "Table of cells, or of labels with --groupby (.csv, .tsv), or AnnData (.h5ad, .zarr).",
            metavar="FILE",
            required=True,
        ),
    ],
    example="scanpy-scvipyro abundance fitted.h5ad -o cells.csv \\\n"
    "  --condition-key condition --reference control --sample-key donor",
)
def abundance(run: Run) -> None:
    """Compare densities of latent codes between conditions: samples, such as donors, are the replicates."""
    adata = run.read()
    run.call(adata)
    if run.places["output"].suffix in _DATA:
        run.write(adata)
    else:
        with run.timed("write"):
            key = run.arguments["key_added"] or run.arguments["key"]
            _tables.write(_tables.compared(adata, key), run.places["output"])


@command(
    "report",
    pl.report,
    [
        _trained(),
        Output(
            ["--output", "-o"],
            (".html",),
            "Page to write.",
            default="report.html",
            show_default=True,
            metavar="FILE.html",
        ),
    ],
    without=["path"],
    example="scanpy-scvipyro report fitted.h5ad -o report.html --labels-key cell_type",
)
def report(run: Run) -> None:
    """Show curves, UMAPs, scores and checks, and say what to do where something went wrong."""
    adata = run.read()
    findings = run.call(adata, instead=write_page, path=run.places["output"])
    run.messages.warnings += [f"{title}. {found} {advice}" for title, found, advice in findings]


@command(
    "convert",
    model_file.write_model,
    [
        Input("input", f"Model: .safetensors, or AnnData. To convert counts: {_inputs.FORMATS}."),
        Output(
            ["--output", "-o"],
            (_inputs.MODEL, *_DATA),
            "Model without counts (.safetensors), or AnnData (.h5ad, .zarr).",
            metavar="FILE",
            required=True,
        ),
    ],
    without=["path", "overwrite"],
    example="scanpy-scvipyro convert fitted.h5ad -o model.safetensors",
)
def convert(run: Run) -> None:
    """Turn an AnnData into a model file, and back; or one format of AnnData or counts into another."""
    with run.timed("read"):
        adata = _inputs.read_reference(run.values["input"], run.messages.say)
    if run.places["output"].suffix == _inputs.MODEL:
        run.call(adata, run.places["output"])
    else:
        run.write(adata)


@command(
    "demo",
    _demo.run,
    [click.Argument(["directory"], type=click.Path(path_type=Path), default=Path())],
    example="scanpy-scvipyro demo",
)
def demo(run: Run) -> None:
    """Write cell_mixtures.h5ad and cell_mixtures.png into a folder, by default into this one.

    Print how well Leiden clusters match the true cell lines and how well the protocols mix, before (PCA of log
    counts) and after. It takes less than a minute on two cores.
    """
    folder = run.values["directory"]
    data, picture = (run.claim(folder / f"cell_mixtures.{kind}") for kind in ("h5ad", "png"))
    adata, scores, seconds = _demo.run(**run.arguments)
    click.echo(f"{adata.n_obs} cells, {adata.n_vars} genes, 3 protocols: trained in {seconds:.0f} s")
    click.echo(_demo.table(scores))
    _demo.figure(adata, run.arguments["random_state"]).savefig(picture, dpi=120)
    adata.write_h5ad(data)
