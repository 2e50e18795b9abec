from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _lazy, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scvipyro.model import SCVI


@public
def score_cells(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    n_samples: int | None = None,
    key_added: str | None = None,
    module: type[SCVI] | None = None,
    progress_bar: bool | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Score how well a trained model explains each cell, in nats.

    The evidence lower bound (ELBO) is the reconstruction, the log-probability of the counts given the latent code,
    less the KL divergence of the posterior of the code from its prior. Cells unlike those the model was trained on
    (other tissues, doublets, damaged cells) score low. Scores fall with the counts and genes of a cell, so compare
    cells of about the same sequencing depth.

    The reconstruction is estimated from samples of the latent code, which follow from the counts of the cell and the
    seed: a cell has the same score whatever cells stand beside it. With one sample, scores of the shipped data move by
    4 nats (standard deviation) from seed to seed, where cells differ by 190; the mean of ``n_samples`` moves less.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    n_samples
        Samples of the latent code per cell, to average the ELBO over and to estimate the log-likelihood
        :math:`\log p(x)` by importance sampling :cite:p:`Burda2016`. The estimate rises to the true value with the
        number of samples; 100 are a good choice. By default one, and no log-likelihood.
    key_added
        Name of the results, by default ``key``.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    progress_bar
        Whether to show a bar; by default if ``sc.settings.verbosity`` is above 0.
    random_state
        Seed of the samples. The global random states are left alone.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the following fields, float32, in nats per cell:

    ``adata.obs["scvi_pyro_elbo"]``
        Reconstruction less KL divergence.
    ``adata.obs["scvi_pyro_reconstruction"]``
        Log-probability of the counts, at a sample of the latent code.
    ``adata.obs["scvi_pyro_kl"]``
        KL divergence of the posterior of the latent variables from their prior.
    ``adata.obs["scvi_pyro_log_likelihood"]``
        Only with ``n_samples``.

    Raises
    ------
    KeyError
        If there is no such model.
    ValueError
        If an argument is out of range, or the counts do not fit the model; before any work starts.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> scvip.tl.score_cells(adata, n_samples=5, progress_bar=False)
    >>> bool((adata.obs["scvi_pyro_log_likelihood"] > adata.obs["scvi_pyro_elbo"]).mean() > 0.9)
    True
    """
    _validate.check_adata(adata, min_cells=1, on_disk=True)
    arguments = {"n_samples": n_samples, "random_state": random_state, "key_added": key_added}
    _validate.check_arguments(arguments, may_be_none=["n_samples"])

    from scanpy_scvipyro import _progress, data, posterior, storage, training

    model, spec = storage.from_uns(adata, key, module)
    show = settings.verbosity > 0 if progress_bar is None else progress_bar
    cell_data = data.load(adata, spec, once=True, show=show)
    scored = np.empty((3, adata.n_obs), dtype=np.float32)
    start = logg.info(f"scoring {adata.n_obs} cells")
    with training.isolated_random_state(random_state):
        chunks = posterior.scores(model, cell_data, n_samples or 1)
        for rows, chunk in _progress.over_cells(chunks, adata.n_obs, "Scoring", show=show):
            scored[:, rows] = chunk
    reconstruction, kl, log_likelihood = scored

    scores = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
    if n_samples is not None:
        scores["log_likelihood"] = log_likelihood
    adata = adata.copy() if copy else adata
    key_added = key if key_added is None else key_added
    _lazy.write_columns(adata, {f"{key_added}_{name}": values for name, values in scores.items()})
    added = ", ".join(f"'{key_added}_{name}'" for name in scores)
    logg.info("    finished", time=start, deep=f"added\n    {added} (adata.obs)")
    return adata if copy else None
