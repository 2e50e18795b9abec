"""Labels: transfer to cells whose labels were hidden, and types that the labels lack, beside other methods.

Each result is one line of a file, written as it is measured; what is there already is not measured again.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import _common
import _scores
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import scanpy_scvipyro as scvip
from scanpy_scvipyro import datasets, training

app = typer.Typer(help=__doc__, no_args_is_help=True)
LABELS_KEY, UNLABELLED = "given", "unlabelled"
Sets = Annotated[str, typer.Option(help="Data sets, separated by commas.")]
Seeds = Annotated[str, typer.Option(help="Seeds, separated by commas.")]
Store = Annotated[Path, typer.Option(help="Folder of results, one JSON object per line, and of codes.")]
STORE = Path(__file__).parent / "results" / "labels"


class Predicted(NamedTuple):
    labels: np.ndarray
    confidence: np.ndarray
    """Probability of the label."""
    seconds: float
    """Processor time, which other processes do not change."""
    codes: np.ndarray | None = None


@app.command()
def transfer(
    sets: Sets = "mixtures,plates,facs,pbmc",
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")] = "scanvi_pyro,knn,celltypist,scanvi",
    seeds: Seeds = "0,1,2",
    store: Store = STORE,
) -> None:
    """Hide labels, predict them, and compare with the truth: accuracy, macro-F1, calibration error, processor time.

    Default against default, on the same cells and labels. scanvi_pyro is tl.scanvi_pyro without the imputed layer;
    scanvi is scvi-tools: SCVI, then SCANVI from it, as in its tutorial; the seconds are those of both. knn is the
    share of 15 nearest labelled neighbours in the codes of tl.scvi_pyro, whose training is part of the seconds.
    celltypist is trained on log-normalised counts of the same genes; it is no part of the extra bench,
    since its release 1.7.1 needs scikit-learn below 1.8. Unsupervised models are trained once per data set and seed.
    """
    _common.quiet()
    done = {_run(row) for row in _common.stored_rows(store / "transfer.jsonl")}
    for seed, name in itertools.product(map(int, seeds.split(",")), sets.split(",")):
        adata = load(name)
        truth = adata.obs["cell_type"].astype(str).to_numpy()
        unsupervised: dict[str, object] = {}
        for task, is_hidden in tasks(adata, name, seed):
            adata.obs[LABELS_KEY] = pd.Categorical(np.where(is_hidden, UNLABELLED, truth))
            for method in methods.split(","):
                row: dict[str, object] = {"data": name, "task": task, "method": method, "seed": seed}
                if _run(row) in done:
                    continue
                predicted = METHODS[method](adata, is_hidden, seed, unsupervised)
                if predicted.codes is not None:
                    _common.store_codes(store, _run(row), predicted.codes)
                row |= scores(truth[is_hidden], predicted.labels[is_hidden], predicted.confidence[is_hidden])
                _common.store_row(store / "transfer.jsonl", row | {"CPU seconds": predicted.seconds})


@app.command()
def score(sets: Sets = "mixtures,plates,pbmc", store: Store = STORE) -> None:
    """Score codes with scib-metrics, those of all cells in several batches; unsupervised ones are scored once."""
    _common.quiet()
    done = {_run(row) for row in _common.stored_rows(store / "scib.jsonl")}
    for name in sets.split(","):
        adata = load(name)
        _common.add_pca(adata)
        for row in _common.stored_rows(store / "transfer.jsonl"):
            kept = {key: row[key] for key in ("data", "task", "method", "seed")}
            codes = _common.codes_path(store, _run(row))
            if row["method"] == "knn":
                kept["task"] = "any"
            if row["data"] != name or _run(kept) in done or not codes.exists():
                continue
            _common.store_row(store / "scib.jsonl", kept | _scores.scib(np.load(codes), adata.obsm["X_pca"], adata.obs))
            done.add(_run(kept))


@app.command()
def novelty(
    sets: Sets = "mixtures,plates,facs,pbmc",
    seeds: Seeds = "0",
    new_batch: Annotated[str, typer.Option(help="Map this batch, which the reference then lacks, with the type.")] = "",
    options: Annotated[str, typer.Option(help="Arguments of tl.map_query other than the defaults, as JSON.")] = "{}",
    store: Store = STORE,
) -> None:
    """Leave out a type, labels and cells, and map it as a query with a quarter of the other cells: AUROC of novelty.

    Beside it one less the largest probability, and the uncertainty of the Human Lung Cell Atlas: one less the weighted
    share of the label among the 15 nearest reference cells.
    """
    _common.quiet()
    keys = ("data", "type", "seed", "new batch", "options")
    done = {tuple(row[key] for key in keys) for row in _common.stored_rows(store / "novelty.jsonl")}
    for seed, name in itertools.product(map(int, seeds.split(",")), sets.split(",")):
        adata = load(name)
        adata.obs[LABELS_KEY] = adata.obs["cell_type"].astype(str)
        is_new = (adata.obs["batch"] == new_batch).to_numpy()
        sizes = adata.obs[LABELS_KEY][is_new if new_batch else ~is_new].value_counts()
        for left_out in sizes.index[sizes >= 10]:
            row = dict(zip(keys, (name, left_out, seed, new_batch, options), strict=True))
            if tuple(row.values()) in done:
                continue
            is_unknown = (adata.obs[LABELS_KEY] == left_out).to_numpy()
            in_query = is_new if new_batch else is_unknown | (np.random.default_rng(seed).random(adata.n_obs) < 0.25)
            reference, query = adata[~(in_query | is_unknown)].copy(), adata[in_query].copy()
            quiet = {"impute": False, "progress_bar": False, "random_state": seed}
            scvip.tl.scanvi_pyro(reference, labels_key=LABELS_KEY, batch_key=batch_key(adata), **quiet)
            scvip.tl.map_query(query, reference, key="scanvi_pyro", **quiet, **json.loads(options))
            by_measure = {
                "novelty": query.obs["scanvi_pyro_novelty"],
                "1 - largest probability": -query.obs["scanvi_pyro_probability"],
                "kNN uncertainty": knn_uncertainty(reference, query),
            }
            row["cells"] = int((in_query & is_unknown).sum())
            row |= {measure: roc_auc_score(is_unknown[in_query], values) for measure, values in by_measure.items()}
            is_flagged = (query.obs["scanvi_pyro_novelty"] > 0.99).groupby(is_unknown[in_query]).mean()
            row |= {"known above 0.99": float(is_flagged[False]), "unknown above 0.99": float(is_flagged[True])}
            _common.store_row(store / "novelty.jsonl", row)


@app.command()
def cost(labels: Annotated[str, typer.Option(help="Numbers of labels.")] = "10,50,200") -> None:
    """Time a training step at several numbers of labels, given to the PBMC at random, beside tl.scvi_pyro."""
    _common.quiet()
    adata = load("pbmc")
    rng, rows = np.random.default_rng(0), []
    for n_labels in (0, *map(int, labels.split(","))):
        ends = _StepEnds()
        options = {"batch_key": "batch", "max_epochs": 2, "impute": False, "progress_bar": False, "callbacks": [ends]}
        if n_labels:
            adata.obs[LABELS_KEY] = pd.Categorical(rng.integers(n_labels, size=adata.n_obs).astype(str))
            scvip.tl.scanvi_pyro(adata, labels_key=LABELS_KEY, **options)
        else:
            scvip.tl.scvi_pyro(adata, prior="mixture", **options)
        rows.append({"labels": n_labels or "none (scVI)", "CPU ms per step": 1000 * ends.median_seconds()})
    _common.report(pd.DataFrame(rows), "labels_cost", None)


@app.command()
def tables(
    store: Store = STORE,
    output: Annotated[Path | None, typer.Option(help="Folder for the tables as Markdown and JSON.")] = None,
) -> None:
    """Print what is in the store, medians over seeds; of novelty, over types."""
    if rows := _common.stored_rows(store / "transfer.jsonl"):
        groups = pd.DataFrame(rows).groupby(["data", "task", "method"], sort=False)
        medians = groups.median(numeric_only=True).drop(columns="seed")
        medians.insert(0, "seeds", groups.size())
        _common.report(medians.reset_index(), "labels_transfer", output, decimals=3)
    if rows := _common.stored_rows(store / "scib.jsonl"):
        groups = pd.DataFrame(rows).groupby(["data", "task", "method"], sort=False)
        medians = groups.median(numeric_only=True).drop(columns="seed")
        medians.insert(0, "seeds", groups.size())
        _common.report(medians.reset_index(), "labels_scib", output, decimals=3)
    if rows := _common.stored_rows(store / "novelty.jsonl"):
        keys = ["data", "new batch", "options"]
        groups = pd.DataFrame(rows).groupby([*keys, "type"], sort=False).median(numeric_only=True)
        table = groups.drop(columns=["seed", "cells"]).groupby(keys, sort=False)
        _common.report(table.median().assign(types=table.size()).reset_index(), "labels_novelty", output, decimals=3)


class _StepEnds(_common.StepEnds, training.Callback):
    """Callback of Lightning that notes when steps end, in processor time, which other processes do not change."""

    def on_train_batch_end(self, *args: object) -> None:
        self.times.append(time.process_time())


def load(name: str) -> sc.AnnData:
    """Read a data set, with at most 2,000 genes."""
    if name == "mixtures":
        return datasets.cell_mixtures()
    if name != "facs":
        return _common.load(name)
    adata = datasets.pbmc_facs_zheng()
    sc.pp.highly_variable_genes(adata, n_top_genes=2000, flavor="seurat_v3", subset=True)
    return adata


def batch_key(adata: sc.AnnData) -> str | None:
    return "batch" if len(adata.obs["batch"].unique()) > 1 else None


def tasks(adata: sc.AnnData, name: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Tasks, and the cells whose labels they hide."""
    truth, rng = adata.obs["cell_type"].astype(str).to_numpy(), np.random.default_rng(seed)

    def keep(n_kept: Callable[[int], int]) -> np.ndarray:
        is_hidden = np.ones(adata.n_obs, dtype=bool)
        for cell_type in np.unique(truth):
            cells = rng.permutation(np.flatnonzero(truth == cell_type))
            is_hidden[cells[: n_kept(len(cells))]] = False
        return is_hidden

    if name == "facs":
        yield "100 labels a population", keep(lambda n: 100)
        return
    yield "90 % hidden", keep(lambda n: max(10, round(0.1 * n)))
    yield "99 % hidden", keep(lambda n: max(10, round(0.01 * n)))
    for batch in adata.obs["batch"].unique():
        yield f"{batch} hidden", (adata.obs["batch"] == batch).to_numpy()


def scanvi_pyro(adata: sc.AnnData, is_hidden: np.ndarray, seed: int, unsupervised: dict[str, object]) -> Predicted:
    """Train tl.scanvi_pyro with its defaults."""
    trained = adata.copy()
    options = {"impute": False, "progress_bar": False, "random_state": seed}
    start = time.process_time()
    scvip.tl.scanvi_pyro(
        trained, labels_key=LABELS_KEY, unlabeled_category=UNLABELLED, batch_key=batch_key(adata), **options
    )
    seconds = time.process_time() - start
    labels, probability = trained.obs["scanvi_pyro"].astype(str), trained.obs["scanvi_pyro_probability"]
    return Predicted(labels.to_numpy(), probability.to_numpy(), seconds, trained.obsm["X_scanvi_pyro"])


def knn(adata: sc.AnnData, is_hidden: np.ndarray, seed: int, unsupervised: dict[str, object]) -> Predicted:
    """Vote among the neighbours in unsupervised codes."""
    if "codes" not in unsupervised:
        trained, start = adata.copy(), time.process_time()
        options = {"impute": False, "progress_bar": False, "random_state": seed}
        scvip.tl.scvi_pyro(trained, batch_key=batch_key(adata), **options)
        unsupervised["codes"] = trained.obsm["X_scvi_pyro"], time.process_time() - start
    codes, seconds = unsupervised["codes"]
    classifier = KNeighborsClassifier(15).fit(codes[~is_hidden], adata.obs[LABELS_KEY].astype(str)[~is_hidden])
    shares = classifier.predict_proba(codes)
    return Predicted(classifier.classes_[shares.argmax(axis=1)], shares.max(axis=1), seconds, codes)


def celltypist(adata: sc.AnnData, is_hidden: np.ndarray, seed: int, unsupervised: dict[str, object]) -> Predicted:
    """Train celltypist with its defaults; its seed changes nothing but the labels that are given."""
    import celltypist as peer

    log_counts = adata.copy()
    sc.pp.normalize_total(log_counts, target_sum=1e4)
    sc.pp.log1p(log_counts)
    start = time.process_time()
    model = peer.train(log_counts[~is_hidden], LABELS_KEY, check_expression=False, n_jobs=1, with_mean=True)
    probabilities = peer.annotate(log_counts, model).probability_matrix
    seconds = time.process_time() - start
    return Predicted(
        probabilities.columns[probabilities.to_numpy().argmax(axis=1)].to_numpy(),
        probabilities.max(axis=1).to_numpy(),
        seconds,
    )


def scanvi(adata: sc.AnnData, is_hidden: np.ndarray, seed: int, unsupervised: dict[str, object]) -> Predicted:
    """Train SCVI and then SCANVI of scvi-tools, with the defaults of their tutorial."""
    import scvi

    options = {"enable_progress_bar": False, "logger": False}
    scvi.settings.seed = seed
    if "model" not in unsupervised:
        trained, start = adata.copy(), time.process_time()
        scvi.model.SCVI.setup_anndata(trained, batch_key=batch_key(adata))
        model = scvi.model.SCVI(trained)
        model.train(**options)
        unsupervised["model"] = model, time.process_time() - start
    model, seconds = unsupervised["model"]
    start = time.process_time()
    labelled = model.adata.copy()
    labelled.obs[LABELS_KEY] = adata.obs[LABELS_KEY]
    classifier = scvi.model.SCANVI.from_scvi_model(
        model, adata=labelled, labels_key=LABELS_KEY, unlabeled_category=UNLABELLED
    )
    classifier.train(max_epochs=20, n_samples_per_label=100, **options)
    probabilities = classifier.predict(soft=True)
    seconds += time.process_time() - start
    names = probabilities.columns.to_numpy()
    shares = probabilities.to_numpy()
    return Predicted(names[shares.argmax(axis=1)], shares.max(axis=1), seconds, classifier.get_latent_representation())


METHODS = {"scanvi_pyro": scanvi_pyro, "knn": knn, "celltypist": celltypist, "scanvi": scanvi}


def scores(truth: np.ndarray, labels: np.ndarray, confidence: np.ndarray) -> dict[str, float]:
    """Accuracy, macro-F1 over the types that are there, and expected calibration error in 15 bins."""
    is_right = truth == labels
    bins = np.minimum((15 * confidence).astype(int), 14)
    gaps = pd.DataFrame({"right": is_right, "confidence": confidence}).groupby(bins).agg(["mean", "size"])
    gap = (gaps["right", "mean"] - gaps["confidence", "mean"]).abs()
    return {
        "accuracy": float(is_right.mean()),
        "macro-F1": float(f1_score(truth, labels, labels=np.unique(truth), average="macro")),
        "calibration error": float((gap * gaps["right", "size"]).sum() / len(truth)),
    }


def knn_uncertainty(reference: sc.AnnData, query: sc.AnnData) -> np.ndarray:
    """Uncertainty of weighted neighbours, as in the Human Lung Cell Atlas and scArches."""
    neighbors = NearestNeighbors(n_neighbors=15).fit(reference.obsm["X_scanvi_pyro"])
    distance, index = neighbors.kneighbors(query.obsm["X_scanvi_pyro"])
    width = 2 / distance.std(axis=1, keepdims=True)
    weight = np.exp(-distance / width**2)
    weight /= weight.sum(axis=1, keepdims=True)
    labels = reference.obs[LABELS_KEY].to_numpy()[index]
    return 1 - np.max([(weight * (labels == label)).sum(axis=1) for label in np.unique(labels)], axis=0)


def _run(row: dict[str, object]) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("data", "task", "method", "seed"))


if __name__ == "__main__":
    app()
