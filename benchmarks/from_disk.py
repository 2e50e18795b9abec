"""Training from files larger than memory: time and peak memory, beside the same in memory, and scvi-tools."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import _common
import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import typer
import zarr
from pytorch_lightning import Callback, LightningModule, Trainer
from scipy import sparse

import scanpy_scvipyro as scvip

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMATS = {"h5ad": None, "h5ad gzip": "gzip", "zarr": None}


def main(
    cells: Annotated[int, typer.Option(help="Number of cells.")] = 1_000_000,
    genes: Annotated[int, typer.Option(help="Number of genes.")] = 2_000,
    share: Annotated[float, typer.Option(help="Share of the counts of PBMC that each cell keeps.")] = 0.5,
    formats: Annotated[str, typer.Option(help="Files to train from, separated by commas.")] = ",".join(FORMATS),
    max_epochs: Annotated[int | None, typer.Option(help="Train shorter than by default, for a quick check.")] = None,
    epoch_share: Annotated[
        float, typer.Option(help="End the only epoch after this share of its steps, and stop.")
    ] = 1.0,
    memory: Annotated[bool, typer.Option(help="Train in memory, too.")] = True,
    impute: Annotated[bool, typer.Option(help="Impute into a store on disk, 4 bytes per cell and gene.")] = False,
    lazy: Annotated[bool, typer.Option(help="Train through read_lazy, too.")] = False,
    peer: Annotated[bool, typer.Option(help="Train scvi-tools for as many epochs, in memory and backed.")] = False,
    folder: Annotated[Path | None, typer.Option(help="Where to write the files; by default a temporary one.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Write a file of any size from the shipped data, train from it, and read the codes, each in a fresh process.

    Cells of PBMC are repeated, each time with other parts of their counts, and sorted by batch and cell type, which is
    the hardest order to draw random minibatches from. They are written as they are made, so that memory holds few of
    them. Times have the reading of an AnnData into memory in them, where it is; processor time is that of all threads.
    Memory is the peak of the process, with Python and PyTorch (0.5 GiB). --epoch-share is for sizes that take hours:
    "epoch s" is the time of these steps.
    """
    _common.quiet()
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        for name in formats.split(","):
            path = Path(directory) / ("cells.zarr" if name == "zarr" else "cells.h5ad")
            _common.in_fresh_process(write, path, cells, genes, share, FORMATS[name])
            once = ["memory"] * memory + ["scvi-tools, memory", "scvi-tools, backed"] * peer
            for way in ["disk"] + ["disk, lazy"] * lazy + once * (not rows):
                try:
                    row = _common.in_fresh_process(train, path, way, max_epochs, epoch_share, impute)
                except BrokenProcessPool:
                    row = {"remark": "out of memory"}
                except Exception as error:  # noqa: BLE001  of a peer, which is part of the result
                    row = {"remark": f"{type(error).__name__}: {str(error)[:100]}"}
                rows.append({"from": way, "file": name, "GiB on disk": size(path) / 2**30} | row)
                print(rows[-1], flush=True)
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    _common.report(pd.DataFrame(rows), f"from_disk_{cells}", output, decimals=2)


def size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def write(path: Path, n_cells: int, n_genes: int, share: float, compression: str | None) -> None:
    """Write repeated cells, sorted by batch and cell type, a few thousand at a time."""
    _common.quiet()
    source = _common.load("pbmc", n_genes)
    rng = np.random.default_rng(0)
    groups = source.obs.groupby(["batch", "cell_type"], observed=True).indices
    n_of_group = np.diff(np.round(np.cumsum([0, *map(len, groups.values())]) * (n_cells / source.n_obs)).astype(int))
    is_zarr, zarr_format = path.suffix == ".zarr", ad.settings.zarr_write_format
    store = zarr.open_group(path, mode="w", zarr_format=zarr_format) if is_zarr else h5py.File(path, "w")
    batch = pd.Categorical(np.repeat([batch for batch, _ in groups], n_of_group))
    obs = pd.DataFrame({"batch": batch}, index=pd.RangeIndex(n_cells).astype(str))
    ad.io.write_elem(store, "/", ad.AnnData(obs=obs, var=source.var[[]]))
    matrix = None
    for part in parts(source.X, list(groups.values()), n_of_group, share, rng):
        if matrix is None:
            # As large as files have them that are written at once.
            whole = (part.nnz // part.shape[0] * n_cells,)
            kwargs = {"chunks": zarr.create_array({}, shape=whole, dtype=part.dtype).chunks if is_zarr else (1 << 15,)}
            kwargs |= {"compression": compression} if compression else {}
            ad.io.write_elem(store, "X", part, dataset_kwargs=kwargs)
            matrix = ad.io.sparse_dataset(store["X"])
        else:
            matrix.append(part)
    if not is_zarr:
        store.close()


def parts(
    counts: sparse.csr_matrix, groups: list[np.ndarray], sizes: np.ndarray, share: float, rng: np.random.Generator
) -> Iterator[sparse.csr_matrix]:
    """As many cells of each group as are asked for, with counts thinned at random and at least one count."""
    for cells, n in zip(groups, sizes, strict=True):
        for start in range(0, n, 4096):
            drawn = counts[rng.choice(cells, min(4096, n - start))]
            part = _common.thinned(drawn, share, rng)
            part = sparse.csr_matrix(part + drawn.multiply((np.ravel(part.sum(axis=1)) == 0)[:, None]))
            part.sort_indices()
            part.indptr = part.indptr.astype(np.int64)  # of more counts than int32 can tell
            yield part


@contextmanager
def measured(row: dict[str, float], name: str) -> Iterator[None]:
    """Add seconds and processor seconds of a block to a row."""
    process, start = psutil.Process(), time.perf_counter()
    before = sum(process.cpu_times()[:2])
    yield
    row[f"{name} s"] = time.perf_counter() - start
    row[f"{name} processor s"] = sum(process.cpu_times()[:2]) - before


class OnlyEpoch(Callback):
    """Ends training after a share of the first epoch."""

    def __init__(self, share: float) -> None:
        self.share, self.seconds = share, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, _: object, i: int
    ) -> None:
        if i + 1 >= self.share * trainer.num_training_batches:
            trainer.should_stop = True
            self.seconds = time.perf_counter() - self.start


def train(path: Path, way: str, max_epochs: int | None, epoch_share: float, impute: bool) -> dict[str, float]:
    """Train, and compute the codes once more; the peak of memory after each."""
    _common.quiet()
    row: dict[str, float] = {}
    small = scvip.datasets.cell_mixtures()
    scvip.tl.scvi_pyro(small, batch_key="batch", max_epochs=1, impute=False, progress_bar=False)  # imports
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if way.startswith("scvi-tools"):
        return train_scvi_tools(path, way, max_epochs)
    only = [OnlyEpoch(epoch_share)] if epoch_share < 1 else []
    options = {"max_epochs": max_epochs, "callbacks": only, "impute": False, "progress_bar": False}
    with measured(row, "training"):
        adata = opened(path, way)
        scvip.tl.scvi_pyro(adata, batch_key="batch", **options)
    if only:
        row["epoch s"] = only[0].seconds
    row["epochs"] = len(adata.uns["scvi_pyro"]["history"])
    row["validation ELBO"] = adata.uns["scvi_pyro"]["history"]["validation_elbo"].iloc[-1]
    row |= {"peak GiB before": start, "training peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    with measured(row, "latent"):
        scvip.tl.latent(adata)
    if impute:
        with measured(row, "impute"):
            scvip.tl.impute(adata, out=path.with_name("imputed.zarr"), progress_bar=False)
        shutil.rmtree(path.with_name("imputed.zarr"))
    row["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def opened(path: Path, way: str) -> ad.AnnData:
    """Open a file in the way that is asked for."""
    if way == "disk, lazy":
        return ad.experimental.read_lazy(path)
    if path.suffix == ".h5ad":
        return ad.read_h5ad(path, backed=None if way == "memory" else "r")
    if way == "memory":
        return ad.read_zarr(path)
    store = zarr.open_group(path, mode="r")
    obs, var = (ad.io.read_elem(store[name]) for name in ("obs", "var"))
    return ad.AnnData(ad.io.sparse_dataset(store["X"]), obs, var)


def train_scvi_tools(path: Path, way: str, max_epochs: int | None) -> dict[str, float]:
    """Train scvi-tools with its defaults, for as many epochs as ours."""
    import scvi

    from scanpy_scvipyro.training import default_max_epochs

    row: dict[str, float] = {}
    with measured(row, "training"):
        adata = opened(path, way.removeprefix("scvi-tools, "))
        scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
        model = scvi.model.SCVI(adata)
        row["epochs"] = max_epochs or default_max_epochs(adata.n_obs)
        model.train(max_epochs=int(row["epochs"]), enable_progress_bar=False, logger=False)
    row["training peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with measured(row, "latent"):
        model.get_latent_representation()
    row["peak GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


if __name__ == "__main__":
    typer.run(main)
