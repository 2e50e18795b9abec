from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scanpy import logging as logg

from scanpy_scvipyro import _lazy, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scvipyro.model import SCVI


@public
def latent(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    n_samples: int | None = None,
    key_added: str | None = None,
    module: type[SCVI] | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Latent codes of all cells from a trained model :cite:p:`Lopez2018`, and how sure the model is of them.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    n_samples
        Samples of the posterior to write for each cell, for example to see how much a clustering depends on the
        uncertainty of the codes; by default none.
    key_added
        Name of the results, by default ``key``.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    random_state
        Seed of the samples. The global random states are left alone.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the following fields:

    ``adata.obsm["X_scvi_pyro"]`` : float32 array (n_obs, n_latent)
        Posterior mean of the latent code.
    ``adata.obsm["X_scvi_pyro_var"]`` : float32 array (n_obs, n_latent)
        Posterior variance of the latent code.
    ``adata.obs["scvi_pyro_uncertainty"]`` : float32
        Posterior standard deviation of the code, its root mean square over the dimensions. It is 1 where the counts
        tell nothing (the standard Normal prior), and falls towards 0 the more they tell.
    ``adata.obsm["X_scvi_pyro_samples"]`` : float32 array (n_obs, n_samples, n_latent)
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
    >>> scvip.tl.latent(adata, n_samples=3)
    >>> adata.obsm["X_scvi_pyro_samples"].shape
    (1345, 3, 10)
    """
    _validate.check_adata(adata, min_cells=1, on_disk=True)
    arguments = {"n_samples": n_samples, "random_state": random_state, "key_added": key_added}
    _validate.check_arguments(arguments, may_be_none=["n_samples"])

    from scanpy_scvipyro import data, posterior, storage, training

    model, spec = storage.from_uns(adata, key, module)
    cell_data = data.load(adata, spec, once=True)
    n_bytes = 4 * adata.n_obs * model.n_latent * (n_samples or 0)
    _validate.check_memory(n_bytes, "the samples", "pass a smaller n_samples.")
    start = logg.info(f"computing latent codes of {adata.n_obs} cells")
    with training.isolated_random_state(random_state):
        mean, variance, samples = posterior.latent_codes(model, cell_data, n_samples or 0)

    adata = adata.copy() if copy else adata
    key_added = key if key_added is None else key_added
    adata.obsm[f"X_{key_added}"] = mean
    adata.obsm[f"X_{key_added}_var"] = variance
    if n_samples is not None:
        adata.obsm[f"X_{key_added}_samples"] = samples
    _lazy.write_columns(adata, {f"{key_added}_uncertainty": np.sqrt(variance.mean(axis=1))})
    logg.info(
        "    finished",
        time=start,
        deep=f"added\n    'X_{key_added}' and 'X_{key_added}_var', mean and variance of latent codes (adata.obsm)\n"
        f"    '{key_added}_uncertainty', posterior standard deviation (adata.obs)",
    )
    return adata if copy else None
