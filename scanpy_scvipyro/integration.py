"""How well batches mix and labels stay apart in an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.neighbors import NearestNeighbors

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_NEIGHBORS = 20


def neighbors(embedding: NDArray[np.floating]) -> NDArray[np.intp]:
    """Nearest other cells of each cell, (n_cells, 20), or fewer where there are fewer cells."""
    n_neighbors = min(N_NEIGHBORS, len(embedding) - 1)
    return NearestNeighbors(n_neighbors=n_neighbors).fit(embedding).kneighbors(return_distance=False)


def same_share(neighbors: NDArray[np.intp], groups: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of the nearest neighbours of each cell that are of its own group, (n_cells,)."""
    return (groups[neighbors] == groups[:, None]).mean(axis=1)


def mixed_share(batches: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Share of neighbours from its own batch that each cell would have if batches mixed perfectly, (n_cells,).

    Batches may differ in their labels: only cells of one label are taken to mix, as are those of label -1, without.
    """
    labels = labels + 1
    n_cells = np.zeros((labels.max() + 1, batches.max() + 1))
    np.add.at(n_cells, (labels, batches), 1)
    others = np.maximum(n_cells.sum(axis=1)[labels] - 1, 1)
    return (n_cells[labels, batches] - 1) / others


class LabelScores(NamedTuple):
    """How well an embedding separates labelled cells; 1 is best in both."""

    ari: float
    """Adjusted Rand index of the labels and as many k-means clusters."""
    silhouette: float
    """Mean silhouette width of the labels."""


class Scores(NamedTuple):
    """Scores of an embedding, where there are batches and labels."""

    same_batch: NDArray[np.float64] | None
    """Share of neighbours of the own batch, (n_cells,)."""
    mixed: NDArray[np.float64] | None
    """What it would be if batches mixed perfectly, (n_cells,)."""
    same_label: NDArray[np.float64] | None
    """Share of neighbours of the own label, (n_labelled_cells,)."""
    labels: LabelScores | None


def scores(
    embedding: NDArray[np.floating],
    batches: NDArray[np.integer] | None,
    labels: NDArray[np.integer] | None,
    random_state: int,
) -> Scores:
    """Score an embedding by the codes of batches and labels; cells of label -1 have none."""
    same_batch = mixed = same_label = by_label = None
    if batches is not None:
        same_batch = same_share(neighbors(embedding), batches)
        mixed = mixed_share(batches, np.zeros_like(batches) if labels is None else labels)
    if labels is not None:
        is_labelled = labels >= 0
        embedding, labels = embedding[is_labelled], labels[is_labelled]
        if 2 <= len(np.unique(labels)) <= len(labels) // 2:
            same_label = same_share(neighbors(embedding), labels)
            by_label = _label_scores(embedding, labels, random_state)
    return Scores(same_batch, mixed, same_label, by_label)


def _label_scores(embedding: NDArray[np.floating], labels: NDArray[np.integer], random_state: int) -> LabelScores:
    clusters = KMeans(len(np.unique(labels)), n_init=10, random_state=random_state).fit_predict(embedding)
    return LabelScores(float(adjusted_rand_score(labels, clusters)), float(silhouette_score(embedding, labels)))


def kept_neighbors(
    before: NDArray[np.floating], after: NDArray[np.floating], batches: NDArray[np.integer]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Share of neighbours within its batch that a cell has in both embeddings, and that share by chance, (n_cells,)."""
    kept, chance = np.zeros(len(batches)), np.zeros(len(batches))
    for batch in np.unique(batches):
        members = np.flatnonzero(batches == batch)
        if len(members) < 2:
            continue
        pairs = zip(neighbors(before[members]), neighbors(after[members]), strict=True)
        n_neighbors = min(N_NEIGHBORS, len(members) - 1)
        kept[members] = [len(np.intersect1d(one, other)) / n_neighbors for one, other in pairs]
        chance[members] = n_neighbors / (len(members) - 1)
    return kept, chance
