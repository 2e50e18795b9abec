"""Time and peak memory of imputing all genes of many cells, beside scvi-tools on the same weights."""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import _common
import anndata as ad
import numpy as np
import pandas as pd
import psutil
import typer

import scanpy_scvipyro as scvip

if TYPE_CHECKING:
    from collections.abc import Callable


def main(
    cells: Annotated[int, typer.Option(help="Number of cells: PBMC, repeated with half of the counts.")] = 100_000,
    genes: Annotated[int, typer.Option(help="Number of highly variable genes.")] = 2_000,
    repeats: Annotated[int, typer.Option(help="Measurements of each; the medians are reported.")] = 3,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Measure imputation to 10,000 counts per cell, in each cell's own batch and averaged over all batches.

    A model of scvi-tools is trained for an epoch and converted, so that both sides do the same work. They take turns.
    Memory is what the process takes at most while it imputes, above what it took before; the result itself takes 4
    bytes per cell and gene.
    """
    _common.quiet()
    adata = tiled(cells, genes)
    model = trained_peer(adata)
    scvip.get.from_scvi_tools(model, adata, impute=False)
    batches = list(adata.obs["batch"].cat.categories)

    def ours(transform_batch: list[str] | None) -> None:
        scvip.tl.impute(adata, transform_batch=transform_batch, library_size=1e4, progress_bar=False)

    def to_disk(transform_batch: list[str] | None) -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = {"transform_batch": transform_batch, "library_size": 1e4}
            scvip.tl.impute(adata, out=Path(folder) / "imputed.zarr", progress_bar=False, **arguments)

    def peer(transform_batch: list[str] | None) -> None:
        adata.layers["peer"] = model.get_normalized_expression(
            transform_batch=transform_batch, library_size=1e4, return_numpy=True, silent=True
        )

    sides = {"tl.impute": ours, "tl.impute(out=...)": to_disk, "scvi-tools": peer}
    measured = []
    for _ in range(repeats):
        for name, impute in sides.items():
            for batch, transform_batch in {"own": None, "all": batches}.items():
                for layer in ("scvi_pyro_imputed", "peer"):
                    adata.layers.pop(layer, None)
                gc.collect()
                seconds, peak = measure(lambda: impute(transform_batch))  # noqa: B023  # called at once
                measured.append({"function": name, "batch": batch, "seconds": seconds, "peak GiB": peak})
                print(measured[-1], flush=True)
    table = pd.DataFrame(measured).groupby(["batch", "function"], sort=False).median().reset_index()
    table.insert(3, "cells/s", adata.n_obs / table["seconds"])
    table["result GiB"] = 4 * adata.n_obs * adata.n_vars / 2**30
    _common.report(table, "impute_speed", output)


def tiled(n_cells: int, n_genes: int) -> ad.AnnData:
    """Repeat real cells, each time with other halves of their counts."""
    adata = _common.load("pbmc", n_genes)
    adata = adata[np.ravel(adata.X.sum(axis=1)) > 20].copy()
    rng = np.random.default_rng(0)
    parts = []
    for start in range(0, n_cells, adata.n_obs):
        part = adata[: min(adata.n_obs, n_cells - start)].copy()
        part.X.data = rng.binomial(part.X.data.astype(int), 0.5).astype(np.float32)
        part.X.eliminate_zeros()
        parts.append(part)
    joined = ad.concat(parts, index_unique="-", keys=map(str, range(len(parts))))
    joined.obs["batch"] = joined.obs["batch"].astype("category")
    return joined[np.ravel(joined.X.sum(axis=1)) > 0].copy()


def trained_peer(adata: ad.AnnData) -> object:
    """Train scvi-tools' default model for an epoch."""
    import scvi

    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    return model


def measure(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds a call takes, and GiB of memory at its peak above what was taken before."""
    process = psutil.Process()
    before = peak = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    call()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return seconds, (peak - before) / 2**30


if __name__ == "__main__":
    typer.run(main)
