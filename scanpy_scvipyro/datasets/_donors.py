"""Donors made from a pool of real cells, so that what differs between them is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

SHARE_KEPT = 0.5  # of the counts, so that effects of donors can raise a gene up to twofold
CONCENTRATION = 50  # of the Dirichlet distribution: a population of 10 % varies between donors by 42 % of itself


def make(
    pool: ad.AnnData,
    *,
    n_donors: tuple[int, int] = (6, 6),
    n_cells: float = 500,
    at_least: int = 20,
    at_most: int = 500,
    n_changed: int = 0,
    enriched: Mapping[str, float] | None = None,
    random_state: int = 0,
) -> ad.AnnData:
    """Deal cells of the pool out to donors of two conditions, and thin their counts by donor, cell type and gene.

    The pool has ``cell_type`` and ``population`` (finer) in ``.obs``. A donor has ``n_cells`` cells on average, between
    the limits for each type, of populations by Dirichlet shares; in cases, shares of ``enriched`` ones are multiplied.
    Each cell is drawn with replacement, so that donors are independent, and without changes equal in distribution.
    Counts are thinned binomially, so that they stay counts of real cells, with probabilities that are log-normal
    between donors: the standard deviation of the logarithm of a gene is 0.1 to 0.3 or so, larger for low genes, half of
    its square the same for all types of a donor. ``n_changed`` genes of each type are lowered in cases or in controls,
    by 0.5 to 2 on the log2 scale, which ``varm["log2_fold_change"]`` has.
    """
    rng = np.random.default_rng(random_state)
    names = np.array(
        [f"{kind}{i + 1}" for kind, n in zip(("control", "case"), n_donors, strict=True) for i in range(n)]
    )
    is_case = np.repeat([False, True], n_donors)
    population, populations = pd.factorize(pool.obs["population"], sort=True)
    kind, kinds = pd.factorize(pool.obs["cell_type"], sort=True)
    shares = _shares(rng, population, populations, is_case, enriched or {})
    rows, donor = _deal(rng, population, shares, n_cells)
    rows, donor = _limited(rng, rows, donor, kind, at_least, at_most)

    change = _changes(rng, pool.X, kind, n_changed)
    probability = np.log(SHARE_KEPT) + _donor_effects(rng, pool.X, len(names), len(kinds))
    probability += np.log(2) * np.where(is_case[:, None, None], np.minimum(change, 0), np.minimum(-change, 0))
    probability = np.exp(np.minimum(probability, 0))
    counts = sparse.coo_matrix(pool.X[rows])
    of_entry = probability[donor[counts.row], kind[rows][counts.row], counts.col]
    kept = rng.binomial(counts.data.astype(np.int64), of_entry).astype(np.float32)
    X = sparse.csr_matrix((kept, (counts.row, counts.col)), counts.shape)
    X.eliminate_zeros()

    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(names[donor], categories=names),
            "condition": pd.Categorical(np.where(is_case[donor], "case", "control"), categories=["control", "case"]),
            "cell_type": pd.Categorical.from_codes(kind[rows], kinds),
            "population": pd.Categorical.from_codes(population[rows], populations),
        },
        index=[f"cell{i}" for i in range(len(rows))],
    )
    truth = pd.DataFrame(change.T, index=pool.var_names, columns=list(kinds))
    adata = ad.AnnData(X, obs, pool.var[[]].copy(), varm={"log2_fold_change": truth})
    return adata[np.ravel(X.sum(axis=1)) > 0].copy()


def _shares(
    rng: np.random.Generator,
    population: NDArray[np.intp],
    populations: pd.Index,
    is_case: NDArray[np.bool_],
    enriched: Mapping[str, float],
) -> NDArray[np.float64]:
    """Share of each population in each donor, (n_donors, n_populations)."""
    shares = np.bincount(population) / len(population)
    folds = np.array([enriched.get(name, 1.0) for name in populations])
    expected = np.where(is_case[:, None], shares * folds / (shares * folds).sum(), shares)
    return np.stack([rng.dirichlet(CONCENTRATION * row) for row in expected])


def _deal(
    rng: np.random.Generator,
    population: NDArray[np.intp],
    shares: NDArray[np.float64],
    n_cells: float,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of the pool and the donor of each cell."""
    rows, donors = [], []
    for donor, share in enumerate(shares):
        n_of_donor = rng.multinomial(round(n_cells * rng.lognormal(0, 0.4)), share)
        for i, n in enumerate(n_of_donor):
            rows.append(rng.choice(np.flatnonzero(population == i), n))
            donors.append(np.full(n, donor))
    return np.concatenate(rows), np.concatenate(donors)


def _limited(
    rng: np.random.Generator,
    rows: NDArray[np.intp],
    donor: NDArray[np.intp],
    kind: NDArray[np.intp],
    at_least: int,
    at_most: int,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw again, or leave out, cells of types of which a donor has too few or too many."""
    kept_rows, kept_donor = [], []
    for d in range(donor.max() + 1):
        for k in range(kind.max() + 1):
            own = rows[(donor == d) & (kind[rows] == k)]
            if len(own) < at_least:
                own = np.concatenate([own, rng.choice(np.flatnonzero(kind == k), at_least - len(own))])
            own = rng.permutation(own)[:at_most]
            kept_rows.append(own)
            kept_donor.append(np.full(len(own), d))
    return np.concatenate(kept_rows), np.concatenate(kept_donor)


def _donor_effects(
    rng: np.random.Generator, counts: sparse.csr_matrix, n_donors: int, n_kinds: int
) -> NDArray[np.float64]:
    """Log-normal effects, (n_donors, n_kinds, n_genes)."""
    n_genes = counts.shape[1]
    rank = np.argsort(np.argsort(np.ravel(counts.sum(axis=0)))) / (n_genes - 1)
    deviation = (0.3 - 0.2 * rank) * rng.lognormal(0, 0.3, n_genes)
    common, own = rng.normal(size=(n_donors, 1, n_genes)), rng.normal(size=(n_donors, n_kinds, n_genes))
    return deviation * (common + own) / np.sqrt(2)


def _changes(
    rng: np.random.Generator, counts: sparse.csr_matrix, kind: NDArray[np.intp], n_changed: int
) -> NDArray[np.float64]:
    """Log2 fold changes of the cases, (n_kinds, n_genes), of genes with at least 0.02 counts per cell of the type."""
    change = np.zeros((kind.max() + 1, counts.shape[1]))
    for i, row in enumerate(change):
        seen = np.flatnonzero(np.ravel(counts[kind == i].mean(axis=0)) * SHARE_KEPT >= 0.02)
        genes = rng.choice(seen, min(n_changed, len(seen)), replace=False)
        row[genes] = rng.choice([-1, 1], len(genes)) * rng.uniform(0.5, 2, len(genes))
    return change
