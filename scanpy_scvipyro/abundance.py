"""Which neighbourhoods of latent codes hold more cells of samples of one condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.neighbors import NearestNeighbors

from scanpy_scvipyro import quasi_likelihood

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Positions = NDArray[np.intp]


class Neighbourhoods(NamedTuple):
    """The nearest neighbours of some cells, of all others the nearest of these."""

    members: Positions
    """(n_neighbourhoods, n_neighbors), the cell itself among them."""
    radius: Array
    """(n_neighbourhoods,)."""
    nearest: Positions
    """(n_others,), the neighbourhood whose result a cell gets."""


class Abundance(NamedTuple):
    """Differences of abundance, (n_neighbourhoods,) or (n_labels,) each."""

    log_fold_change: Array
    """Log2."""
    t: Array
    p_value: Array


def neighbourhoods(codes: Array, n_neighbors: int, centres: Positions, others: Array | None = None) -> Neighbourhoods:
    """Find neighbourhoods of the cells at ``centres`` among codes (n_cells, n_latent), and those nearest to others."""
    search = NearestNeighbors(n_neighbors=n_neighbors).fit(codes)
    distance, members = search.kneighbors(codes[centres])
    others = codes if others is None else others
    nearest = np.arange(len(others))
    if len(centres) < len(others):
        nearest = NearestNeighbors(n_neighbors=1).fit(codes[centres]).kneighbors(others, return_distance=False)[:, 0]
    return Neighbourhoods(members, distance[:, -1], nearest)


def cells_of_samples(members: Positions, sample: Positions, n_samples: int) -> Array:
    """Cells of each sample in each neighbourhood, (n_samples, n_neighbourhoods)."""
    of_sample = sample[members]
    return np.stack([(of_sample == i).sum(axis=1) for i in range(n_samples)]).astype(float)


def differences(counts: Array, n_cells: Array, design: Array) -> Abundance:
    """Test the last coefficient of the design (n_samples, n_coefficients) for counts of cells, (n_samples, n_features).

    Cells are counted relative to all that a sample has, ``n_cells``: what one neighbourhood gains, others lose.
    """
    offset = np.broadcast_to(np.log(n_cells)[:, None], counts.shape)
    found = quasi_likelihood.difference(counts, offset, design, 0.0)
    # Half a cell on either side keeps the ratio finite where one has none.
    expected = np.exp(design[:, :-1] @ found.fit.coefficients[:-1] + offset)
    is_side = design[:, -1] > 0
    ours, theirs = expected[is_side].sum(axis=0) * np.exp(found.log_fold_change), expected[is_side].sum(axis=0)
    return Abundance(np.log2(ours + 0.5) - np.log2(theirs + 0.5), found.t, found.p_value)


def spatial_false_discovery_rate(p_value: Array, radius: Array) -> Array:
    """Adjust p-values of neighbourhoods that overlap: dense ones weigh less, as more of them are there."""
    return quasi_likelihood.false_discovery_rate(p_value, 1 / np.maximum(radius, 1e-12))
