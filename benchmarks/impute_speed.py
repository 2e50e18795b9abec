"""Time and peak memory of imputing all genes of many cells, beside scvi-tools on the same weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import _common
import anndata as ad
import pandas as pd
import typer

import scanpy_scvipyro as scvip


def main(
    cells: Annotated[int, typer.Option(help="Number of cells: PBMC, repeated with half of the counts.")] = 100_000,
    genes: Annotated[int, typer.Option(help="Number of highly variable genes.")] = 2_000,
    repeats: Annotated[int, typer.Option(help="Measurements of each; the medians are reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Measure imputation to 10,000 counts per cell, in each cell's own batch and averaged over all batches.

    A model of scvi-tools is trained for an epoch and converted, so that both sides do the same work. They take turns,
    each time in a fresh process that has imputed a thousand cells before. Memory is what the process takes at most
    while it imputes, above what it took before; the result itself takes 4 bytes per cell and gene.
    """
    _common.quiet()
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        shape = prepare(Path(folder), cells, genes)
        for _ in range(repeats):
            for name in SIDES:
                for batch in ("own", "all"):
                    took = _common.in_fresh_process(measure, name, batch, Path(folder))
                    row = {"batch": batch, "function": name, "seconds": took.seconds, "peak GiB": took.added_gib}
                    print(row, flush=True)
                    measured.append(row)
    table = pd.DataFrame(measured).groupby(["batch", "function"], sort=False).median().reset_index()
    table.insert(3, "cells/s", shape[0] / table["seconds"])
    table["result GiB"] = 4 * shape[0] * shape[1] / 2**30
    _common.report(table, "impute_speed", output)


def prepare(folder: Path, n_cells: int, n_genes: int) -> tuple[int, int]:
    """Write cells, a model of scvi-tools that was trained for an epoch, and its conversion."""
    import scvi

    adata = _common.tiled(_common.load("pbmc", n_genes), n_cells)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    model.save(str(folder / "peer"))
    scvip.get.from_scvi_tools(model, adata, impute=False)
    adata.write_h5ad(folder / "cells.h5ad")
    return adata.shape


def ours(adata: ad.AnnData, transform_batch: list[str] | None, _: Path) -> None:
    """Impute into a layer."""
    scvip.tl.impute(adata, transform_batch=transform_batch, library_size=1e4, progress_bar=False)


def to_disk(adata: ad.AnnData, transform_batch: list[str] | None, folder: Path) -> None:
    """Impute into a zarr store."""
    with tempfile.TemporaryDirectory(dir=folder) as store:
        out = Path(store) / "imputed.zarr"
        scvip.tl.impute(adata, transform_batch=transform_batch, library_size=1e4, out=out, progress_bar=False)


def peer(adata: ad.AnnData, transform_batch: list[str] | None, folder: Path) -> None:
    """Impute into a layer with scvi-tools."""
    import scvi

    model = scvi.model.SCVI.load(str(folder / "peer"), adata)
    adata.layers["peer"] = model.get_normalized_expression(
        transform_batch=transform_batch, library_size=1e4, return_numpy=True, silent=True
    )


SIDES = {"tl.impute": ours, "tl.impute(out=...)": to_disk, "scvi-tools": peer}


def measure(name: str, batch: str, folder: Path) -> _common.Measured:
    """Impute a thousand cells, so that imports are not measured, then all of them."""
    _common.quiet()
    adata = ad.read_h5ad(folder / "cells.h5ad")
    transform_batch = list(adata.obs["batch"].cat.categories) if batch == "all" else None
    impute = SIDES[name]
    impute(adata[:1000].copy(), transform_batch, folder)
    return _common.measure(lambda: impute(adata, transform_batch, folder))


if __name__ == "__main__":
    typer.run(main)
