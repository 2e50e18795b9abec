"""Every score of an embedding by itself, with the noise of clusterings averaged out."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors

VERSION = 1
"""Raise it when scores change, and all are computed anew from the stored codes."""
BIO = ("isolated labels", "k-means NMI", "k-means ARI", "silhouette", "cLISI")
BATCH = ("BRAS", "iLISI", "KBET", "graph connectivity", "PCR")
N_REPEATS = 5


def scores(codes: np.ndarray, before: np.ndarray, obs: pd.DataFrame) -> dict[str, float]:
    """Score codes, (n_cells, n_latent), against ``cell_type`` and ``batch``; ``before`` is the PCA without correction.

    Bio, batch and total are the means that scib-metrics takes, but k-means is the mean of five runs of ten starts each.
    Leiden scores are, as in scIB, those at the best of ten resolutions, means of three seeds. "same type: X" is the
    share of the 20 nearest neighbours that are of type X, over the cells of type X.
    """
    codes = np.ascontiguousarray(codes, dtype=np.float32)
    near, labels, batch = _near(codes, obs)
    names = np.unique(obs["cell_type"].astype(str))
    row = _scib(codes, before, near, labels, batch)
    fine = None
    if "cell_type_fine" in obs:
        fine = np.unique(obs["cell_type_fine"].astype(str), return_inverse=True)[1]
        row["cLISI, fine"] = scib_metrics.clisi_knn(near, fine)
        row["k-means NMI, fine"] = _kmeans(codes, fine)[0]
        row["silhouette, fine"] = scib_metrics.silhouette_label(codes, fine)
    row |= _leiden(codes, labels, fine)
    same = labels[near.indices[:, 1:21]] == labels[:, None]
    for i, name in enumerate(names):
        if (labels == i).sum() >= 50:
            row[f"same type: {name}"] = float(same[labels == i].mean())
    return {name: float(value) for name, value in row.items()}


def scib(codes: np.ndarray, before: np.ndarray, obs: pd.DataFrame) -> dict[str, float]:
    """Those of scib-metrics alone, as in :func:`scores`."""
    codes = np.ascontiguousarray(codes, dtype=np.float32)
    row = _scib(codes, before, *_near(codes, obs))
    return {name: float(row[name]) for name in ("total", "bio", "batch", "iLISI")}


def _near(codes: np.ndarray, obs: pd.DataFrame) -> tuple[NeighborsResults, np.ndarray, np.ndarray]:
    """Neighbours, and codes of cell types and batches."""
    labels, batch = (np.unique(obs[key].astype(str), return_inverse=True)[1] for key in ("cell_type", "batch"))
    distances, indices = NearestNeighbors(n_neighbors=90).fit(codes).kneighbors(codes)
    return NeighborsResults(indices=indices, distances=distances), labels, batch


def _scib(
    codes: np.ndarray, before: np.ndarray, near: NeighborsResults, labels: np.ndarray, batch: np.ndarray
) -> dict[str, float]:
    by_kmeans = _kmeans(codes, labels)
    row = {
        "isolated labels": scib_metrics.isolated_labels(codes, labels, batch),
        "k-means NMI": by_kmeans[0],
        "k-means ARI": by_kmeans[1],
        "silhouette": scib_metrics.silhouette_label(codes, labels),
        "cLISI": scib_metrics.clisi_knn(near, labels),
        "BRAS": scib_metrics.bras(codes, labels, batch),
        "iLISI": scib_metrics.ilisi_knn(near, batch),
        "KBET": scib_metrics.kbet_per_label(near.subset_neighbors(n=50), batch, labels),
        "graph connectivity": scib_metrics.graph_connectivity(near.subset_neighbors(n=15), labels),
        "PCR": scib_metrics.pcr_comparison(before, codes, batch, categorical=True),
    }
    row["bio"], row["batch"] = (float(np.mean([row[name] for name in names_])) for names_ in (BIO, BATCH))
    row["total"] = 0.6 * row["bio"] + 0.4 * row["batch"]
    return row


def _kmeans(codes: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    found = [KMeans(labels.max() + 1, n_init=10, random_state=i).fit_predict(codes) for i in range(N_REPEATS)]
    return (
        float(np.mean([normalized_mutual_info_score(labels, clusters) for clusters in found])),
        float(np.mean([adjusted_rand_score(labels, clusters) for clusters in found])),
    )


def _leiden(codes: np.ndarray, labels: np.ndarray, fine: np.ndarray | None) -> dict[str, float]:
    import scanpy as sc

    adata = ad.AnnData(codes)
    sc.pp.neighbors(adata, use_rep="X")
    rows = []
    for seed in range(3):
        for resolution in np.geomspace(0.05, 2, 10):
            options = {"flavor": "igraph", "n_iterations": 2, "random_state": seed}
            sc.tl.leiden(adata, resolution=resolution, **options)
            clusters = adata.obs["leiden"].to_numpy()
            row = {"seed": seed, "Leiden NMI": normalized_mutual_info_score(labels, clusters)}
            row["Leiden ARI"] = adjusted_rand_score(labels, clusters)
            if fine is not None:
                row["Leiden NMI, fine"] = normalized_mutual_info_score(fine, clusters)
            rows.append(row)
    return pd.DataFrame(rows).groupby("seed").max().mean().to_dict()
