"""Differential expression between groups of cells, from a trained model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from scanpy_scvipyro.posterior import latent_posterior

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI, Cells

    Array = NDArray[np.float64]
    Positions = NDArray[np.intp]


MIN_ERROR = 1e-12  # squared
MIN_PROBABILITY = 1e-12  # keeps the logarithms of odds finite


@dataclass(frozen=True)
class Comparison:
    """How groups are compared."""

    mode: Literal["change", "vanilla"]
    delta: float | None
    pseudocounts: float
    batches: Sequence[int] | None
    n_samples: int
    random_state: int


class Sample(NamedTuple):
    """Log2 frequencies of the genes in draws from a group of cells, (n_genes,) each."""

    n_cells: int
    n_drawn: int
    """Different cells among the draws."""
    mean: Array
    variance: Array
    decoding: Array
    """Squared error of the mean that comes from the decoder."""


class Expression(NamedTuple):
    """Mean log2 frequency of each gene in a group of cells and its squared standard error, (n_genes,) each."""

    n_cells: int
    mean: Array
    squared_error: Array


class Differences(NamedTuple):
    """What is known of the change of each gene, (n_genes,) each, and what counted as a change."""

    log_fold_change: Array
    score: Array
    proba_de: Array
    bayes_factor: Array
    delta: float | None
    p_value: Array | None = None
    """With samples as replicates, and adjusted for the number of genes; else ``1 - proba_de`` stands in its place."""
    adjusted: Array | None = None


@torch.inference_mode()
def rank(
    module: SCVI, data: CellData, groups: dict[str, Positions], rest: Positions, how: Comparison, *, with_others: bool
) -> Iterator[tuple[str, Differences]]:
    """Compare each group with the rest, to which the other groups belong ``with_others``."""
    module.eval()
    members = [*groups.values(), *([rest] if len(rest) else [])]
    levels = expressions([sample(module, data, cells, how) for cells in members])
    for i, name in enumerate(groups):
        others = [j for j in range(len(members)) if j != i] if with_others else [-1]
        theirs = pooled([levels[j] for j in others])
        if how.mode == "change":
            yield name, change(levels[i], theirs, how)
        else:
            cells = np.concatenate([members[j] for j in others])
            error = np.sqrt(np.maximum(levels[i].squared_error + theirs.squared_error, MIN_ERROR))
            probability = probability_higher(module, data, members[i], cells, error, how)
            yield name, vanilla(levels[i], theirs, probability)


def draws(module: SCVI, data: CellData, members: Positions, how: Comparison) -> Iterator[tuple[Tensor, Cells]]:
    """Posterior draws of the codes of the members, and the cells in the batches to decode them in, which take turns."""
    order = members[torch.randperm(len(members)).numpy()]
    for chunk, cells in data.chunks(torch.from_numpy(np.resize(order, how.n_samples))):
        z = latent_posterior(module, cells).sample()
        if how.batches is not None:
            turn = torch.arange(chunk.start, chunk.stop, device=z.device) % len(how.batches)
            cells = cells._replace(batch=torch.tensor(how.batches, device=z.device)[turn])
        yield z, cells


def sample(module: SCVI, data: CellData, members: Positions, how: Comparison) -> Sample:
    """Log2 frequency of each gene in draws from a group.

    The decoder is a point estimate that follows the noise of the counts. Its error is taken to be that of a mean that
    is estimated from the counts of the group alone: the inverse square root of the Fisher information of the log mean,
    which is mean^2 / variance for each count.
    """
    total = np.zeros((4, data.n_genes))
    for z, cells in draws(module, data, members, how):
        frequency = module.decode(z, cells)[0].exp_()
        counts = module.likelihood(z, cells.library_size, cells)
        raised = frequency + how.pseudocounts
        level = raised.log2()
        slope = frequency.div_(raised)
        information = counts.mean.square() / counts.variance
        parts = (level, level.square(), slope, information)
        total += torch.stack([part.sum(dim=0, dtype=torch.float64) for part in parts]).cpu().numpy()
    mean, square, slope, information = total / how.n_samples
    n_drawn = min(how.n_samples, len(members))
    variance = np.maximum(square - mean**2, 0) * n_drawn / max(n_drawn - 1, 1)
    decoding = (slope / math.log(2)) ** 2 / np.maximum(information * len(members), np.finfo(float).tiny)
    return Sample(len(members), n_drawn, mean, variance, decoding)


def expressions(samples: Sequence[Sample]) -> list[Expression]:
    """Mean expression of each group, and its error: that of a mean over sampled cells, and that of the decoder.

    A few cells do not tell by how much the cells of their group vary. So the variance has a prior, its mean over all
    groups, with a weight of three cells; the mean of n cells then has a t distribution with n + 2 degrees of freedom,
    of which the variance is taken.
    """
    weights = [group.n_drawn for group in samples]
    prior = np.average([group.variance for group in samples], axis=0, weights=weights)
    return [
        Expression(n_cells, mean, ((n - 1) * variance + 3 * prior) / n**2 + decoding)
        for n_cells, n, mean, variance, decoding in samples
    ]


def pooled(groups: Sequence[Expression]) -> Expression:
    """Expression of several groups together."""
    n_cells = sum(group.n_cells for group in groups)
    mean = sum(group.n_cells / n_cells * group.mean for group in groups)
    squared_error = sum((group.n_cells / n_cells) ** 2 * group.squared_error for group in groups)
    return Expression(n_cells, np.asarray(mean), np.asarray(squared_error))


def change(ours: Expression, theirs: Expression, how: Comparison) -> Differences:
    """Compare two groups by the probability that the log2 fold change of a gene is above delta, or below -delta.

    The effect sizes of all genes are given a prior that is learnt from them (empirical Bayes :cite:p:`Stephens2017`),
    so that many unchanged genes make each single one less likely to have changed.
    """
    log_fold_change = ours.mean - theirs.mean
    error = np.sqrt(np.maximum(ours.squared_error + theirs.squared_error, MIN_ERROR))
    delta = chosen_delta(log_fold_change, how.random_state) if how.delta is None else how.delta
    proba_de = probability_of_change(log_fold_change, error, delta)
    return Differences(log_fold_change, log_fold_change / error, proba_de, log_odds(proba_de), delta)


def probability_of_change(log_fold_change: Array, error: Array, delta: float) -> Array:
    """Posterior probability of an effect above delta, or of one below -delta, whichever is larger, (n_genes,)."""
    weight, mean, scale = effect_posterior(log_fold_change, error)
    up = (weight * norm.cdf((mean - delta) / scale)).sum(axis=1)
    down = (weight * norm.cdf((-mean - delta) / scale)).sum(axis=1)
    return np.clip(np.maximum(up, down), MIN_PROBABILITY, 1 - MIN_PROBABILITY)


def log_odds(probability: Array) -> Array:
    """Natural logarithm of the odds."""
    return np.asarray(np.log(probability) - np.log1p(-probability))


def effect_posterior(estimate: Array, error: Array) -> tuple[Array, Array, Array]:
    """Weights, means and standard deviations of the posterior of each effect, (n_genes, n_components) each.

    The prior is a mixture of Normals around zero whose weights are learnt by EM. The component of no effect, of width
    zero, is left out of the result.
    """
    largest = 2 * math.sqrt(max(np.max(estimate**2 - error**2), 0.01))
    scale = 0.05 * 2 ** (0.5 * np.arange(2 * math.ceil(math.log2(largest / 0.05)) + 1))
    scale = np.concatenate([[0.0], scale])
    variance = error[:, None] ** 2 + scale**2
    log_likelihood = norm.logpdf(estimate[:, None], scale=np.sqrt(variance))
    likelihood = np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))  # far from zero, all underflow
    prior = np.full(len(scale), 1 / len(scale))
    for _ in range(500):
        weight = likelihood * prior
        weight /= weight.sum(axis=1, keepdims=True)
        last, prior = prior, weight.mean(axis=0)
        if np.abs(prior - last).max() < 1e-4:
            break
    shrinkage = scale[1:] ** 2 / variance[:, 1:]
    return weight[:, 1:], shrinkage * estimate[:, None], np.sqrt(shrinkage) * error[:, None]


def chosen_delta(log_fold_change: Array, random_state: int) -> float:
    """Choose the fold change that matters as 0.6 times that of the changed genes, at least 0.1.

    These are the outer two components of a mixture of three Normals :cite:p:`Boyeau2023`.
    """
    if len(log_fold_change) < 30 or np.ptp(log_fold_change) < 0.1:
        return 0.1
    mixture = GaussianMixture(3, random_state=random_state).fit(log_fold_change[:, None])
    centres = np.sort(mixture.means_.ravel())
    return max(0.1, 0.6 * (abs(centres[0]) + abs(centres[-1])) / 2)


def probability_higher(
    module: SCVI, data: CellData, ours: Positions, theirs: Positions, error: Array, how: Comparison
) -> Array:
    """Probability that a random cell of one group has a higher frequency than one of the other, (n_genes,).

    The difference of each pair is known as well as that of the means of the groups, (n_genes,): a decoder that gives
    all cells of a group the same error would else be sure of genes that were never counted.
    """
    higher = np.zeros(data.n_genes)
    scale: Tensor | None = None
    for one, other in zip(draws(module, data, ours, how), draws(module, data, theirs, how), strict=True):
        ours_, theirs_ = (module.decode(*pair)[0].exp_().add_(how.pseudocounts).log2_() for pair in (one, other))
        scale = ours_.new_tensor(error) if scale is None else scale
        higher += torch.special.ndtr((ours_ - theirs_) / scale).sum(dim=0, dtype=torch.float64).cpu().numpy()
    return (higher + 0.5) / (how.n_samples + 1)  # half a draw each way keeps logarithms finite


def vanilla(ours: Expression, theirs: Expression, probability: Array) -> Differences:
    """Compare two groups by the probability that a cell of the first has the higher frequency."""
    bayes_factor = log_odds(probability)
    proba_de = np.maximum(probability, 1 - probability)
    return Differences(ours.mean - theirs.mean, bayes_factor, proba_de, bayes_factor, None)


def expected_false_discovery_rate(proba_de: Array) -> Array:
    """Mean probability of no change among the genes that are at least as likely to have changed, (n_genes,)."""
    order = np.argsort(-proba_de)
    rate = np.empty_like(proba_de)
    rate[order] = np.cumsum(1 - proba_de[order]) / np.arange(1, len(proba_de) + 1)
    return rate
