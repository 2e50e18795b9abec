"""What is asked of a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from torch.distributions import kl_divergence

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI, Cells


def elbo_terms(module: SCVI, cells: Cells) -> tuple[Tensor, Tensor]:
    """Reconstruction log-likelihood and KL divergence of each cell, in nats, (n_cells,) each.

    One sample from the guide; the KL divergence is analytic where torch knows it, as in ``TraceMeanField_ELBO``.
    """
    guide = poutine.trace(module.guide).get_trace(cells)
    model = poutine.trace(poutine.replay(module.model, trace=guide)).get_trace(cells)
    reconstruction = kl = torch.zeros(len(cells.batch), device=cells.batch.device)
    for name, site in model.nodes.items():
        if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
            continue
        if site["is_observed"]:
            reconstruction = reconstruction + site["fn"].log_prob(site["value"])
            continue
        posterior = guide.nodes[name]["fn"]
        try:
            kl = kl + kl_divergence(posterior, site["fn"])
        except NotImplementedError:
            kl = kl + posterior.log_prob(site["value"]) - site["fn"].log_prob(site["value"])
    return reconstruction, kl


def latent_posterior(module: SCVI, cells: Cells) -> torch.distributions.Distribution:
    """q(z | counts) of each cell."""
    return poutine.trace(module.guide).get_trace(cells).nodes["z"]["fn"]


@torch.inference_mode()
def latent_mean(module: SCVI, data: CellData) -> NDArray[np.float32]:
    """Posterior mean of the latent code of each cell, (n_cells, n_latent)."""
    module.eval()
    means = [latent_posterior(module, cells).mean.cpu().float().numpy() for _, cells in data.chunks()]
    return np.concatenate(means)


@torch.inference_mode()
def expected_counts(
    module: SCVI,
    data: CellData,
    latent: NDArray[np.float32],
    genes: NDArray[np.bool_] | NDArray[np.intp],
    n_vars: int,
) -> NDArray[np.float32]:
    """Compute expected counts at each cell's own sequencing depth, (n_cells, n_vars); NaN for genes not modelled.

    ``genes`` is a mask, or the positions of the modelled genes.
    """
    module.eval()
    imputed = np.full((data.n_cells, n_vars), np.nan, dtype=np.float32)
    everything = genes.dtype == bool and bool(genes.all())
    for rows, cells in data.chunks():
        log_rho = module.decode(torch.from_numpy(latent[rows]).to(cells.batch.device), cells)[0]
        expected = log_rho.exp_().mul_(cells.library_size).cpu().numpy()
        imputed[rows, slice(None) if everything else genes] = expected
    return imputed


def loadings(module: SCVI, var_names: pd.Index, genes: NDArray[np.bool_] | NDArray[np.intp]) -> pd.DataFrame:
    """Weights of a linear decoder, (n_vars, n_latent): change of log frequency per unit of the latent code.

    NaN for genes not modelled; ``genes`` is a mask, or the positions of the modelled genes.
    """
    weights = np.full((len(var_names), module.n_latent), np.nan, dtype=np.float32)
    weights[genes] = module.decoder.rate.weight[:, : module.n_latent].detach().numpy()
    return pd.DataFrame(weights, index=var_names, columns=[f"Z_{i}" for i in range(module.n_latent)])


def batch_embedding(embedding: torch.nn.Embedding, batches: pd.Index) -> pd.DataFrame:
    """Learnt vector of each batch, (n_batches, n_batch_embedding)."""
    vectors = embedding.weight.detach().numpy().copy()
    return pd.DataFrame(vectors, index=batches, columns=[f"E_{i}" for i in range(vectors.shape[1])])
