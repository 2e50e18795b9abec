"""New batches on a reference: each left out in turn and mapped, beside scvi-tools, Symphony and all cells together."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import _common
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import scanpy_scvipyro as scvip

METHODS = ("scanpy_scvipyro", "scvi-tools", "symphony-like", "all together")
TRAINED: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
SCIB = ["Total", "Bio conservation", "Batch correction", "iLISI"]


def main(
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = "mixtures,plates,pbmc",
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = ",".join(METHODS),
    seeds: Annotated[int, typer.Option(help="Number of seeds; medians are reported.")] = 3,
    scib: Annotated[bool, typer.Option(help="Also score reference and query together with scib-metrics.")] = True,
    options: Annotated[str, typer.Option(help="Arguments of tl.map_query other than the defaults, as JSON.")] = "{}",
    results: Annotated[Path, typer.Option(help="Folder with a file per run, which is not run again.")] = Path(
        "results/mapping"
    ),
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train on all batches but one, map that one, and score labels carried over and both together.

    "seconds" is the time of mapping alone (of training, for all cells together). Labels of the query are those of its
    15 nearest neighbours in the reference. "symphony-like" is PCA and Harmony of the reference, onto which the query is
    projected and corrected as by Symphony (Kang et al. 2021). "all together" is tl.scvi_pyro on all cells: what
    mapping could reach at best. Codes and scores of each run are kept in --results; delete a file to run it again, and
    take another folder for other options.
    """
    _common.quiet()
    results.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in sets.split(","):
        adata = load(name)
        for left in sorted(adata.obs["batch"].unique()):
            for method in methods.split(","):
                for seed in range(seeds):
                    file = results / f"{name}-{left}-{method.replace(' ', '_')}-{seed}.json"
                    rows.append(run(file, adata, name, left, method, seed, json.loads(options), scib=scib))
    table = pd.DataFrame(rows)
    summary = table.groupby(["data", "left out", "method"], sort=False).median(numeric_only=True)
    summary["seeds"] = table.groupby(["data", "left out", "method"]).size()
    _common.report(summary.drop(columns="seed").reset_index(), "mapping", output, decimals=3)


def run(
    file: Path,
    adata: ad.AnnData,
    name: str,
    left: str,
    method: str,
    seed: int,
    options: dict[str, object],
    *,
    scib: bool,
) -> dict[str, object]:
    """Return what a run has given, from its file as far as it is there."""
    is_query = (adata.obs["batch"] == left).to_numpy()
    codes_file = file.with_suffix(".npy")
    row: dict[str, object] = json.loads(file.read_text()) if file.exists() else {}
    if not row:
        codes, seconds = CALLS[method](adata, is_query, seed, options)
        np.save(codes_file, codes.astype(np.float32))
        row = {"data": name, "left out": left, "method": method, "seed": seed, "seconds": seconds}
        row |= label_transfer(codes, is_query, adata.obs["cell_type"].to_numpy().astype(str))
        file.write_text(json.dumps(row))
        print(row, flush=True)
    if scib and "Total" not in row:
        scored = adata.copy()
        scored.obsm["codes"] = np.load(codes_file)
        _common.add_pca(scored)
        row |= _common.scib(scored, ["codes"]).iloc[0][SCIB].astype(float).to_dict()
        file.write_text(json.dumps(row))
        print(row, flush=True)
    return row


def load(name: str) -> ad.AnnData:
    """Read ``mixtures``, or a data set of the other benchmarks."""
    return scvip.datasets.cell_mixtures() if name == "mixtures" else _common.load(name)


def label_transfer(codes: np.ndarray, is_query: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 over the cell types of the query that the reference has."""
    known = sorted(set(labels[is_query]) & set(labels[~is_query]))
    classifier = KNeighborsClassifier(15).fit(codes[~is_query], labels[~is_query])
    asked = is_query & np.isin(labels, known)
    predicted = classifier.predict(codes[asked])
    f1 = f1_score(labels[asked], predicted, labels=known, average="macro", zero_division=0)
    return {"accuracy": float((predicted == labels[asked]).mean()), "macro-F1": float(f1)}


def together(query_codes: np.ndarray, reference_codes: np.ndarray, is_query: np.ndarray) -> np.ndarray:
    codes = np.empty((len(is_query), reference_codes.shape[1]), dtype=np.float32)
    codes[is_query], codes[~is_query] = query_codes, reference_codes
    return codes


def ours(adata: ad.AnnData, is_query: np.ndarray, seed: int, options: dict[str, object]) -> tuple[np.ndarray, float]:
    reference, query = adata[~is_query].copy(), adata[is_query].copy()
    scvip.tl.scvi_pyro(reference, batch_key="batch", impute=False, progress_bar=False, random_state=seed)
    start = time.perf_counter()
    scvip.tl.map_query(query, reference, impute=False, progress_bar=False, random_state=seed, **options)
    seconds = time.perf_counter() - start
    return together(query.obsm["X_scvi_pyro"], reference.obsm["X_scvi_pyro"], is_query), seconds


def ceiling(adata: ad.AnnData, is_query: np.ndarray, seed: int, options: dict[str, object]) -> tuple[np.ndarray, float]:
    """Train on all cells; once, whichever batch plays the query."""
    if (id(adata), seed) not in TRAINED:
        trained = adata.copy()
        start = time.perf_counter()
        scvip.tl.scvi_pyro(trained, batch_key="batch", impute=False, progress_bar=False, random_state=seed)
        TRAINED[id(adata), seed] = trained.obsm["X_scvi_pyro"], time.perf_counter() - start
    return TRAINED[id(adata), seed]


def peer(adata: ad.AnnData, is_query: np.ndarray, seed: int, options: dict[str, object]) -> tuple[np.ndarray, float]:
    """Train and map with scvi-tools, both with its defaults."""
    import scvi

    scvi.settings.seed = seed
    reference, query = adata[~is_query].copy(), adata[is_query].copy()
    for part in (reference, query):  # which it wants as strings without further categories
        part.obs["batch"] = part.obs["batch"].astype(str).astype("category")
    quiet = {"enable_progress_bar": False, "logger": False}
    scvi.model.SCVI.setup_anndata(reference, batch_key="batch")
    model = scvi.model.SCVI(reference)
    model.train(**quiet)
    start = time.perf_counter()
    mapped = scvi.model.SCVI.load_query_data(query, model)
    mapped.train(**quiet)
    query_codes = mapped.get_latent_representation()
    seconds = time.perf_counter() - start
    return together(query_codes, model.get_latent_representation(), is_query), seconds


def symphony(
    adata: ad.AnnData, is_query: np.ndarray, seed: int, options: dict[str, object]
) -> tuple[np.ndarray, float]:
    """PCA and Harmony of the reference; the query projected, and corrected cluster by cluster."""
    import harmonypy

    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    values = logged.X.toarray()
    mean, std = values[~is_query].mean(axis=0), values[~is_query].std(axis=0).clip(1e-3)
    scaled = ((values - mean) / std).clip(-10, 10)
    pca = sc.pp.pca(scaled[~is_query], n_comps=30, random_state=seed, return_info=True)
    harmony = harmonypy.run_harmony(pca[0], adata.obs[~is_query], "batch", verbose=False, random_state=seed)
    corrected, shares = np.asarray(harmony.Z_corr), np.asarray(harmony.R)
    corrected = corrected if len(corrected) == len(pca[0]) else corrected.T
    shares = shares if len(shares) == len(pca[0]) else shares.T  # (cells, clusters)
    start = time.perf_counter()
    projected = (scaled[is_query] - scaled[~is_query].mean(axis=0)) @ pca[1].T
    of_clusters = shares.T @ corrected / shares.sum(axis=0)[:, None]
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (projected, of_clusters)]
    closeness = np.exp(-2 * (1 - unit[0] @ unit[1].T) / 0.1)
    closeness /= closeness.sum(axis=1, keepdims=True)
    mapped = projected.copy()
    design = np.stack([np.ones(len(projected)), np.ones(len(projected))])  # intercept, batch of the query
    for k, weight in enumerate(closeness.T):
        left_hand = (design * weight) @ design.T + np.diag([shares[:, k].sum(), 1.0])
        right_hand = (design * weight) @ projected
        right_hand[0] += shares[:, k] @ corrected
        mapped -= np.outer(weight, np.linalg.solve(left_hand, right_hand)[1])
    return together(mapped, corrected, is_query), time.perf_counter() - start


CALLS = dict(zip(METHODS, (ours, peer, symphony, ceiling), strict=True))

if __name__ == "__main__":
    typer.run(main)
