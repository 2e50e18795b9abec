"""Cells per second and peak memory of training, latent codes and imputation, beside scvi-tools."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import _common
import anndata as ad
import numpy as np
import pandas as pd
import torch
import typer

import scanpy_scvipyro as scvip


def main(
    genes: Annotated[str, typer.Option(help="Numbers of genes, separated by commas.")] = "1000,2000,10000,20000",
    batch_sizes: Annotated[str, typer.Option(help="Minibatch sizes, separated by commas.")] = "128",
    likelihoods: Annotated[str, typer.Option(help="Of nb, zinb, poisson.")] = "nb,zinb",
    repeats: Annotated[int, typer.Option(help="Measurements of each; the medians are reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Measure PBMC, as many cells as fill whole minibatches; the two sides take turns, each in a fresh process.

    Training: the median time from the end of a step to that of the next, so with its minibatch and without evaluations.
    Beside it stand the matrix products of the default network (one hidden layer of 128 units, forward and backward),
    without anything else. Latent codes are posterior means, imputation is to 10,000 counts per
    cell. Memory is what the process takes at its peak, above what it took before the call.
    """
    _common.quiet()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        for n_genes in map(int, genes.split(",")):
            adata = _common.load("pbmc", n_genes)
            adata.write_h5ad(path)
            for likelihood in likelihoods.split(","):
                for batch_size in map(int, batch_sizes.split(",")):
                    setting = {"genes": n_genes, "likelihood": likelihood, "batch size": batch_size}
                    measured: dict[type, list[pd.DataFrame]] = {Ours: [], Peer: []}
                    bare = []
                    for _ in range(repeats):
                        for side, results in measured.items():
                            results.append(_common.in_fresh_process(measure, side, path, likelihood, batch_size))
                        bare.append(matrix_products(n_genes, likelihood, batch_size))
                    rows += compare(setting, measured[Ours], measured[Peer], float(np.median(bare)))
    _common.report(pd.DataFrame(rows), "throughput", output, decimals=2)


def compare(
    setting: dict[str, object], ours: list[pd.DataFrame], peer: list[pd.DataFrame], bare: float
) -> list[dict[str, object]]:
    """Medians of the measurements of one setting: a row for each of training, latent codes and imputation."""
    own, other = (np.median(tables, axis=0).tolist() for tables in (ours, peer))
    rows = []
    for name, (speed, gib), (peer_speed, peer_gib) in zip(ours[0].index, own, other, strict=True):
        rows.append(
            setting
            | {
                "of": name,
                "cells/s": round(speed),
                "scvi-tools cells/s": round(peer_speed),
                "times the peer": speed / peer_speed,
                "times the bare products": bare / speed if name == "training" else None,
                "peak GiB": gib,
                "scvi-tools peak GiB": peer_gib,
            }
        )
        print(rows[-1], flush=True)
    return rows


class Ours:
    """The calls of scanpy_scvipyro."""

    def __init__(self, adata: ad.AnnData, likelihood: str, batch_size: int) -> None:
        self.adata = adata
        self.options = {"gene_likelihood": likelihood, "batch_size": batch_size, "train_size": 1.0, "impute": False}

    def train(self, n_epochs: int) -> _common.StepEnds:
        from pytorch_lightning import Callback

        steps = type("Steps", (_common.StepEnds, Callback), {})()
        options = {"max_epochs": n_epochs, "callbacks": [steps], "progress_bar": False, **self.options}
        scvip.tl.scvi_pyro(self.adata, batch_key="batch", **options)
        return steps

    def latent(self) -> None:
        scvip.tl.latent(self.adata)

    def impute(self) -> None:
        scvip.tl.impute(self.adata, library_size=1e4, progress_bar=False)


class Peer:
    """The same of scvi-tools."""

    def __init__(self, adata: ad.AnnData, likelihood: str, batch_size: int) -> None:
        self.adata, self.likelihood = adata, likelihood
        self.options = {"batch_size": batch_size, "train_size": 1.0, "enable_progress_bar": False, "logger": False}

    def train(self, n_epochs: int) -> _common.StepEnds:
        import scvi
        from lightning.pytorch import Callback

        steps = type("Steps", (_common.StepEnds, Callback), {})()
        scvi.model.SCVI.setup_anndata(self.adata, batch_key="batch")
        self.model = scvi.model.SCVI(self.adata, gene_likelihood=self.likelihood)
        self.model.train(n_epochs, callbacks=[steps], **self.options)
        return steps

    def latent(self) -> None:
        self.adata.obsm["peer"] = self.model.get_latent_representation()

    def impute(self) -> None:
        result = self.model.get_normalized_expression(library_size=1e4, return_numpy=True, silent=True)
        self.adata.layers["peer"] = result


def measure(side: type[Ours | Peer], path: Path, likelihood: str, batch_size: int) -> pd.DataFrame:
    """Cells per second and GiB of training, of latent codes and of imputation."""
    _common.quiet()
    adata = ad.read_h5ad(path)
    adata = adata[: adata.n_obs // batch_size * batch_size].copy()
    warm_up = side(adata[:500].copy(), likelihood, batch_size)
    for call in (lambda: warm_up.train(1), warm_up.latent, warm_up.impute):  # imports
        call()
    calls = side(adata, likelihood, batch_size)
    steps: list[_common.StepEnds] = []
    training = _common.measure(lambda: steps.append(calls.train(4)))
    latent, impute = _common.measure(calls.latent), _common.measure(calls.impute)
    rows = {
        "training": (batch_size / steps[0].median_seconds(), training.added_gib),
        "latent codes": (adata.n_obs / latent.seconds, latent.added_gib),
        "imputation": (adata.n_obs / impute.seconds, impute.added_gib),
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["cells/s", "GiB"])


def matrix_products(n_genes: int, likelihood: str, batch_size: int, n_hidden: int = 128) -> float:
    """Cells per second of the products with weights of (n_genes, n_hidden) that a step cannot do without."""
    counts = torch.rand(batch_size, n_genes)
    encoder = torch.randn(n_genes, n_hidden, requires_grad=True)
    decoders = [torch.randn(n_hidden, n_genes, requires_grad=True) for _ in range(2 if likelihood == "zinb" else 1)]
    upstream = torch.rand(batch_size, n_genes)
    torch.empty(8_000_000 - 4096)  # glibc keeps freed memory from then on, as in training
    times = []
    for _ in range(100):
        times.append(time.perf_counter())
        hidden = counts @ encoder
        torch.autograd.backward([hidden @ decoder for decoder in decoders], [upstream] * len(decoders))
    return batch_size / float(np.median(np.diff(times)))


if __name__ == "__main__":
    typer.run(main)
