"""Time and peak memory of training and of latent codes against the number of cells, and of genes."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated

import _common
import anndata as ad
import numpy as np
import pandas as pd
import typer
from pytorch_lightning import Callback, LightningModule, Trainer

import scanpy_scvipyro as scvip


def main(
    cells: Annotated[str, typer.Option(help="Numbers of cells, separated by commas.")] = "10000,30000,100000,300000,"
    "1000000",
    genes: Annotated[str, typer.Option(help="Numbers of genes with the smallest number of cells.")] = "1000,2000,5000,"
    "10000",
    genes_of_cells: Annotated[int, typer.Option(help="Number of genes of the series of cells.")] = 2_000,
    max_epochs: Annotated[int | None, typer.Option(help="Train shorter than by default, for a quick check.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the tables as Markdown and JSON.")] = None,
) -> None:
    """Train with the defaults, each size in a fresh process, and fit lines through what was measured.

    Cells of PBMC are repeated, each time with other halves of their counts. Seconds per epoch are those between the
    starts of two epochs, so with validation; the whole of the training has checks, set-up and the final codes besides.
    The number of epochs falls with the number of cells, hence the total does not rise in proportion. Memory is the
    peak of the process, with Python, PyTorch (0.5 GiB) and the counts.
    """
    _common.quiet()
    sizes = [(n, genes_of_cells) for n in sorted(map(int, cells.split(",")))]
    gene_sizes = [(sizes[0][0], n) for n in sorted(map(int, genes.split(",")))] if genes else []
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for n_cells, n_genes in dict.fromkeys(sizes + gene_sizes):
            path = Path(folder) / "cells.h5ad"
            _common.in_fresh_process(write, n_cells, n_genes, path)
            try:
                row = _common.in_fresh_process(train, path, max_epochs)
            except BrokenProcessPool:
                row = {"cells": n_cells, "genes": n_genes, "remark": "out of memory"}
            print(row, flush=True)
            measured[n_cells, n_genes] = row
    for name, series in {"cells": sizes, "genes": gene_sizes}.items():
        if series:
            table = pd.DataFrame([measured[size] for size in series])
            _common.report(table, f"scaling_{name}", output, decimals=3)
            _common.report(slopes(table, name), f"scaling_{name}_slopes", output, decimals=3)


def write(n_cells: int, n_genes: int, path: Path) -> None:
    """Write repeated cells to disk."""
    _common.quiet()
    _common.tiled(_common.load("pbmc", n_genes), n_cells).write_h5ad(path)


class EpochStarts(Callback):
    """Notes when each epoch starts, and when the last one ends."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.times.append(time.perf_counter())


def train(path: Path, max_epochs: int | None) -> dict[str, float]:
    """Train on the cells, and compute their codes once more."""
    _common.quiet()
    adata = ad.read_h5ad(path)
    scvip.tl.scvi_pyro(adata[:500].copy(), batch_key="batch", max_epochs=1, progress_bar=False)  # imports
    epochs = EpochStarts()
    options = {"batch_key": "batch", "impute": False, "progress_bar": False, "max_epochs": max_epochs}
    training = _common.measure(lambda: scvip.tl.scvi_pyro(adata, callbacks=[epochs], **options))
    latent = _common.measure(lambda: scvip.tl.latent(adata))
    counts = adata.X
    return {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "counts GiB": (counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes) / 2**30,
        "epochs": len(adata.uns["scvi_pyro"]["history"]),
        "s per epoch": float(np.mean(np.diff(epochs.times))),
        "training s": training.seconds,
        "training peak GiB": training.peak_gib,
        "latent s": latent.seconds,
        "latent peak GiB": latent.peak_gib,
    }


def slopes(table: pd.DataFrame, size: str) -> pd.DataFrame:
    """Fit straight lines: the slope, how far the points are off, and the exponent of a power law.

    Points are weighted so that each counts by its relative error. An exponent of 1 is proportionality, what does not
    grow with the size lowers it; memory, half of which is PyTorch in small sizes, has none.
    """
    unit = {"cells": 100_000, "genes": 1_000}[size]
    table = table.dropna(subset="training s")
    rows = []
    for column in ("s per epoch", "training peak GiB", "latent s", "latent peak GiB"):
        x, y = table[size].to_numpy(float), table[column].to_numpy(float)
        if len(x) < 2:
            continue
        slope, intercept = np.polyfit(x / unit, y, 1, w=1 / y)
        rows.append(
            {
                "": column,
                f"per {unit:,} {size}": slope,
                f"at 0 {size}": intercept,
                "largest relative deviation": np.max(np.abs(slope * x / unit + intercept - y) / y),
                "log-log exponent": None if "GiB" in column else np.polyfit(np.log(x), np.log(y), 1)[0],
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    typer.run(main)
