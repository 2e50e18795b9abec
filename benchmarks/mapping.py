"""New batches on a reference: each left out in turn and mapped, beside scvi-tools, Symphony and all cells together."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated
from unittest import mock

import _common
import _scores
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
import typer
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import scanpy_scvipyro as scvip
from scanpy_scvipyro import missing, posterior

METHODS = ("scanpy_scvipyro", "symphony", "all together", "scvi-tools")
TRAINED: dict[tuple[int, int], tuple[np.ndarray, float]] = {}

app = typer.Typer(add_completion=False, help=__doc__)
Sets = Annotated[str, typer.Option(help="Data sets, separated by commas.")]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas.")]
Store = Annotated[Path, typer.Option(help="Folder of results, one JSON object per line, and of codes.")]
STORE = Path(__file__).parent / "results" / "mapping"


@app.command()
def train(
    sets: Sets = "mixtures,plates,pbmc",
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = ",".join(METHODS),
    seeds: Seeds = "0,1,2",
    options: Annotated[str, typer.Option(help="Arguments of tl.map_query other than the defaults, as JSON.")] = "{}",
    store: Store = STORE,
) -> None:
    """Train on all batches but one, map that one, and score the labels that are carried over.

    "CPU seconds" is the processor time of mapping alone (of training, for all cells together), which other processes
    do not change. Labels of the query are those of its 15 nearest neighbours in the reference. symphony is symphonypy:
    PCA and Harmony of the reference, onto which the query is projected and corrected (Kang et al. 2021); it is no part
    of the extra bench. "all together" is tl.scvi_pyro on all cells: what mapping could reach at best. What is in
    --store is not run again; take another folder for other options.
    """
    _common.quiet()
    done = {_run(row) for row in _common.stored_rows(store / "transfer.jsonl")}
    for seed, name in itertools.product(map(int, seeds.split(",")), sets.split(",")):
        adata = load(name)
        for left, method in itertools.product(sorted(adata.obs["batch"].unique()), methods.split(",")):
            row: dict[str, object] = {"data": name, "left out": left, "method": method, "seed": seed}
            if _run(row) in done:
                continue
            is_query = (adata.obs["batch"] == left).to_numpy()
            codes, seconds = CALLS[method](adata, is_query, seed, json.loads(options))
            _common.store_codes(store, _run(row), codes)
            row |= label_transfer(codes, is_query, adata.obs["cell_type"].to_numpy().astype(str))
            _common.store_row(store / "transfer.jsonl", row | {"CPU seconds": seconds})


@app.command()
def score(sets: Sets = "mixtures,plates,pbmc", store: Store = STORE) -> None:
    """Score reference and query together with scib-metrics, where codes are in the store and scores are not."""
    _common.quiet()
    done = {_run(row) for row in _common.stored_rows(store / "scib.jsonl")}
    for name in sets.split(","):
        adata = load(name)
        _common.add_pca(adata)
        for row in _common.stored_rows(store / "transfer.jsonl"):
            codes = _common.codes_path(store, _run(row))
            if row["data"] != name or _run(row) in done or not codes.exists():
                continue
            kept = {key: row[key] for key in ("data", "left out", "method", "seed")}
            _common.store_row(store / "scib.jsonl", kept | _scores.scib(np.load(codes), adata.obsm["X_pca"], adata.obs))


@app.command()
def table(
    store: Store = STORE,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Print medians over seeds of what is in the store."""
    keys = ["data", "left out", "method"]
    runs = pd.DataFrame(_common.stored_rows(store / "transfer.jsonl"))
    if scib := _common.stored_rows(store / "scib.jsonl"):
        runs = runs.merge(pd.DataFrame(scib), how="left", on=[*keys, "seed"])
    groups = runs.groupby(keys, sort=False)
    medians = groups.median(numeric_only=True).drop(columns="seed")
    medians.insert(0, "seeds", groups.size())
    _common.report(medians.reset_index(), "mapping", output, decimals=3)
    if rows := _common.stored_rows(store / "missing.jsonl"):
        groups = pd.DataFrame(rows).groupby(["data", "left out", "share", "fill"], sort=False)
        means = groups[["macro-F1", "distance"]].mean().reset_index()
        _common.report(means, "mapping_missing", output, decimals=3)


@app.command("missing")
def missing_genes(
    sets: Sets = "mixtures,plates,pbmc",
    left: Annotated[str, typer.Option(help="Batches left out and mapped.")] = "dropseq_3cl,10x_5p_1k",
    seeds: Seeds = "0",
    draws: Annotated[int, typer.Option(help="Random choices of the genes that are missing.")] = 3,
    store: Store = STORE,
) -> None:
    """Compare what the encoder may get for genes that a query lacks: 5, 20 and 50 % of them, at random.

    "zeros", as scvi-tools has them; "mean frequency" of the reference; "one round" and "two rounds" of decoding and
    encoding again, from zeros. Two rounds are missing_genes="impute". Macro-F1 as in "train", and the mean distance of
    codes from those with all genes.
    """
    _common.quiet()
    keys = ("data", "left out", "seed", "share", "draw", "fill")
    done = {tuple(row[key] for key in keys) for row in _common.stored_rows(store / "missing.jsonl")}
    for seed, name in itertools.product(map(int, seeds.split(",")), sets.split(",")):
        adata = load(name)
        labels = adata.obs["cell_type"].to_numpy().astype(str)
        for left_out in [batch for batch in left.split(",") if (adata.obs["batch"] == batch).any()]:
            is_query = (adata.obs["batch"] == left_out).to_numpy()
            reference, query = adata[~is_query].copy(), adata[is_query].copy()
            scvip.tl.scvi_pyro(reference, batch_key="batch", impute=False, progress_bar=False, random_state=seed)
            complete = filled_by("zeros", query, reference, np.ones(adata.n_vars, dtype=bool))
            for share, draw in itertools.product((0.05, 0.2, 0.5), range(draws)):
                measured = np.random.default_rng(draw).random(adata.n_vars) >= share
                for fill in FILLS:
                    row = dict(zip(keys, (name, left_out, seed, share, draw, fill), strict=True))
                    if tuple(row.values()) in done:
                        continue
                    codes = filled_by(fill, query, reference, measured)
                    row |= label_transfer(together(codes, reference.obsm["X_scvi_pyro"], is_query), is_query, labels)
                    distance = float(np.linalg.norm(codes - complete, axis=1).mean())
                    _common.store_row(store / "missing.jsonl", row | {"distance": distance})


def filled_by(fill: str, query: ad.AnnData, reference: ad.AnnData, measured: np.ndarray) -> np.ndarray:
    """Codes of a query of which the encoder sees this for genes that were not measured."""
    if fill == "zeros":
        mapped = query.copy()
        mapped.X = mapped.X.multiply(measured).tocsr()
    else:
        mapped = query[:, measured].copy()
    frequency = (reference.X / reference.X.sum(axis=1)).mean(axis=0)
    always_mean = {
        "expected": lambda _, cells, *__: torch.tensor(np.ravel(frequency)).float().expand(len(cells.batch), -1)
    }
    expected = posterior if fill != "mean frequency" else SimpleNamespace(**vars(posterior) | always_mean)
    with (
        mock.patch.object(missing, "_N_ROUNDS", 1 + (fill == "two rounds")),
        mock.patch.object(missing, "posterior", expected),
    ):
        scvip.tl.map_query(mapped, reference, missing_genes="impute", impute=False, progress_bar=False)
    codes: np.ndarray = mapped.obsm["X_scvi_pyro"]
    return codes


FILLS = ("zeros", "mean frequency", "one round", "two rounds")


def _run(row: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("data", "left out", "method", "seed"))


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
    start = time.process_time()
    scvip.tl.map_query(query, reference, impute=False, progress_bar=False, random_state=seed, **options)
    seconds = time.process_time() - start
    return together(query.obsm["X_scvi_pyro"], reference.obsm["X_scvi_pyro"], is_query), seconds


def ceiling(adata: ad.AnnData, is_query: np.ndarray, seed: int, options: dict[str, object]) -> tuple[np.ndarray, float]:
    """Train on all cells; once, whichever batch plays the query."""
    if (id(adata), seed) not in TRAINED:
        trained = adata.copy()
        start = time.process_time()
        scvip.tl.scvi_pyro(trained, batch_key="batch", impute=False, progress_bar=False, random_state=seed)
        TRAINED[id(adata), seed] = trained.obsm["X_scvi_pyro"], time.process_time() - start
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
    start = time.process_time()
    mapped = scvi.model.SCVI.load_query_data(query, model)
    mapped.train(**quiet)
    query_codes = mapped.get_latent_representation()
    seconds = time.process_time() - start
    return together(query_codes, model.get_latent_representation(), is_query), seconds


def symphony(
    adata: ad.AnnData, is_query: np.ndarray, seed: int, options: dict[str, object]
) -> tuple[np.ndarray, float]:
    """PCA and Harmony of the reference; the query projected, and corrected cluster by cluster."""
    import symphonypy

    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    reference, query = logged[~is_query].copy(), logged[is_query].copy()
    sc.pp.scale(reference, max_value=10)
    sc.pp.pca(reference, n_comps=30, zero_center=False, random_state=seed)
    symphonypy.pp.harmony_integrate(reference, key="batch", random_seed=seed)
    start = time.process_time()
    symphonypy.tl.map_embedding(query, reference, key="batch", use_genes_column=None)
    seconds = time.process_time() - start
    return together(query.obsm["X_pca_harmony"], reference.obsm["X_pca_harmony"], is_query), seconds


CALLS = dict(zip(METHODS, (ours, symphony, ceiling, peer), strict=True))

if __name__ == "__main__":
    app()
