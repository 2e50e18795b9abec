"""The demonstration: from counts to clusters on the shipped data, with the truth beside it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from scanpy_scvipyro import datasets, integration, pl, tl
from scanpy_scvipyro.pl._integration import log_pca

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

BEFORE, AFTER = "X_pca", "X_scvi_pyro"
# Low, since three clusters are expected: at higher resolutions Leiden splits the cell lines by cell cycle.
LEIDEN_RESOLUTION = 0.01


class Scores(NamedTuple):
    """How well clusters fit the cell lines, and how well protocols mix."""

    n_clusters: int
    ari: float
    nmi: float
    same_batch: float
    """Share of the nearest neighbours that come from the same batch."""


def run(*, max_epochs: int | None = None, random_state: int = 0) -> tuple[AnnData, dict[str, Scores], float]:
    """Train on the shipped data; cluster and score before (PCA of log counts) and after.

    Parameters
    ----------
    max_epochs
        Passes over the training cells; by default chosen from their number.
    random_state
        Seed of all that is random.

    Returns
    -------
    The data with all results, the scores by representation, and how many seconds the training took.
    """
    adata = datasets.cell_mixtures()
    start = time.perf_counter()
    tl.scvi_pyro(adata, batch_key="batch", max_epochs=max_epochs, random_state=random_state)
    seconds = time.perf_counter() - start

    adata.obsm[BEFORE] = log_pca(adata, "scvi_pyro", np.arange(adata.n_obs), random_state)
    return adata, {rep: _score(adata, rep, random_state) for rep in (BEFORE, AFTER)}, seconds


def _score(adata: AnnData, rep: str, random_state: int) -> Scores:
    sc.pp.neighbors(adata, use_rep=rep, random_state=random_state)
    sc.tl.leiden(adata, LEIDEN_RESOLUTION, flavor="igraph", n_iterations=-1, random_state=random_state)
    neighbors = integration.neighbors(adata.obsm[rep])
    truth, found = adata.obs["cell_type"], adata.obs["leiden"]
    return Scores(
        n_clusters=found.nunique(),
        ari=adjusted_rand_score(truth, found),
        nmi=normalized_mutual_info_score(truth, found),
        same_batch=float(integration.same_share(neighbors, adata.obs["batch"].cat.codes.to_numpy()).mean()),
    )


def table(scores: dict[str, Scores]) -> str:
    """Write the scores down as text."""
    names = {BEFORE: "before (PCA)", AFTER: "after (scvi_pyro)"}
    rows = {
        f"Leiden clusters (resolution {LEIDEN_RESOLUTION})": [f"{scores[rep].n_clusters}" for rep in names],
        "ARI with the cell lines (best: 1)": [f"{scores[rep].ari:.3f}" for rep in names],
        "NMI with the cell lines (best: 1)": [f"{scores[rep].nmi:.3f}" for rep in names],
        "neighbours of own protocol (mixed: 0.50)": [f"{scores[rep].same_batch:.2f}" for rep in names],
    }
    return pd.DataFrame(rows, index=list(names.values())).T.to_string()


def figure(adata: AnnData, random_state: int) -> Figure:
    """Draw UMAPs before and after, coloured by protocol and by cell line."""
    drawn: Any = pl.integration(
        adata, labels_key="cell_type", before=BEFORE, random_state=random_state, show=False, save=False, return_fig=True
    )
    return drawn
