"""Cells per second of a training step beside scvi-tools and beside the bare matrix products."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import _common
import numpy as np
import pandas as pd
import torch
import typer

import scanpy_scvipyro as scvip


def main(
    genes: Annotated[str, typer.Option(help="Numbers of genes, separated by commas.")] = "1000,2000,10000",
    batch_sizes: Annotated[str, typer.Option(help="Minibatch sizes, separated by commas.")] = "128",
    likelihoods: Annotated[str, typer.Option(help="Of nb, zinb, poisson.")] = "nb,zinb",
    repeats: Annotated[int, typer.Option(help="Measurements of each; the median is reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Measure training alone: the time of an epoch is that of four epochs less that of one, over three.

    Ours, the peer and the matrix products take turns, so that a noisy machine slows all of them. Both train on all
    cells, without validation. The matrix products are those of the default network (one hidden layer of 128 units,
    forward and backward), without anything else.
    """
    _common.quiet()
    rows = []
    for n_genes in map(int, genes.split(",")):
        adata = _common.load("pbmc", n_genes)
        for likelihood in likelihoods.split(","):
            for batch_size in map(int, batch_sizes.split(",")):
                measured = [
                    (
                        epoch_seconds(ours, adata, likelihood, batch_size),
                        epoch_seconds(peer, adata, likelihood, batch_size),
                        matrix_products(adata.n_obs, n_genes, likelihood, batch_size),
                    )
                    for _ in range(repeats)
                ]
                own, other, bare = np.median(measured, axis=0)
                rows.append(
                    {
                        "genes": n_genes,
                        "likelihood": likelihood,
                        "batch size": batch_size,
                        "cells/s": adata.n_obs / own,
                        "scvi-tools cells/s": adata.n_obs / other,
                        "times the peer": other / own,
                        "times the bare products": own / bare,
                    }
                )
                print(rows[-1], flush=True)
    _common.report(pd.DataFrame(rows), "throughput", output, decimals=1)


def epoch_seconds(train: object, adata: _common.sc.AnnData, likelihood: str, batch_size: int) -> float:
    """Time of one epoch, without what comes before and after."""
    seconds = []
    for n_epochs in (1, 4):
        start = time.perf_counter()
        train(adata, likelihood, batch_size, n_epochs)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / 3


def ours(adata: _common.sc.AnnData, likelihood: str, batch_size: int, n_epochs: int) -> None:
    """Train scanpy_scvipyro."""
    scvip.tl.scvi_pyro(
        adata,
        batch_key="batch",
        gene_likelihood=likelihood,
        batch_size=batch_size,
        max_epochs=n_epochs,
        train_size=1.0,
        impute=False,
        progress_bar=False,
    )


def peer(adata: _common.sc.AnnData, likelihood: str, batch_size: int, n_epochs: int) -> None:
    """Train scvi-tools."""
    import scvi

    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, gene_likelihood=likelihood)
    model.train(n_epochs, batch_size=batch_size, train_size=1.0, enable_progress_bar=False, logger=False)


def matrix_products(n_cells: int, n_genes: int, likelihood: str, batch_size: int, n_hidden: int = 128) -> float:
    """Time of the products with weights of (n_genes, n_hidden) that an epoch cannot do without."""
    counts = torch.rand(batch_size, n_genes)
    encoder = torch.randn(n_genes, n_hidden, requires_grad=True)
    decoders = [torch.randn(n_hidden, n_genes, requires_grad=True) for _ in range(2 if likelihood == "zinb" else 1)]
    upstream = torch.rand(batch_size, n_genes)
    start = time.perf_counter()
    for _ in range(-(-n_cells // batch_size)):
        hidden = counts @ encoder
        torch.autograd.backward([hidden @ decoder for decoder in decoders], [upstream] * len(decoders))
    return time.perf_counter() - start


if __name__ == "__main__":
    typer.run(main)
