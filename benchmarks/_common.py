"""What the benchmarks share: data sets, held-out ELBOs, scores, time and memory, and tables."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import multiprocessing
import os
import platform
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import scanpy as sc
import torch
from scipy import sparse

from scanpy_scvipyro import datasets

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

os.environ.setdefault("SCVIPYRO_DATA", str(Path(__file__).parents[2] / "shared" / "data"))

# Whole cell types are missing from single batches, so that batches differ in composition as tissues do.
MISSING = {
    "10x_v1_3k": ["B cells"],
    "10x_v3_1k": ["T cells", "NK cells"],
    "10x_5p_1k": ["CD14+ Monocytes", "FCGR3A+ Monocytes"],
}


def load(name: str, n_genes: int = 2000) -> sc.AnnData:
    """Read a data set: ``pbmc``, ``pbmc_unequal`` or ``plates``, with highly variable genes only.

    Where more genes are asked for than there are, the two halves of the counts stand side by side as different genes.
    """
    adata = datasets.sc_mixology_5plates() if name == "plates" else datasets.pbmc_10x_4chemistries()
    if n_genes > adata.n_vars:
        half = thinned(adata.X, 0.5, np.random.default_rng(0))
        var = pd.concat([adata.var[[]], adata.var[[]].rename(index="{}-2".format)])
        adata = sc.AnnData(sparse.hstack([half, adata.X - half], format="csr"), adata.obs, var)
        adata.X.eliminate_zeros()
    sc.pp.highly_variable_genes(adata, n_top_genes=n_genes, flavor="seurat_v3", batch_key="batch", subset=True)
    if name == "pbmc_unequal":
        batch, cell_type = adata.obs["batch"].astype(str), adata.obs["cell_type"].astype(str)
        missing = np.any([(batch == b) & cell_type.isin(types) for b, types in MISSING.items()], axis=0)
        adata = adata[~missing].copy()
    return adata


def hold_out(adata: sc.AnnData, share: float = 0.1, seed: int = 0) -> tuple[sc.AnnData, sc.AnnData]:
    """Split off test cells that no method sees in training."""
    test = np.random.default_rng(seed).random(adata.n_obs) < share
    return adata[~test].copy(), adata[test].copy()


def thinned(counts: sparse.csr_matrix, share: float, rng: np.random.Generator) -> sparse.csr_matrix:
    """Keep each single count with this probability: what a shallower sequencing of the same cells would have found."""
    kept = counts.copy()
    kept.data = rng.binomial(kept.data.astype(np.int64), share).astype(np.float32)
    kept.eliminate_zeros()
    return kept


def tiled(adata: ad.AnnData, n_cells: int, seed: int = 0, columns: tuple[str, ...] = ("batch",)) -> ad.AnnData:
    """Repeat real cells, each time with other halves of their counts, until there are ``n_cells``."""
    rng = np.random.default_rng(seed)
    parts: list[ad.AnnData] = []
    missing = n_cells
    while missing:
        part = ad.AnnData(thinned(adata.X, 0.5, rng), adata.obs[list(columns)].astype(str), adata.var[[]])
        parts.append(part[np.ravel(part.X.sum(axis=1)) > 0][:missing])
        missing -= parts[-1].n_obs
    joined = ad.concat(parts, index_unique="-", keys=map(str, range(len(parts))))
    joined.obs["batch"] = joined.obs["batch"].astype("category")
    return joined


def our_elbo(trained: sc.AnnData, test: sc.AnnData, n_samples: int = 10) -> float:
    """Mean ELBO of the test cells in nats per cell, averaged over samples of the latent code."""
    from scanpy_scvipyro import data, posterior, storage

    module, spec = storage.from_uns(trained, "scvi_pyro")
    cells = data.load(test, spec)
    torch.manual_seed(0)
    with torch.inference_mode():
        terms = [posterior.elbo_terms(module, chunk) for _ in range(n_samples) for _, chunk in cells.chunks()]
    return float(sum((reconstruction - kl).sum() for reconstruction, kl in terms) / n_samples / cells.n_cells)


def peer_elbo(model: object, test: sc.AnnData, n_samples: int = 10) -> float:
    """Return the same of a model of scvi-tools."""
    return float(np.mean([float(model.get_elbo(test)) for _ in range(n_samples)]))


def train_peer(
    train: sc.AnnData, test: sc.AnnData, seed: int, key: str, model_options: dict[str, object], **options: object
) -> tuple[float, float]:
    """Train scvi-tools, by default with its defaults, and write its codes; seconds, and ELBO of the test cells."""
    import scvi

    scvi.settings.seed = seed
    adata = train.copy()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, **model_options)
    start = time.perf_counter()
    model.train(enable_progress_bar=False, logger=False, **options)
    seconds = time.perf_counter() - start
    train.obsm[key] = model.get_latent_representation()
    return seconds, peer_elbo(model, test)


def add_harmony(adata: sc.AnnData) -> None:
    """Write Harmony's corrected PCA to ``obsm["X_harmony"]``."""
    import harmonypy

    corrected = harmonypy.run_harmony(adata.obsm["X_pca"], adata.obs, "batch").Z_corr
    adata.obsm["X_harmony"] = corrected if len(corrected) == adata.n_obs else corrected.T


def scib(adata: sc.AnnData, keys: list[str]) -> pd.DataFrame:
    """Score embeddings with scib-metrics against ``cell_type`` and ``batch``: one row each."""
    from scib_metrics.benchmark import Benchmarker

    benchmarker = Benchmarker(
        adata,
        batch_key="batch",
        label_key="cell_type",
        embedding_obsm_keys=keys,
        pre_integrated_embedding_obsm_key="X_pca",
        n_jobs=2,
        progress_bar=False,
    )
    benchmarker.benchmark()
    scores = benchmarker.get_results(min_max_scale=False).loc[keys]
    return scores[["Total", "Bio conservation", "Batch correction", "iLISI"]].astype(float)


def add_pca(adata: sc.AnnData, n_components: int = 30) -> None:
    """Write the PCA of log-normalized counts to ``obsm["X_pca"]``."""
    log_counts = adata.copy()
    sc.pp.normalize_total(log_counts, target_sum=1e4)
    sc.pp.log1p(log_counts)
    sc.pp.pca(log_counts, n_comps=n_components)
    adata.obsm["X_pca"] = log_counts.obsm["X_pca"]


class Measured(NamedTuple):
    """What a call took."""

    seconds: float
    added_gib: float
    """Memory of the process at its peak, above what it took before the call."""
    peak_gib: float
    """Memory of the process at its peak, in all."""


def measure(call: Callable[[], object]) -> Measured:
    """Time a call, and look at the memory of the process every 5 ms meanwhile."""
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
    try:
        call()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return Measured(seconds, (peak - before) / 2**30, peak / 2**30)


class StepEnds:
    """Hook that notes when each training step ends; to be mixed into the Callback of either Lightning."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: object) -> None:
        self.times.append(time.perf_counter())

    def median_seconds(self) -> float:
        """From the end of a step to that of the next, so with its minibatch."""
        return float(np.median(np.diff(self.times)))


def in_fresh_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of a script in a new process, whose memory nothing has filled or freed before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def stored_rows(path: Path) -> list[dict[str, Any]]:
    """Results of a file with one JSON object per line, if it is there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def store_row(path: Path, row: dict[str, Any]) -> None:
    """Add a result to such a file, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def codes_path(store: Path, run: tuple[str, ...]) -> Path:
    """Where the codes of a run are kept."""
    return store / "codes" / f"{'; '.join(run)}.npy"


def store_codes(store: Path, run: tuple[str, ...], codes: np.ndarray) -> None:
    """Keep the codes of a run, to score them later."""
    path = codes_path(store, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, codes.astype(np.float32))


def quiet() -> None:
    """Silence what the libraries say while they are measured."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    sc.settings.verbosity = 0


def report(table: pd.DataFrame, name: str, output: Path | None, decimals: int = 2) -> None:
    """Print a Markdown table under what it was measured on; write it and a JSON file where asked."""
    packages = ("scanpy-scvipyro", "scvi-tools", "scib-metrics", "harmonypy", "magic-impute", "pydeseq2")
    packages += ("torch", "pyro-ppl", "pytorch-lightning", "scanpy")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    setting = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {device}; {', '.join(versions)}"
    rounded = table.round(decimals).astype(object).where(table.notna(), "")
    lines = ["| " + " | ".join(map(str, rounded.columns)) + " |", "|" + " --- |" * len(rounded.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rounded.itertuples(index=False)]
    markdown = f"{name}: {setting}\n\n" + "\n".join(lines) + "\n"
    print(markdown, flush=True)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        (output / f"{name}.md").write_text(markdown)
        record = {"setting": setting, "rows": json.loads(table.to_json(orient="records"))}
        (output / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
