"""Training in several processes: seconds per epoch, ELBO, and what the processes spend on each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import _common
import anndata as ad
import numpy as np
import pandas as pd
import typer
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_only

import scanpy_scvipyro as scvip

app = typer.Typer(add_completion=False)


@app.command()
def measure(
    cells: Annotated[int, typer.Option(help="Number of cells: PBMC, repeated with half of the counts.")] = 20_000,
    genes: Annotated[int, typer.Option(help="Number of highly variable genes.")] = 2_000,
    processes: Annotated[str, typer.Option(help="Numbers of processes, separated by commas.")] = "1,2",
    batch_sizes: Annotated[str, typer.Option(help="Minibatch sizes of each process.")] = "256,1024",
    max_epochs: Annotated[int, typer.Option(help="Epochs; the first is not timed.")] = 4,
    accelerator: Annotated[str, typer.Option(help="cpu, or gpu.")] = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train on the same cells with each number of processes, "together" by DDP, and "apart".

    Apart, as many processes run at the same time, each alone on its part of the cells: the same steps, of the same
    minibatches, on the same cores and memory. What together takes more than apart is communication, and waiting for
    each other. Wall time needs an idle machine, with a core for each process; processor time counts the work of all
    processes in any case. Epochs are timed without evaluations.
    """
    _common.quiet()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "cells.h5ad"
        adata = _common.tiled(_common.load("pbmc", genes), cells)
        adata = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
        adata.write_h5ad(whole)
        for n in map(int, processes.split(",")):
            for i in range(n):
                adata[i::n].copy().write_h5ad(Path(folder) / f"part{i}.h5ad")
            for batch_size in map(int, batch_sizes.split(",")):
                settings = {"batch_size": batch_size, "max_epochs": max_epochs, "accelerator": accelerator}
                together = run([command(whole, settings | {"devices": n}, n)])
                row = {"processes": n, "batch size of each": batch_size} | summary(together)
                if n > 1:
                    parts = [Path(folder) / f"part{i}.h5ad" for i in range(n)]
                    apart = summary(
                        run([command(part, settings | {"devices": [i]}, 1) for i, part in enumerate(parts)])
                    )
                    row["apart, s per epoch"] = apart["s per epoch"]
                    row["apart, processor s"] = apart["processor s"]
                    row["share of communication"] = 1 - apart["s per epoch"] / row["s per epoch"]
                rows.append(row)
                print(row, flush=True)
    _common.report(pd.DataFrame(rows), "devices", output, decimals=2)


def command(path: Path, settings: dict[str, object], n_processes: int) -> list[str]:
    """How to start the training of one model."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_processes)]
    if settings["accelerator"] == "cpu" and isinstance(settings["devices"], list):
        settings = settings | {"devices": 1}
    return [sys.executable, *(launcher if n_processes > 1 else []), __file__, "train", str(path), json.dumps(settings)]


def run(commands: list[list[str]]) -> list[dict[str, float]]:
    """Run commands at the same time; what each process says of its training."""
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    lines = [line for process in running for line in process.communicate()[0].splitlines()]
    if any(process.returncode for process in running):
        raise typer.Exit(1)
    return [json.loads(line) for line in lines if line.startswith("{")]


def summary(said: list[dict[str, float]]) -> dict[str, float]:
    """Of processes that trained at the same time."""
    table = pd.DataFrame(said).sort_values("rank")
    return {
        "steps per epoch": int(table["steps"].iloc[0]),
        "s per epoch": float(table["seconds"].max()),
        "processor s": float(table["processor"].sum()),
        "validation ELBO": float(table["elbo"].mean()),
    }


class Epochs(Callback):
    """Times of each epoch, from its start to the end of its last step: of the clock, and of the processor."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, _: object, i: int
    ) -> None:
        if i + 1 == trainer.num_training_batches:
            self.n_steps = i + 1
            self.seconds.append(time.perf_counter() - self.start[0])
            self.processor.append(time.process_time() - self.start[1])


@app.command(hidden=True)
def train(path: Path, settings: str) -> None:
    """Train in this process, which may be one of several; print what it took."""
    _common.quiet()
    epochs = Epochs()
    adata = ad.read_h5ad(path)
    scvip.tl.scvi_pyro(
        adata, batch_key="batch", impute=False, progress_bar=False, callbacks=[epochs], **json.loads(settings)
    )
    said = {
        "rank": rank_zero_only.rank if "LOCAL_RANK" in os.environ else 0,
        "steps": epochs.n_steps,
        "seconds": float(np.median(epochs.seconds[1:])),
        "processor": float(np.median(epochs.processor[1:])),
        "elbo": float(adata.uns["scvi_pyro"]["history"]["validation_elbo"].iloc[-1]),
    }
    sys.stdout.write(json.dumps(said) + "\n")  # at once, since others write to the same pipe
    sys.stdout.flush()


if __name__ == "__main__":
    app()
