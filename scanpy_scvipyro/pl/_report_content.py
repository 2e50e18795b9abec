"""What a report says: the numbers and the warnings, without their looks."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scanpy_scvipyro import (
    _conditions,
    _lazy,
    _select,
    _stored,
    absent,
    checks,
    data,
    integration,
    outcome,
    posterior,
    storage,
    training,
)
from scanpy_scvipyro.pl import _abundance, _integration, _labels, _posterior_predictive
from scanpy_scvipyro.pl._integration import AFTER, BEFORE

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro._conditions import Samples
    from scanpy_scvipyro.checks import Finding
    from scanpy_scvipyro.integration import Scores
    from scanpy_scvipyro.model import SCVI
    from scanpy_scvipyro.pl._integration import Columns
    from scanpy_scvipyro.pl._labels import Agreement
    from scanpy_scvipyro.pl._posterior_predictive import Simulation

_PACKAGES = ("scanpy-scvipyro", "scanpy", "anndata", "torch", "pyro-ppl", "pytorch-lightning")


class Content(NamedTuple):
    """All that a page needs."""

    key: str
    facts: dict[str, str]
    options: dict[str, str]
    versions: dict[str, str]
    findings: list[Finding]
    history: pd.DataFrame
    cells: AnnData
    columns: Columns
    scores: dict[str, Scores]
    batches: pd.DataFrame
    simulation: Simulation
    agreement: Agreement | None
    """Of labels, where the model predicts them."""
    abundance: _abundance.Cells | None
    """Of the cells shown, where conditions are compared."""
    n_shown: int
    n_cells: int


def gather(
    adata: AnnData,
    key: str,
    columns: Columns,
    samples: Samples | None,
    max_cells: int,
    module: type[SCVI] | None,
    random_state: int,
) -> Content:
    """Compute everything, from at most ``max_cells`` cells."""
    model, spec = storage.from_uns(adata, key, module)
    stored = _stored.trained(adata, key)
    cell_data = data.load(adata, spec)
    rows = _select.random_cells(adata.n_obs, max_cells, random_state)
    cells = _integration.embed(adata, key, rows, columns, before=None, random_state=random_state)
    scores = _integration.scores_of(cells, columns, random_state)
    simulation = _posterior_predictive.simulate(model, cell_data, rows, random_state)
    with training.isolated_random_state(random_state):
        surprise = posterior.surprise(model, cell_data, rows)
        outcomes = outcome.findings(model, cell_data, stored)

    names, codes = _batches(adata, columns)
    findings = [
        *outcomes,
        *absent.lacking(stored),
        *training_findings(stored, adata.n_obs),
        *_integration_findings(cells, columns, scores),
        *checks.batches(surprise, codes[rows], names),
        *checks.genes(simulation.real, simulation.simulated, spec.genes.tolist()),
        *(_label_findings(adata, key, stored["labels"]) if "labels" in stored else []),
    ]
    depth = cell_data.depth[:, 0].numpy()
    return Content(
        key=key,
        facts=_facts(adata, stored, spec.genes, columns),
        options={name: _text(value) for name, value in stored["params"].items()},
        versions={package: version(package) for package in _PACKAGES},
        findings=findings,
        history=stored["history"],
        cells=cells,
        columns=columns,
        scores=scores,
        batches=_batch_table(depth, names, codes, rows, surprise, cells, columns, scores[AFTER]),
        simulation=simulation,
        agreement=_labels.agreement_of(adata, key, None) if "labels" in stored else None,
        abundance=None if samples is None else _abundance_of(adata, key, samples, rows, random_state),
        n_shown=len(rows),
        n_cells=adata.n_obs,
    )


def _abundance_of(
    adata: AnnData, key: str, samples: Samples, rows: NDArray[np.intp], random_state: int
) -> _abundance.Cells:
    """Compare conditions in all cells, for those shown."""
    found = np.full((2, adata.n_obs), np.nan)
    n_neighbors = _conditions.default_neighbors(samples)
    found[:, samples.cells] = _conditions.by_neighbourhood(adata.obsm[f"X_{key}"], samples, n_neighbors, random_state)
    return _abundance.Cells(found[0, rows], found[1, rows] < 0.05, f"{samples.group} over {samples.reference}")


def _batches(adata: AnnData, columns: Columns) -> tuple[list[str], NDArray[np.integer]]:
    """Names and codes of batches, or of all cells as one."""
    if columns.batch is None:
        return ["all cells"], np.zeros(adata.n_obs, dtype=np.int64)
    column = _integration.categories(adata, columns.batch).remove_unused_categories()
    return column.categories.tolist(), column.codes


def training_findings(stored: dict[str, Any], n_cells: int) -> list[Finding]:
    early_stopping = bool(stored["params"].get("early_stopping", False))
    history = stored["history"]
    return checks.convergence(
        history, default_epochs=training.default_max_epochs(n_cells), early_stopping=early_stopping
    ) + ([] if early_stopping else checks.overfitting(history))  # which keeps the best weights


def _label_findings(adata: AnnData, key: str, stored: dict[str, Any]) -> list[Finding]:
    names = [str(name) for name in stored["names"]]
    predicted = _lazy.frame(adata.obsm[f"{key}_probabilities"]).to_numpy().argmax(axis=1)
    novelty = _lazy.column(adata.obs, f"{key}_novelty").to_numpy()
    return checks.confused_labels(np.asarray(stored["held_out_confusion"]), names) + checks.unknown_cells(
        novelty, predicted, names
    )


def _integration_findings(cells: AnnData, columns: Columns, scores: dict[str, Scores]) -> list[Finding]:
    before, after = scores[BEFORE], scores[AFTER]
    names, codes = _batches(cells, columns)
    findings = []
    if after.same_batch is not None and after.mixed is not None:
        findings += checks.mixing(after.same_batch, after.mixed, codes, names, has_labels=columns.label is not None)
    if before.same_label is not None and after.same_label is not None:
        labels = cells.obs[columns.label].cat
        of_cells = labels.codes.to_numpy()
        findings += checks.over_correction(
            before.same_label, after.same_label, of_cells[of_cells >= 0], labels.categories.tolist()
        )
    kept, chance = integration.kept_neighbors(cells.obsm[BEFORE], cells.obsm[AFTER], codes)
    return findings + checks.lost_structure(kept, chance, codes, names)


def _batch_table(
    depth: NDArray[np.float32],
    names: list[str],
    codes: NDArray[np.integer],
    rows: NDArray[np.intp],
    surprise: NDArray[np.float32],
    cells: AnnData,
    columns: Columns,
    after: Scores,
) -> pd.DataFrame:
    """One row per batch; the last columns are those of the cells shown, and missing where none is."""
    by_batch = pd.Series(depth).groupby(codes)
    table = pd.DataFrame({"cells": by_batch.size(), "counts per cell (median)": by_batch.median()})
    if after.same_batch is not None and after.mixed is not None:
        shown = pd.Categorical(cells.obs[columns.batch], names).codes
        table["same-batch neighbours"] = pd.Series(after.same_batch).groupby(shown).mean()
        table["if mixed perfectly"] = pd.Series(after.mixed).groupby(shown).mean()
    sums = pd.DataFrame(surprise).groupby(codes[rows]).sum()
    table["nats beyond expectation"] = sums[0] / sums[1]
    return table.set_axis(names)


def _facts(adata: AnnData, stored: dict[str, Any], genes: NDArray[np.str_], columns: Columns) -> dict[str, str]:
    params, history = stored["params"], stored["history"]
    facts = {
        "Cells": f"{adata.n_obs:,}",
        "Genes": f"{len(genes):,}" + (f" of {adata.n_vars:,}" if len(genes) < adata.n_vars else ""),
        "Counts": f'adata.layers["{params["layer"]}"]' if "layer" in params else "adata.X",
    }
    for name, column in (("Batches", columns.batch), ("Labels", columns.label)):
        if column is not None:
            values = _lazy.column(adata.obs, column)
            missing = int(values.isna().sum())
            facts[name] = f"{values.nunique()} in {column!r}" + (f", {missing:,} cells without" if missing else "")
    if columns.batch is not None and params.get("batch_key") is None:
        facts["Batches"] += ", not known to the model"
    for name in ("categorical_covariate_keys", "continuous_covariate_keys", "size_factor_key"):
        if name in params:
            facts[name.removesuffix("_keys").removesuffix("_key").replace("_", " ").capitalize()] = _text(params[name])
    facts["Model"] = (
        f"{params['n_latent']} latent dimensions, {params['n_layers']} hidden "
        f"layer{'s' if params['n_layers'] != 1 else ''} of {params['n_hidden']}, likelihood {params['gene_likelihood']}"
    )
    facts["Training"] = f"{len(history)} epochs"
    if "train_size" in params:
        facts["Training"] += f", {params['train_size']:.0%} of the cells"
    for part in ("train", "validation"):
        if f"{part}_elbo" in history:
            name = {"train": "Training", "validation": "Validation"}[part]
            facts[f"{name} ELBO"] = f"{history[f'{part}_elbo'].dropna().iloc[-1]:.1f} nats per cell at the end"
    return facts


def _text(value: Any) -> str:
    if isinstance(value, np.ndarray | list | tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)
