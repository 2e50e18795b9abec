"""The demonstration: from counts to clusters on the shipped data, with the truth beside it."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, NamedTuple

import matplotlib.pyplot as plt
import scanpy as sc
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

from scanpy_scvipyro import datasets, tl

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BEFORE, AFTER = "X_pca", "X_scvi_pyro"
# Low, since three clusters are expected: at higher resolutions Leiden splits the cell lines by cell cycle.
LEIDEN_RESOLUTION = 0.05
N_NEIGHBORS = 20


class Scores(NamedTuple):
    """How well clusters fit the cell lines, and how well protocols mix."""

    n_clusters: int
    ari: float
    nmi: float
    same_batch: float
    """Share of the nearest neighbours that come from the same batch."""


def run(*, max_epochs: int | None, random_state: int) -> tuple[AnnData, dict[str, Scores], float]:
    """Train on the shipped data; embed, cluster and score before (PCA of log counts) and after."""
    adata = datasets.cell_mixtures()
    start = time.perf_counter()
    tl.scvi_pyro(adata, batch_key="batch", max_epochs=max_epochs, random_state=random_state)
    seconds = time.perf_counter() - start

    log_counts = adata.copy()
    sc.pp.normalize_total(log_counts)
    sc.pp.log1p(log_counts)
    sc.pp.pca(log_counts, random_state=random_state)
    adata.obsm[BEFORE] = log_counts.obsm["X_pca"]
    return adata, {rep: _score(adata, rep, random_state) for rep in (BEFORE, AFTER)}, seconds


def _score(adata: AnnData, rep: str, random_state: int) -> Scores:
    sc.pp.neighbors(adata, use_rep=rep, random_state=random_state)
    sc.tl.leiden(adata, LEIDEN_RESOLUTION, flavor="igraph", n_iterations=-1, random_state=random_state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_jobs value 1 overridden", UserWarning)  # umap's word on being reproducible
        sc.tl.umap(adata, random_state=random_state)
    adata.obsm[f"{rep}_umap"] = adata.obsm["X_umap"]
    truth, found = adata.obs["cell_type"], adata.obs["leiden"]
    return Scores(
        n_clusters=found.nunique(),
        ari=adjusted_rand_score(truth, found),
        nmi=normalized_mutual_info_score(truth, found),
        same_batch=same_batch_share(adata.obsm[rep], adata.obs["batch"].to_numpy()),
    )


def same_batch_share(embedding: NDArray[np.floating], batch: NDArray[np.str_]) -> float:
    """Share of the nearest neighbours of a cell that come from its own batch, averaged over cells."""
    neighbors = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(embedding).kneighbors(return_distance=False)
    return float((batch[neighbors] == batch[:, None]).mean())


def figure(adata: AnnData) -> Figure:
    """Draw UMAPs before and after, coloured by protocol and by cell line."""
    fig, axes = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained")
    titles = {BEFORE: "PCA of log counts", AFTER: "scvi_pyro"}
    for row, (rep, title) in zip(axes, titles.items(), strict=True):
        for ax, (color, name) in zip(row, {"batch": "protocol", "cell_type": "cell line"}.items(), strict=True):
            sc.pl.embedding(
                adata, f"{rep}_umap", color=color, title=f"{title}: {name}", ax=ax, show=False, frameon=False
            )
    return fig
