"""Training from a sorted file: whether blocks of neighbouring cells are random enough."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated
from unittest import mock

import _common
import _scores
import anndata as ad
import numpy as np
import pandas as pd
import typer

import scanpy_scvipyro as scvip
from scanpy_scvipyro import from_disk


def main(
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 12_000,
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 1_000,
    blocks: Annotated[str, typer.Option(help="Cells in a block, separated by commas.")] = "64,16",
    max_epochs: Annotated[int, typer.Option(help="Epochs.")] = 15,
    seeds: Annotated[int, typer.Option(help="Number of seeds; means and standard errors are reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train on thinned copies of PBMC, sorted by batch and cell type, in memory and from the file, and score.

    The buffer holds a quarter of the cells, as that of the defaults does of 800,000 cells. Its number of blocks is what
    matters; the defaults have 400. The same seed holds out the same cells.
    """
    _common.quiet()
    adata = _common.tiled(_common.load("pbmc", genes), cells, columns=("batch", "cell_type"))
    adata = adata[np.lexsort((adata.obs["cell_type"].astype(str), adata.obs["batch"].astype(str)))].copy()
    _common.add_pca(scored := adata.copy())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(path := Path(folder) / "sorted.h5ad")
        for seed in range(seeds):
            for block in [None, *map(int, blocks.split(","))]:
                opened = adata.copy() if block is None else ad.read_h5ad(path, backed="r")
                row: dict[str, object] = {"counts": "in memory" if block is None else f"blocks of {block}"}
                row["blocks in the buffer"] = None if block is None else cells // 4 // block
                buffer = 8 * adata.X.nnz // 4
                with mock.patch.multiple(from_disk, BLOCK=block or 1, BUFFER=buffer):
                    options = {"max_epochs": max_epochs, "random_state": seed, "impute": False, "progress_bar": False}
                    scvip.tl.scvi_pyro(opened, batch_key="batch", **options)
                row["ELBO"] = opened.uns["scvi_pyro"]["history"]["validation_elbo"].iloc[-1]
                row |= _scores.scib(opened.obsm["X_scvi_pyro"], scored.obsm["X_pca"], adata.obs)
                rows.append(row | {"seed": seed})
                print(rows[-1], flush=True)
    groups = (
        pd.DataFrame(rows).drop(columns="seed").groupby(["counts", "blocks in the buffer"], sort=False, dropna=False)
    )
    _common.report(groups.agg(["mean", "sem"]).reset_index(), "sorted_file", output, decimals=3)


if __name__ == "__main__":
    typer.run(main)
