"""Differential expression between groups of cells from several samples, which are the replicates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch.nn import functional as F

from scanpy_scvipyro import quasi_likelihood
from scanpy_scvipyro.differential import MIN_PROBABILITY, Differences, log_odds, probability_of_change
from scanpy_scvipyro.posterior import latent_posterior

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI

    Array = NDArray[np.float64]
    Codes = NDArray[np.intp]

MIN_COUNTS = 10
"""Of a gene, in all samples that are compared: fewer cannot tell of a change, and would cost the other genes power."""


class Plan(NamedTuple):
    """Which samples are compared, and how."""

    pool: Array
    """(n_rows, n_parts), 1 for the parts of a sample that are a row of the regression."""
    design: Array
    """(n_rows, n_coefficients), the last for the difference."""
    is_paired: bool


class Sums(NamedTuple):
    """Sums over the cells of each part of a sample, (n_parts, n_genes), or (n_parts, 1) of depths."""

    counts: Array
    mean: Array
    """Expected counts."""
    spread: Array
    """Variance that the model gives to the counts, above that of Poisson, and their squared mean."""
    scaled: Array
    """Expected counts times the depth."""
    depth: Array
    squared_depth: Array


class Unanswerable(ValueError):
    """The samples cannot tell of a difference between the groups."""


def plan(ours: Codes, theirs: Codes, sample: Codes, batches: Array | None) -> Plan:
    """Compare parts of samples with others, within samples if any has both.

    A part is the cells of one sample in one group; ``sample`` (n_parts,) has its sample, ``batches``
    (n_parts, n_batches) how many of its cells are in each batch. Batches of several samples are terms of the
    regression.
    """
    sides = np.unique(sample[ours]), np.unique(sample[theirs])
    both = np.intersect1d(sides[0], sides[1])
    is_paired = len(both) > 0
    used = (both, both) if is_paired else sides
    if min(map(len, used)) < 2:
        raise Unanswerable(_too_few(sides[0], sides[1], both))
    rows = [(is_ours, s) for is_ours, samples in zip((True, False), used, strict=True) for s in samples]
    members = {True: np.isin(np.arange(len(sample)), ours), False: np.isin(np.arange(len(sample)), theirs)}
    pool = np.array([members[is_ours] & (sample == s) for is_ours, s in rows], dtype=float)
    side = np.array([float(is_ours) for is_ours, _ in rows])
    of_row = np.array([s for _, s in rows])
    nuisance = (of_row[:, None] == both).astype(float) if is_paired else np.ones((len(rows), 1))
    if batches is not None:
        share = pool @ batches
        nuisance = _extended(nuisance, share / share.sum(axis=1, keepdims=True), of_row)
    design = np.column_stack([nuisance, side])
    rank = np.linalg.matrix_rank(design)
    if rank < design.shape[1]:
        raise Unanswerable(
            "the batches of the model differ between the groups as the samples do, so that effects of batches and of "
            "the groups cannot be told apart; pass transform_batch=None to count batch effects as differences"
        )
    if rank == len(design):
        raise Unanswerable(
            f"there are {len(design)} samples for {rank} effects of groups and batches, which leaves none to see how "
            "samples vary; pass transform_batch=None to leave batches to the variation of samples"
        )
    return Plan(pool, design, is_paired)


def _too_few(ours: Codes, theirs: Codes, both: Codes) -> str:
    found = f"{len(ours)} on one side and {len(theirs)} on the other"
    if len(both):
        found += f", of which {len(both)} on both"
    return (
        f"there are too few samples: {found}. Two or more on each side are needed, or two that have cells on both, "
        "since cells of one sample are no replicates of each other. Add samples, or leave sample_key out and claim "
        "nothing beyond these samples"
    )


def _extended(nuisance: Array, share: Array, sample: Codes) -> Array:
    """Add terms for the batches that hold several samples, as far as they say more than the other terms."""
    n_samples = np.array([len(np.unique(sample[column > 0])) for column in share.T])
    if (n_samples <= 1).all():
        return nuisance  # what a batch does to its only sample is part of how samples vary
    for column in share.T[:-1]:
        longer = np.column_stack([nuisance, column])
        if np.linalg.matrix_rank(longer) == longer.shape[1]:
            nuisance = longer
    return nuisance


@torch.inference_mode()
def sums(module: SCVI, data: CellData, members: Codes, part: Codes, n_parts: int) -> Sums:
    """Sum what was counted, and what the model expects of each cell in its own batch, over the parts of samples."""
    module.eval()
    total: list[torch.Tensor | float] = [0.0] * len(Sums._fields)
    for rows, cells in data.chunks(torch.from_numpy(members)):
        assert cells.counts is not None
        z = latent_posterior(module, cells).mean
        counts = module.likelihood(z, cells.library_size, cells)
        mean, depth = counts.mean.double(), cells.library_size.double()
        spread = counts.variance.double() - mean + mean.square()
        of_part = F.one_hot(torch.from_numpy(part[rows]).to(z.device), n_parts).T.double()
        terms = (cells.counts.to_dense().double(), mean, spread, depth * mean, depth, depth.square())
        total = [before + of_part @ term for before, term in zip(total, terms, strict=True)]
    return Sums(*(torch.as_tensor(term).cpu().numpy() for term in total))


def known_dispersion(pooled: Sums) -> Array:
    """Squared coefficient of variation of counts of samples, above that of Poisson, that comes from their cells.

    It has the dispersion of counts around the mean of their cell, and how the means of the cells vary.
    """
    frequency = pooled.mean / pooled.depth
    variance = pooled.spread - 2 * frequency * pooled.scaled + frequency**2 * pooled.squared_depth
    return np.maximum(variance, 0) / np.maximum(pooled.mean, np.finfo(float).tiny) ** 2


def compare(parts: Sums, how: Plan, delta: float, pseudocounts: float) -> Differences:
    """Test whether each gene changes by more than delta, and give the probability that it does.

    Counts of samples are negative binomial around the mean of their group. Their dispersion has a part that comes from
    the cells, which the model knows, and one between samples, which is learnt from all genes.
    """
    pooled = Sums(*(how.pool @ term for term in parts))
    tested = pooled.counts.sum(axis=0) >= MIN_COUNTS
    n_genes = len(tested)
    log_fold_change, score, p_value = np.zeros(n_genes), np.zeros(n_genes), np.ones(n_genes)
    proba_de, adjusted = np.full(n_genes, MIN_PROBABILITY), np.ones(n_genes)
    if tested.any():
        counts = pooled.counts[:, tested]
        offset = np.broadcast_to(np.log(quasi_likelihood.depths(pooled.counts))[:, None], counts.shape)
        result = quasi_likelihood.difference(counts, offset, how.design, known_dispersion(pooled)[:, tested])
        change, error = _change(result, how.design, pseudocounts)
        beyond = norm.sf((np.abs(change) - delta) / error) + norm.sf((np.abs(change) + delta) / error)
        log_fold_change[tested], score[tested], p_value[tested] = change, change / error, beyond
        proba_de[tested] = probability_of_change(change, error, delta)
        proba_de[~tested] = proba_de[tested].min()
        adjusted[tested] = quasi_likelihood.false_discovery_rate(beyond)
    return Differences(log_fold_change, score, proba_de, log_odds(proba_de), delta, p_value, adjusted)


def _change(result: quasi_likelihood.Tested, design: Array, pseudocounts: float) -> tuple[Array, Array]:
    """Log2 fold change and its error, with which a Normal test of the change is the test that was made.

    Far from normal are changes of genes without counts on one side, which pseudocounts keep finite.
    """
    level = (design[:, :-1] @ result.fit.coefficients[:-1]).mean(axis=0)
    ours, theirs = np.exp(level + result.log_fold_change) + pseudocounts, np.exp(level) + pseudocounts
    change = np.log2(ours) - np.log2(theirs)
    score = norm.isf(np.maximum(result.p_value, 1e-300) / 2)
    by_information = np.sqrt(np.linalg.inv(result.fit.information)[:, -1, -1]) / np.log(2)
    is_near = (score < 1e-3) | (np.abs(change) < 1e-6)  # where the ratio of both says nothing
    error = np.where(is_near, by_information, np.abs(change) / np.where(is_near, 1, score))
    return change, error
