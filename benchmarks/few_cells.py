"""How many epochs a few hundred cells can take before they are learnt by heart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import _common
import numpy as np
import pandas as pd
import scanpy as sc
import typer

import scanpy_scvipyro as scvip
from scanpy_scvipyro import integration


def main(
    cells: Annotated[str, typer.Option(help="Numbers of cells, separated by commas.")] = "150,300,600",
    epochs: Annotated[str, typer.Option(help="Numbers of epochs, separated by commas.")] = "60,120,200,400",
    seeds: Annotated[int, typer.Option(help="Number of random subsets; means are reported.")] = 2,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train on random subsets of the cell mixtures and of PBMC (2,000 genes), a fifth of the cells held out.

    "ELBO" is that of the held-out cells at the end, "best" that of the best epoch, and "same batch" the share of the 20
    nearest neighbours of a cell that are of its own batch.
    """
    _common.quiet()
    rows = []
    for name, complete in {"cell mixtures": scvip.datasets.cell_mixtures(), "PBMC": _common.load("pbmc")}.items():
        for n_cells in map(int, cells.split(",")):
            for n_epochs in map(int, epochs.split(",")):
                for seed in range(seeds):
                    row = {"data": name, "cells": n_cells, "epochs": n_epochs}
                    rows.append(row | train(complete, n_cells, n_epochs, seed))
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby(["data", "cells", "epochs"], sort=False).mean().reset_index()
    _common.report(table, "few_cells", output)


def train(complete: sc.AnnData, n_cells: int, n_epochs: int, seed: int) -> dict[str, float]:
    """Train on a random subset."""
    adata = complete[np.random.default_rng(seed).choice(complete.n_obs, n_cells, replace=False)].copy()
    sc.pp.filter_genes(adata, min_counts=1)
    options = {"batch_key": "batch", "max_epochs": n_epochs, "train_size": 0.8, "random_state": seed}
    scvip.tl.scvi_pyro(adata, **options, impute=False, progress_bar=False)
    elbo = adata.uns["scvi_pyro"]["history"]["validation_elbo"]
    batches = adata.obs["batch"].astype("category").cat.codes.to_numpy()
    same_batch = integration.same_share(integration.neighbors(adata.obsm["X_scvi_pyro"]), batches)
    return {"ELBO": elbo.iloc[-1], "best": elbo.max(), "same batch": same_batch.mean()}


if __name__ == "__main__":
    typer.run(main)
