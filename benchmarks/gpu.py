"""Training on a CUDA device: cells per second by batch size and precision, and how busy the device is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import _common
import anndata as ad
import pandas as pd
import torch
import typer

import scanpy_scvipyro as scvip
from scanpy_scvipyro.model import SCVI

# Of the host for the device; the end of the epoch, which is timed, has one more.
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Compiled(SCVI):
    """scVI whose networks are compiled; the likelihood and the Pyro programs around them are not."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.encoder.compile()
        self.decoder.compile()


def main(
    cells: Annotated[int, typer.Option(help="Number of cells: PBMC, repeated with half of the counts.")] = 200_000,
    genes: Annotated[int, typer.Option(help="Number of highly variable genes.")] = 2_000,
    batch_sizes: Annotated[str, typer.Option(help="Minibatch sizes, separated by commas.")] = "128,512,2048,8192",
    precisions: Annotated[str, typer.Option(help="Of 32-true, bf16-mixed.")] = "32-true,bf16-mixed",
    likelihoods: Annotated[str, typer.Option(help="Of nb, zinb, poisson.")] = "nb",
    compiled: Annotated[bool, typer.Option(help="Also with torch.compile of the networks.")] = True,
    accelerator: Annotated[str, typer.Option(help="gpu; cpu checks this program where there is no GPU.")] = "gpu",
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train three epochs: the first warms up, the second is timed, the third is profiled.

    The profiler slows the third, so the device is busy for the time of its kernels in the third as a share of the time
    of the second. Kernels and waits (of the host, for the device) are counted in the third, per step: many kernels of a
    few microseconds each, or waits, leave a device idle. Both sides train on all cells; epochs are timed without
    validation. Where scvi-tools is installed it takes its turn after each of ours, in its default precision.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device; --accelerator cpu checks the program without one.")
    _common.quiet()
    adata = _common.tiled(_common.load("pbmc", genes), cells)
    rows = []
    for likelihood in likelihoods.split(","):
        for batch_size in map(int, batch_sizes.split(",")):
            settings = {"batch_key": "batch", "gene_likelihood": likelihood, "batch_size": batch_size}
            measured = {
                f"{precision}{', compiled' if module is Compiled else ''}": ours(
                    adata, accelerator=accelerator, precision=precision, module=module, **settings
                )
                for precision in precisions.split(",")
                for module in (SCVI, Compiled)[: 1 + compiled]
            }
            measured["scvi-tools"] = peer(adata, accelerator, likelihood, batch_size)
            for name, epochs in measured.items():
                if epochs is not None:
                    rows.append({"likelihood": likelihood, "batch size": batch_size, "": name, **epochs.row(cells)})
                    print(rows[-1], flush=True)
    _common.report(pd.DataFrame(rows), "gpu", output)


class Epochs:
    """Hooks that time the second epoch and profile the third; to be mixed into the Callback of either Lightning."""

    def __init__(self) -> None:
        self.seconds, self.device_seconds, self.gib = float("nan"), float("nan"), float("nan")
        self.kernels, self.waits = float("nan"), float("nan")

    def on_train_epoch_start(self, trainer: object, pl_module: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if trainer.current_epoch == 2:
            self.profile = torch.profiler.profile()
            self.profile.start()
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: object, pl_module: object, outputs: object, batch: object, i: int) -> None:
        if i + 1 < trainer.num_training_batches:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if trainer.current_epoch == 1:
            self.seconds = time.perf_counter() - self.start
        elif trainer.current_epoch == 2:
            self.profile.stop()
            events = self.profile.key_averages()
            self.device_seconds = sum(event.self_device_time_total for event in events) / 1e6
            self.kernels = sum(event.count for event in events if event.key.startswith("cudaLaunchKernel")) / (i + 1)
            self.waits = sum(event.count for event in events if event.key in WAITS) / (i + 1)
            if torch.cuda.is_available():
                self.gib = torch.cuda.max_memory_allocated() / 2**30
                torch.cuda.reset_peak_memory_stats()

    def row(self, n_cells: int) -> dict[str, float]:
        return {
            "cells/s": round(n_cells / self.seconds),
            "s per million cells": 1e6 * self.seconds / n_cells,
            "device busy": self.device_seconds / self.seconds,
            "kernels per step": self.kernels,
            "waits per step": self.waits,
            "device peak GiB": self.gib,
        }


def ours(adata: ad.AnnData, **settings: object) -> Epochs:
    """Train scanpy_scvipyro."""
    from pytorch_lightning import Callback

    epochs = type("OurEpochs", (Epochs, Callback), {})()
    fixed = {"max_epochs": 3, "train_size": 1.0, "impute": False, "progress_bar": False}
    scvip.tl.scvi_pyro(adata, callbacks=[epochs], **fixed, **settings)
    return epochs


def peer(adata: ad.AnnData, accelerator: str, likelihood: str, batch_size: int) -> Epochs | None:
    """Train scvi-tools, where it is installed."""
    try:
        import scvi
        from lightning.pytorch import Callback
    except ImportError:
        return None
    epochs = type("PeerEpochs", (Epochs, Callback), {})()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, gene_likelihood=likelihood)
    quiet = {"enable_progress_bar": False, "logger": False}
    model.train(3, accelerator=accelerator, batch_size=batch_size, train_size=1.0, callbacks=[epochs], **quiet)
    return epochs


if __name__ == "__main__":
    typer.run(main)
