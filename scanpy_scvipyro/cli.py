"""Command line: a thin layer over the functions of the package."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from scanpy_scvipyro import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scanpy_scvipyro import _demo

app = typer.Typer(
    name="scanpy-scvipyro",
    help="scVI for Scanpy: latent codes free of batch effects, and imputed counts, from raw single-cell counts.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Hold what is not of a single command."""


@app.command()
def demo(
    directory: Annotated[
        Path, typer.Argument(help="Where to write cell_mixtures.h5ad and cell_mixtures.png.")
    ] = Path(),
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the cells; by default chosen from their number.")
    ] = None,
    random_state: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
) -> None:
    """Train on the data that come with the package: three cell lines, sequenced with three protocols.

    Prints how well Leiden clusters match the true cell lines and how well the protocols mix, before (PCA of log counts)
    and after, and writes the annotated data and a picture of both. Takes less than a minute on two cores.
    """
    if not directory.is_dir():
        _fail(f"{str(directory)!r} is not a directory; create it first, or name another.")

    import matplotlib as mpl

    mpl.use("agg")
    from scanpy_scvipyro import _demo

    with _errors_in_one_line():
        adata, scores, seconds = _demo.run(max_epochs=max_epochs, random_state=random_state)
    _print_scores(scores, n_cells=adata.n_obs, n_genes=adata.n_vars, seconds=seconds)
    picture, data = directory / "cell_mixtures.png", directory / "cell_mixtures.h5ad"
    try:
        _demo.figure(adata, random_state).savefig(picture, dpi=120)
        adata.write_h5ad(data)
    except OSError as error:
        _fail(f"could not write to {str(directory)!r}: {error}; name a directory with write permission.")
    typer.echo(f"wrote {picture} and {data}")


@app.command()
def report(
    data: Annotated[Path, typer.Argument(help="AnnData with a trained model: .h5ad or .zarr.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = Path("report.html"),
    key: Annotated[str, typer.Option(help="Name of the model.")] = "scvi_pyro",
    batch_key: Annotated[
        str | None, typer.Option(help="Column of .obs with the batches; by default that of the model.")
    ] = None,
    labels_key: Annotated[str | None, typer.Option(help="Column of .obs with labels such as cell types.")] = None,
    max_cells: Annotated[
        int, typer.Option(help="Cells to embed and simulate, drawn at random if there are more.")
    ] = 5000,
    random_state: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
) -> None:
    """Write one HTML page on a trained model: curves, UMAPs, scores, checks, and warnings in plain words."""
    import anndata as ad
    import matplotlib as mpl

    mpl.use("agg")
    from scanpy_scvipyro import _stored, pl, storage

    if not data.exists():
        _fail(f"{str(data)!r} does not exist; name an .h5ad or .zarr that was written after training.")
    try:
        adata = ad.read_zarr(data) if data.is_dir() else ad.read_h5ad(data)
    except Exception as error:  # noqa: BLE001  h5py, zarr and anndata raise many kinds
        _fail(f"could not read {str(data)!r} as AnnData: {error}")
    with _errors_in_one_line():
        module = _stored.trained(adata, key)["module"]
        if module not in storage.OURS:
            msg = (
                f"{key!r} is a model of a class {module} of your own, which the command line cannot import; write the "
                f"report in Python: scanpy_scvipyro.pl.report(adata, module={module})."
            )
            raise ValueError(msg)
        pl.report(
            adata,
            path=output,
            key=key,
            batch_key=batch_key,
            labels_key=labels_key,
            max_cells=max_cells,
            random_state=random_state,
        )
    typer.echo(f"wrote {output}")


def _print_scores(scores: dict[str, _demo.Scores], *, n_cells: int, n_genes: int, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from scanpy_scvipyro import _demo

    table = Table(title=f"{n_cells} cells, {n_genes} genes, 3 protocols: trained in {seconds:.0f} s")
    for column in ("", "before (PCA)", "after (scvi_pyro)"):
        table.add_column(column, justify="left" if not column else "right")
    before, after = scores[_demo.BEFORE], scores[_demo.AFTER]
    table.add_row(
        f"Leiden clusters (resolution {_demo.LEIDEN_RESOLUTION})", str(before.n_clusters), str(after.n_clusters)
    )
    table.add_row("ARI with the cell lines (best: 1)", f"{before.ari:.3f}", f"{after.ari:.3f}")
    table.add_row("NMI with the cell lines (best: 1)", f"{before.nmi:.3f}", f"{after.nmi:.3f}")
    table.add_row("neighbours of own protocol (mixed: 0.50)", f"{before.same_batch:.2f}", f"{after.same_batch:.2f}")
    Console().print(table)


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """End the program where data, arguments or the machine are at fault; other errors are ours and show where."""
    try:
        yield
    except (KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        _fail(" ".join(str(message).split()) or type(error).__name__)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(1)
