"""What is asked of a trained model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from scipy import sparse
from scipy.stats import rankdata
from torch.distributions import kl_divergence

from scanpy_scvipyro import _select
from scanpy_scvipyro.noise import OwnNoise, new_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI, Cells


def elbo_terms(module: SCVI, cells: Cells) -> tuple[Tensor, Tensor]:
    """Reconstruction log-likelihood and KL divergence of each cell, in nats, (n_cells,) each.

    One sample from the guide; the KL divergence is analytic where torch knows it, as in ``TraceMeanField_ELBO``.
    """
    return _terms(module, cells)[:2]


def _terms(module: SCVI, cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction and KL divergence, and the log prior over posterior density of the one sample, (n_cells,) each."""
    guide = poutine.trace(module.guide).get_trace(cells)
    model = poutine.trace(poutine.replay(module.model, trace=guide)).get_trace(cells)
    reconstruction = kl = log_ratio = torch.zeros(len(cells.batch), device=cells.batch.device)
    for name, site in _sites_of_cells(model):
        if site["is_observed"]:
            reconstruction = reconstruction + site["fn"].log_prob(site["value"])
            continue
        posterior = guide.nodes[name]["fn"]
        difference = site["fn"].log_prob(site["value"]) - posterior.log_prob(site["value"])
        log_ratio = log_ratio + difference
        try:
            kl = kl + kl_divergence(posterior, site["fn"])
        except NotImplementedError:
            kl = kl - difference
    return reconstruction, kl, log_ratio


def _sites_of_cells(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Variables of the cells; what all cells share, in the model of a subclass, is no part of the ELBO of a cell."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and any(frame.name == "cells" for frame in site["cond_indep_stack"]):
            yield name, site


@torch.inference_mode()
def scores(module: SCVI, data: CellData, n_samples: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Reconstruction, KL divergence and importance-sampled log-likelihood of chunks of cells, (3, n_cells), in nats.

    The first two are averages over the samples; the third is log mean p(x, z) / q(z | x) :cite:p:`Burda2016`.
    """
    module.eval()
    seeds = [new_seed() for _ in range(n_samples)]
    for rows, cells in data.chunks():
        samples = []
        for seed in seeds:
            with OwnNoise(cells, seed):
                samples.append(torch.stack(_terms(module, cells)))
        draws = torch.stack(samples)
        reconstruction, kl = draws[:, 0], draws[:, 1]
        log_likelihood = (reconstruction + draws[:, 2]).logsumexp(dim=0) - math.log(n_samples)
        yield rows, torch.stack([reconstruction.mean(dim=0), kl.mean(dim=0), log_likelihood]).cpu().numpy()


def latent_posterior(module: SCVI, cells: Cells) -> torch.distributions.Distribution:
    """q(z | counts) of each cell."""
    return poutine.trace(module.guide).get_trace(cells).nodes["z"]["fn"]


@torch.inference_mode()
def latent_codes(
    module: SCVI, data: CellData, n_samples: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Posterior mean and variance, (n_cells, n_latent), and samples, (n_cells, n_samples, n_latent), of the codes."""
    module.eval()
    # At once: many small arrays would stand between freed blocks of memory, which could then not be used again.
    mean = np.empty((data.n_cells, module.n_latent), dtype=np.float32)
    variance, seed = np.empty_like(mean), new_seed()
    drawn = np.empty((data.n_cells, n_samples, module.n_latent), dtype=np.float32)
    for rows, cells in data.chunks():
        site = poutine.trace(module.guide).get_trace(cells).nodes["z"]
        posterior, noise = site["fn"], OwnNoise(cells, seed)
        samples = posterior.mean.new_empty(len(cells.batch), n_samples, module.n_latent)
        for i in range(n_samples):
            samples[:, i] = noise.draw(site, i)
        for whole, part in zip((mean, variance, drawn), (posterior.mean, posterior.variance, samples), strict=True):
            whole[rows] = part.cpu().float().numpy()
    return mean, variance, drawn


def expected(
    module: SCVI, cells: Cells, z: Tensor, library_size: Tensor | float, batches: Sequence[int] | None = None
) -> Tensor:
    """Library size times frequencies, averaged over the given batches or in each cell's own, (n_cells, n_genes).

    A number in place of the library size is the sum of each cell, also of a model of rates relative to size factors.
    """
    codes = [cells.batch] if batches is None else [torch.full_like(cells.batch, code) for code in batches]
    total: Tensor | float = 0.0
    for batch in codes:
        rate = module.decode(z, cells._replace(batch=batch))[0].exp_()
        if not isinstance(library_size, torch.Tensor):
            rate /= rate.sum(dim=-1, keepdim=True)
        total = rate.add_(total)
    return torch.as_tensor(total).mul_(library_size / len(codes))


@torch.inference_mode()
def expected_counts(
    module: SCVI,
    data: CellData,
    latent: NDArray[np.float32],
    genes: NDArray[np.bool_] | NDArray[np.intp],
    n_vars: int,
) -> NDArray[np.float32]:
    """Compute expected counts at each cell's own sequencing depth, (n_cells, n_vars); NaN for genes not modelled.

    ``genes`` is a mask, or the positions of the modelled genes, -1 for those that are not there.
    """
    module.eval()
    imputed = np.full((data.n_cells, n_vars), np.nan, dtype=np.float32)
    there = _select.there(genes)
    columns = _select.columns(genes[there], n_vars)
    for rows, cells in data.chunks():
        z = torch.from_numpy(latent[rows]).to(cells.batch.device)
        counts = expected(module, cells, z, cells.library_size)
        imputed[rows, columns] = counts.cpu().numpy()[:, there]
    return imputed


@torch.inference_mode()
def expression(
    module: SCVI,
    data: CellData,
    genes: NDArray[np.intp],
    *,
    batches: Sequence[int] | None,
    library_size: Literal["observed", "latent"] | float,
    n_samples: int,
    quantiles: Sequence[float],
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Denoised expression of chunks of cells, (n_statistics, n_cells, n_genes).

    The statistic is the mean over posterior samples, or else the quantiles. With ``n_samples=1`` the posterior mean
    takes the place of a sample.
    """
    module.eval()
    columns, seed = _select.columns(genes, data.n_genes), new_seed()
    for rows, cells in data.chunks(n_draws=n_samples if quantiles else 1):
        posterior, noise = poutine.trace(module.guide).get_trace(cells), OwnNoise(cells, seed)
        draws: list[NDArray[np.float32]] = []
        for i in range(n_samples):
            level: Tensor | float
            if library_size == "observed":
                level = cells.library_size
            elif library_size == "latent":
                level = _mean_or_draw(posterior.nodes["library_size"], noise, i, n_samples)
            else:
                level = float(library_size)
            z = _mean_or_draw(posterior.nodes["z"], noise, i, n_samples)
            values = expected(module, cells, z, level, batches)[:, columns].cpu().numpy()
            if quantiles or not draws:
                draws.append(values)
            else:
                draws[0] += values
        if quantiles:
            yield rows, np.quantile(np.stack(draws), quantiles, axis=0).astype(np.float32)
        else:
            if n_samples > 1:
                draws[0] /= n_samples
            yield rows, draws[0][None]


def _mean_or_draw(site: dict[str, Any], noise: OwnNoise, number: int, n_samples: int) -> Tensor:
    return site["fn"].mean if n_samples == 1 else noise.draw(site, number)


@torch.inference_mode()
def simulated_counts(
    module: SCVI, data: CellData, rows: NDArray[np.intp], genes: NDArray[np.intp], batch: int | None
) -> Iterator[tuple[slice, sparse.csr_array]]:
    """Draw counts from the posterior predictive distribution of chunks of the given cells, (n_cells, n_genes)."""
    module.eval()
    for chunk, cells in data.chunks(torch.from_numpy(rows)):
        posterior = poutine.trace(module.guide).get_trace(cells)
        unseen = cells._replace(counts=None)
        if batch is not None:
            unseen = unseen._replace(batch=torch.full_like(cells.batch, batch))
        counts = poutine.replay(module.model, trace=posterior)(unseen)
        yield chunk, sparse.csr_array(counts[:, genes].cpu().numpy())


@torch.inference_mode()
def surprise(module: SCVI, data: CellData, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """How much less likely the counts of the given cells are than counts simulated for them, (n_cells, 2), in nats.

    The first column is the log-probability of simulated less that of real counts at the same sample of the latent
    code: zero on average where the model fits. The second is minus the log-probability of the simulated counts.
    """
    module.eval()
    parts = []
    for _, cells in data.chunks(torch.from_numpy(rows)):
        replayed = poutine.replay(module.model, trace=poutine.trace(module.guide).get_trace(cells))
        simulated = cells._replace(counts=replayed(cells._replace(counts=None)))
        real, expected = (_log_probability(replayed, counts) for counts in (cells, simulated))
        parts.append(torch.stack([expected - real, -expected], dim=1).cpu().numpy())
    return np.concatenate(parts)


def _log_probability(model: Callable[[Cells], Tensor], cells: Cells) -> Tensor:
    """Log-probability of the counts of each cell, (n_cells,)."""
    total = torch.zeros(len(cells.batch), device=cells.batch.device)
    for _, site in _sites_of_cells(poutine.trace(model).get_trace(cells)):
        if site["is_observed"]:
            total = total + site["fn"].log_prob(site["value"])
    return total


@torch.inference_mode()
def gene_correlations(
    module: SCVI,
    data: CellData,
    genes: NDArray[np.intp],
    *,
    batches: Sequence[int] | None,
    method: Literal["pearson", "spearman"],
    n_samples: int,
) -> NDArray[np.float32]:
    """Correlations of simulated rates (expression before counting noise) over all cells, (n_genes, n_genes).

    All cells have the median library size, so that sequencing depth does not correlate genes. Correlations are taken
    within one batch, then averaged over batches and samples, so that batch effects do not either.
    """
    module.eval()
    library_size, columns = data.library_size.median(), _select.columns(genes, data.n_genes)
    # Cells are encoded once, and their counts are then not needed any more.
    parts = [(rows, latent_posterior(module, cells), cells._replace(counts=None)) for rows, cells in data.chunks()]
    rates = np.empty((data.n_cells, len(genes)), dtype=np.float32)
    total = np.zeros((len(genes), len(genes)), dtype=np.float32)
    codes: list[int | None] = list(batches) if batches is not None else [None]
    for code in codes * n_samples:
        for rows, posterior, cells in parts:
            if code is not None:
                cells = cells._replace(batch=torch.full_like(cells.batch, code))
            likelihood = module.likelihood(posterior.sample(), library_size.expand_as(cells.library_size), cells)
            rates[rows] = likelihood.of_columns(columns).sample_rate().cpu().numpy()
        total += _correlations(rankdata(rates, axis=0).astype(np.float32) if method == "spearman" else rates)
    return total / np.float32(len(codes) * n_samples)


def _correlations(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pearson correlations of columns; NaN where a column is constant. Overwrites the values."""
    values -= values.mean(axis=0, dtype=np.float64)
    norms = np.sqrt(np.square(values).sum(axis=0, dtype=np.float64)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        values /= norms
    return values.T @ values


def loadings(module: SCVI, var_names: pd.Index, genes: NDArray[np.bool_] | NDArray[np.intp]) -> pd.DataFrame:
    """Weights of a linear decoder, (n_vars, n_latent): change of log frequency per unit of the latent code.

    NaN for genes not modelled; ``genes`` is a mask, or the positions of the modelled genes, -1 where they have none.
    """
    weights = np.full((len(var_names), module.n_latent), np.nan, dtype=np.float32)
    there = _select.there(genes)
    weights[genes[there]] = module.decoder.rate.weight[:, : module.n_latent].detach().numpy()[there]
    return pd.DataFrame(weights, index=var_names, columns=[f"Z_{i}" for i in range(module.n_latent)])
