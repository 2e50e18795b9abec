"""Minibatches of more cells: what they save, and what they cost in fit and integration."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated

import _common
import _scores
import numpy as np
import pandas as pd
import typer

import scanpy_scvipyro as scvip

N_SCORED = 4000


def main(
    cells: Annotated[str, typer.Option(help="Numbers of cells, separated by commas.")] = "20000,60000",
    batch_sizes: Annotated[str, typer.Option(help="Cells per minibatch, separated by commas.")] = "256,512,1024,2048",
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 1000,
    seeds: Annotated[int, typer.Option(help="Number of seeds; means and standard errors are reported.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train on thinned copies of PBMC with the default epochs and learning rates, and score.

    "ELBO" is that of thinned copies of cells that no training saw. Scores are those of 4,000 of the cells.
    Processor time is that of the call, of all threads.
    """
    _common.quiet()
    train, test = _common.hold_out(_common.load("pbmc", genes))
    test = _common.tiled(test, 5000, seed=2)
    rows = []
    for n_cells in map(int, cells.split(",")):
        adata = _common.tiled(train, n_cells, seed=1, columns=("batch", "cell_type"))
        scored = np.random.default_rng(0).choice(n_cells, N_SCORED, replace=False)
        part = adata[scored].copy()
        _common.add_pca(part)
        for batch_size, seed in itertools.product(map(int, batch_sizes.split(",")), range(seeds)):
            start = time.process_time()
            options = {"batch_size": batch_size, "random_state": seed, "impute": False, "progress_bar": False}
            scvip.tl.scvi_pyro(adata, batch_key="batch", **options)
            row = {"cells": n_cells, "batch size": batch_size, "processor s": time.process_time() - start}
            row |= {"ELBO": _common.our_elbo(adata, test)}
            scores = _scores.scores(adata.obsm["X_scvi_pyro"][scored], part.obsm["X_pca"], part.obs)
            rows.append(row | {name: score for name, score in scores.items() if not name.startswith("same type")})
            print(rows[-1], flush=True)
    groups = pd.DataFrame(rows).groupby(["cells", "batch size"], sort=False)
    _common.report(groups.agg(["mean", "sem"]).reset_index(), "minibatches", output, decimals=3)


if __name__ == "__main__":
    typer.run(main)
