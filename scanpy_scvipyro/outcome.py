"""How training ended: what the latent codes hold, what they are worth, and which batches stay apart.

Computed from two thousand of the cells, so that each training can be judged at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scanpy_scvipyro import _select, checks, integration
from scanpy_scvipyro.checks import Finding
from scanpy_scvipyro.likelihoods import NegativeBinomial, Poisson
from scanpy_scvipyro.posterior import latent_posterior

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI

    Codes = NDArray[np.integer]


def judged(n_cells: int) -> NDArray[np.intp]:
    """Cells to judge a model by, where there are many."""
    return _select.random_cells(n_cells, 2000, 0)


def findings(module: SCVI, data: CellData, stored: dict[str, Any]) -> list[Finding]:
    """Warn of a model, as it is stored, that has learnt nothing about the given data."""
    held = information(module, data, judged(data.n_cells))
    return empty(held) + worthless(stored)


def empty(held: float) -> list[Finding]:
    """Warn of latent codes that are the same for all cells; takes what :func:`information` returns."""
    if held >= 0.5:  # 7 to 20 in good fits of four data sets, 0.01 in collapsed ones
        return []
    return [
        Finding(
            "The latent codes hold next to nothing",
            f"They tell {held:.2f} nats per cell, where 5 and more are usual, so that cells are hardly told apart.",
            "Train for longer. If that does not help, check that the counts are raw and that there are cells of "
            "different kinds, and compare a lower learning_rate=.",
        )
    ]


def worthless(stored: dict[str, Any]) -> list[Finding]:
    """Warn of a model that explains counts worse than the mean expression of each batch does."""
    history, without = stored["history"], stored.get("elbo_without_codes")
    if without is None:  # as in models that were trained by scvi-tools
        return []
    elbo = history["validation_elbo" if "validation_elbo" in history else "train_elbo"].dropna()
    reached = float(elbo.max() if stored["params"].get("early_stopping", False) else elbo.iloc[-1])
    if reached >= without:
        return []
    return [
        Finding(
            "The model is worse than one without latent codes",
            f"Its ELBO is {reached:.1f} nats per cell; {without:.1f} are reached if all cells of a batch are expected "
            "to be the same.",
            "Do not use its codes or imputed counts. Train for longer; if that does not help, check counts, covariates "
            "and size factors, and compare a lower learning_rate=.",
        )
    ]


def alone(latent: NDArray[np.float32], batches: Codes, labels: Codes | None, names: Sequence[str]) -> list[Finding]:
    """Warn of batches that are not mixed with others at all; of the labels, -1 is none."""
    rows = judged(len(latent))
    codes = batches[rows]
    of_kinds = np.zeros_like(codes) if labels is None else labels[rows]
    same = integration.same_share(integration.neighbors(latent[rows]), codes)
    apart = checks.apart(same, integration.mixed_share(codes, of_kinds), codes, names, checks.NOT_AT_ALL)
    if not apart:
        return []
    return [
        Finding(
            "Batches are not mixed at all",
            f"Nearly all neighbours are of the own batch in {checks.named(apart)}; this is right only for batches that "
            "hold other kinds of cells.",
            "Train for the default number of epochs; compare a higher batch_alignment=.",
        )
    ]


@torch.inference_mode()
def information(module: SCVI, data: CellData, rows: NDArray[np.intp]) -> float:
    """Nats per cell that the codes of the given cells hold, if they are taken for Normal: 0 where all are the same."""
    module.eval()
    posteriors = [latent_posterior(module, cells) for _, cells in data.chunks(torch.from_numpy(rows))]
    within = torch.cat([posterior.variance for posterior in posteriors]).mean(dim=0)
    between = torch.cat([posterior.mean for posterior in posteriors]).var(dim=0, correction=0)
    return float((between / within).log1p().sum() / 2)


@torch.inference_mode()
def elbo_without_codes(data: CellData, rows: NDArray[np.intp], gene_likelihood: str) -> float:
    """Mean log-probability of the given cells, in nats, if all cells of a batch have its mean frequencies.

    The inverse dispersion of each gene follows from its moments, var(x) = mu + mu^2 / theta.
    """
    frequency = data.log_frequencies()[1].exp()
    theta = _inverse_dispersion(data, frequency)
    total = 0.0
    for _, cells in data.chunks(torch.from_numpy(rows)):
        log_mean = cells.library_size.log() + frequency[cells.batch].log()
        counts = Poisson(log_mean) if gene_likelihood == "poisson" else NegativeBinomial(log_mean, theta.log())
        total += float(counts.to_event(1).log_prob(cells.counts).double().sum())
    return total / len(rows)


def _inverse_dispersion(data: CellData, frequency: torch.Tensor) -> torch.Tensor:
    """Theta of each gene, (n_genes,), from the moments of the cells that models are judged by."""
    excess, square = torch.zeros(2, data.n_genes, dtype=torch.float64)
    for _, cells in data.chunks(torch.from_numpy(judged(data.n_cells))):
        assert cells.counts is not None
        mean = cells.library_size.double() * frequency[cells.batch]
        squares = mean.square().sum(dim=0)
        square += squares
        excess += (cells.counts.to_dense() - mean).square().sum(dim=0) - mean.sum(dim=0)
    return (square / excess.clamp_min(1e-6 * square)).clamp(1e-3, 1e6).float()
