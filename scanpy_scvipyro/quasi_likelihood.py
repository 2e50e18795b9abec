"""Tests of counts of samples by negative binomial regression with quasi-likelihood, as in edgeR :cite:p:`Chen2025`.

Arrays are (n_samples, n_genes); with counts of cells in neighbourhoods, these stand in the place of genes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import minimize
from scipy.special import betaln, gammaln, xlogy
from scipy.stats import nbinom
from scipy.stats import t as student

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SMALLEST_DISPERSION = 1e-4
GRID = SMALLEST_DISPERSION * 2.0 ** np.arange(17)  # up to 6.6
MANY = 1e6
"""Degrees of freedom that stand for infinitely many."""


class Fit(NamedTuple):
    """Regression of each gene."""

    coefficients: Array
    """(n_coefficients, n_genes), natural logarithms."""
    mean: Array
    """(n_samples, n_genes)."""
    deviance: Array
    """(n_samples, n_genes)."""
    information: Array
    """(n_genes, n_coefficients, n_coefficients)."""


class Moderated(NamedTuple):
    """Variances shrunk towards their prior, a scaled inverse chi-square distribution."""

    variance: Array
    prior_variance: float
    prior_df: float


class Tested(NamedTuple):
    """Test of one coefficient for each gene, (n_genes,) each."""

    log_fold_change: Array
    """Natural logarithm; far from zero where all samples of one side have no counts."""
    t: Array
    df: Array
    p_value: Array
    fit: Fit


def unit_deviance(counts: Array, mean: Array, dispersion: Array | float) -> Array:
    """Twice the log likelihood ratio of each count to a perfect fit."""
    size = 1 / np.maximum(dispersion, 1e-10)
    ratio = (counts + size) / (mean + size)
    return np.maximum(2 * (xlogy(counts, counts / mean) - (counts + size) * np.log(ratio)), 0)


def fit(counts: Array, offset: Array, design: Array, dispersion: Array | float, start: Array | None = None) -> Fit:
    """Fit a log-linear model to each gene by Fisher scoring; design (n_samples, n_coefficients), of full rank."""
    dispersion = np.broadcast_to(dispersion, counts.shape)
    if start is None:
        rough = np.log((counts + 0.5 * np.exp(offset) / np.exp(offset).mean(axis=0)) / np.exp(offset))
        start = np.linalg.lstsq(design, rough)[0]
    coefficients = start
    small = 1e-9 * np.eye(design.shape[1])
    last = np.full(counts.shape[1], np.inf)
    for _ in range(50):
        mean = np.exp(np.clip(design @ coefficients + offset, -25, 50))
        deviance = unit_deviance(counts, mean, dispersion)
        weight = mean / (1 + dispersion * mean)
        information = np.einsum("up,ug,uq->gpq", design, weight, design, optimize=True)
        total = deviance.sum(axis=0)
        if np.all(np.abs(last - total) <= 1e-6 * (np.abs(total) + 0.1)):
            break
        last = total
        score = np.einsum("up,ug->gp", design, weight * (counts - mean) / mean, optimize=True)
        step = np.linalg.solve(information + small, score[..., None])[..., 0].T
        coefficients = coefficients + step / np.maximum(np.abs(design @ step).max(axis=0) / 3, 1)
    return Fit(coefficients, mean, deviance, information)


def dispersion_trend(counts: Array, offset: Array, design: Array, known: Array | float) -> Array:
    """Dispersion between samples as a smooth function of the mean of genes, (n_genes,), besides the known part.

    It maximizes the Cox-Reid adjusted profile likelihood, averaged over the genes of similar mean.
    """
    likelihood, start = [], None
    for dispersion in GRID:
        fitted = fit(counts, offset, design, dispersion + known, start)
        start = fitted.coefficients
        size = np.broadcast_to(1 / (dispersion + known), counts.shape)
        per_count = gammaln(counts + size) - gammaln(size) + xlogy(size, size / (size + fitted.mean))
        per_count += xlogy(counts, fitted.mean / (size + fitted.mean))
        small = 1e-9 * np.eye(design.shape[1])
        likelihood.append(per_count.sum(axis=0) - np.linalg.slogdet(fitted.information + small)[1] / 2)
    order = np.argsort(counts.sum(axis=0), kind="stable")
    smooth = _moving_average(np.array(likelihood)[:, order], max(200, counts.shape[1] // 5))
    trend = np.empty(counts.shape[1])
    trend[order] = _peak(smooth)
    return trend


def _moving_average(values: Array, width: int) -> Array:
    """Mean over a window in the last axis, cut at the ends."""
    n = values.shape[-1]
    sums = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    low, high = np.maximum(np.arange(n) - width // 2, 0), np.minimum(np.arange(n) + width // 2 + 1, n)
    return (sums[..., high] - sums[..., low]) / (high - low)


def _peak(values: Array) -> Array:
    """Dispersion at the peak of each column, by a parabola through the highest point of the grid and those beside."""
    at = np.clip(values.argmax(axis=0), 1, len(GRID) - 2)
    left, top, right = (values[at + i, np.arange(values.shape[1])] for i in (-1, 0, 1))
    curvature = np.minimum(left - 2 * top + right, -1e-12)
    return GRID[at] * 2.0 ** np.clip((left - right) / (2 * curvature), -1, 1)


@functools.cache
def _deviance_moments() -> RegularGridInterpolator:
    """Mean and variance of the unit deviance by log mean and square root of the dispersion."""
    log_mean, root = np.linspace(-7, 6, 53), np.sqrt([0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 7])
    moments = np.empty((len(log_mean), len(root), 2))
    for i, mean in enumerate(np.exp(log_mean)):
        for j, dispersion in enumerate(np.maximum(root**2, 1e-8)):
            spread = np.sqrt(mean + dispersion * mean**2)
            counts = np.unique(np.geomspace(1, 20 + mean + 60 * spread, 4000).astype(int))
            counts = np.concatenate([[0], counts])
            # The mass of counts that are left out goes to the next one below.
            edges = nbinom.sf(
                np.concatenate([[-1], counts[1:] - 1, [np.iinfo(int).max]]), 1 / dispersion, 1 / (1 + dispersion * mean)
            )
            mass = -np.diff(edges)
            deviance = unit_deviance(counts.astype(float), np.full(len(counts), mean), dispersion)
            first = (mass * deviance).sum()
            moments[i, j] = first, (mass * deviance**2).sum() - first**2
    return RegularGridInterpolator((log_mean, root), moments)


def deviance_moments(mean: Array, dispersion: Array) -> tuple[Array, Array]:
    """Mean and variance of the unit deviance of counts; 1 and 2 where counts are high, less where they are low."""
    interpolate = _deviance_moments()
    low, high = (np.array([axis[i] for axis in interpolate.grid]) for i in (0, -1))
    at = np.stack(np.broadcast_arrays(np.log(np.maximum(mean, 1e-30)), np.sqrt(dispersion)), axis=-1)
    moments = interpolate(np.clip(at, low, high))
    return moments[..., 0], moments[..., 1]


def residual_variance(fitted: Fit, design: Array, dispersion: Array | float) -> tuple[Array, Array]:
    """Quasi-likelihood dispersion of each gene and its degrees of freedom, (n_genes,) each.

    The deviance of low counts has neither the mean nor the variance of a chi-square variable, so each is scaled to that
    with the same ones :cite:p:`Chen2025`.
    """
    dispersion = np.broadcast_to(dispersion, fitted.mean.shape)
    weight = fitted.mean / (1 + dispersion * fitted.mean)
    inverse = np.linalg.inv(fitted.information + 1e-9 * np.eye(design.shape[1]))
    leverage = weight * np.einsum("up,gpq,uq->ug", design, inverse, design, optimize=True)
    mean, variance = deviance_moments(fitted.mean, dispersion)
    df = (np.clip(1 - leverage, 0, 1) * 2 * mean**2 / variance).sum(axis=0)
    scaled = (fitted.deviance * 2 * mean / variance).sum(axis=0)
    return scaled / np.maximum(df, 1e-8), df


def moderate(variance: Array, df: Array) -> Moderated:
    r"""Shrink variances towards a common prior, learnt from all of them :cite:p:`Smyth2004`.

    With :math:`s_g^2 | \sigma_g^2 \sim \sigma_g^2 \chi^2_{d_g} / d_g` and
    :math:`1 / \sigma_g^2 \sim \chi^2_{d_0} / (d_0 s_0^2)`, :math:`s_g^2 / s_0^2` has an F distribution, of which
    :math:`s_0^2` and :math:`d_0` are the most likely.
    """
    used = (df > 0.5) & (variance > 1e-8)
    if used.sum() < 5:  # from three labels of cells, p-values below 0.001 were found seven times too often
        return Moderated(variance, float("nan"), 0.0)
    s2, d = variance[used], df[used]

    def negative(parameters: Array) -> float:
        log_prior, log_df = parameters
        ratio, d0 = s2 / np.exp(log_prior), np.exp(log_df)
        log_density = d / 2 * np.log(d / d0) + (d / 2 - 1) * np.log(ratio) - log_prior - betaln(d / 2, d0 / 2)
        return -float((log_density - (d + d0) / 2 * np.log1p(d / d0 * ratio)).mean())

    bounds = [(-20, 20), (np.log(0.1), np.log(MANY))]
    found = min(
        (
            minimize(negative, [np.log(np.average(s2, weights=d)), np.log(start)], bounds=bounds, method="L-BFGS-B")
            for start in (3.0, 100.0)
        ),
        key=lambda result: result.fun,
    )
    prior_variance, prior_df = np.exp(found.x)
    return Moderated(
        (prior_df * prior_variance + df * variance) / (prior_df + df), float(prior_variance), float(prior_df)
    )


def difference(counts: Array, offset: Array, design: Array, known_dispersion: Array | float) -> Tested:
    """Test whether the last coefficient of the design differs from zero.

    The dispersion has a known part, of single counts, and one between samples, by a trend. What single genes deviate
    from both is a factor that is learnt from their residuals and moderated. The statistic is the score, whose variance
    is exact for low counts, too. The likelihood ratio, edgeR's, finds p-values below 0.001 1.3 times too often in made
    data, where the score does not (docs/differential_expression.md). Of genes with dispersions near one the score is
    careful: it finds half as many p-values below 0.01 as there should be.
    """
    dispersion = dispersion_trend(counts, offset, design, known_dispersion) + known_dispersion
    full, null = (fit(counts, offset, columns, dispersion) for columns in (design, design[:, :-1]))
    variance, df = residual_variance(full, design, dispersion)
    moderated = moderate(variance, df)
    df = np.minimum(moderated.prior_df + df, df.sum())

    side, others = design[:, -1], design[:, :-1]
    weight = null.mean / (1 + np.broadcast_to(dispersion, counts.shape) * null.mean)
    score = side @ (weight * (counts - null.mean) / null.mean)
    shared = np.einsum("u,ug,up->gp", side, weight, others)
    explained = np.linalg.solve(null.information + 1e-9 * np.eye(others.shape[1]), shared[..., None])[..., 0]
    information = side**2 @ weight - (shared * explained).sum(axis=1)
    t = score / np.sqrt(np.maximum(information, 1e-12) * moderated.variance)
    return Tested(full.coefficients[-1], t, df, 2 * student.sf(np.abs(t), df), full)


def depths(counts: Array) -> Array:
    """Depth of each sample, (n_samples,): its counts, times the median ratio of its genes to the pool of all samples.

    A few genes that change do not move the median, as they move the sum. It is that of genes of which ten counts or
    more are expected, as a third of a count takes the median of a Poisson variable to its mean there.
    """
    total, pooled = counts.sum(axis=1), counts.sum(axis=0) / counts.sum()
    depth = total.copy()
    for i, row in enumerate(counts):
        expected = pooled * total[i]
        is_high = expected >= 10
        if is_high.sum() >= 20:
            depth[i] = total[i] * np.median((row[is_high] + 1 / 3) / expected[is_high])
    return depth


def false_discovery_rate(p_value: Array, weight: Array | None = None) -> Array:
    """Adjust p-values after Benjamini and Hochberg, with weights of the hypotheses :cite:p:`Dann2022`."""
    weight = np.ones(len(p_value)) if weight is None else weight
    order = np.argsort(p_value, kind="stable")
    rate = p_value[order] * weight.sum() / np.cumsum(weight[order])
    adjusted = np.empty(len(p_value))
    adjusted[order] = np.minimum(np.minimum.accumulate(rate[::-1])[::-1], 1)
    return adjusted
