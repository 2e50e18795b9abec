from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from anndata import AnnData
from scanpy import logging as logg

from scanpy_scvipyro import _stored, _validate

if TYPE_CHECKING:
    from scanpy_scvipyro.model import SCVI


@_validate.refuse_unknown_arguments
def map_query(
    adata: AnnData,
    adata_ref: AnnData,
    *,
    key: str = "scvi_pyro",
    impute: bool = True,
    module: type[SCVI] | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Map new cells onto a trained model, without training: their latent codes stand beside those of the reference.

    The model of the reference is copied into ``adata``; afterwards every function for trained models works on the new
    cells. Nothing about the reference changes.

    Parameters
    ----------
    adata
        AnnData with raw counts of the new cells, in the same layer as in the reference, and the same columns of
        ``.obs``. All genes of the model must be there, in any order and among any others. All batches must be known
        to the reference.
    adata_ref
        AnnData with the trained model. Its cells are not used.
    key
        Name of the model, and of the results.
    impute
        Whether to write the imputed counts, 4 bytes per cell and gene.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the same fields as the call that trained the reference:

    ``adata.obsm["X_scvi_pyro"]`` : float32 array (n_obs, n_latent)
        Posterior mean of the latent code.
    ``adata.layers["scvi_pyro_imputed"]`` : float32 array (n_obs, n_vars)
        Expected counts at each cell's own sequencing depth; NaN for genes that the model does not know.
    ``adata.varm["scvi_pyro_loadings"]`` : DataFrame (n_vars, n_latent)
        Loadings of the genes, if the reference has ``decoder="linear"``.
    ``adata.uns["scvi_pyro"]`` : dict
        The model, as in the reference.

    What an earlier model left under this key is removed.

    Raises
    ------
    KeyError
        If the reference has no such model, or ``adata`` lacks a column or the layer.
    ValueError
        If genes of the model are missing, a batch or another category is unknown to the reference, or the counts are
        not as :func:`scanpy_scvipyro.tl.scvi_pyro` needs them. Nothing has been written then.
    MemoryError
        If the imputed layer would not fit in the free memory.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> reference, query = adata[::2].copy(), adata[1::2].copy()
    >>> scvip.tl.scvi_pyro(reference, batch_key="batch", max_epochs=2, progress_bar=False)
    >>> scvip.tl.map_query(query, reference)
    >>> query.obsm["X_scvi_pyro"].shape
    (672, 10)
    """
    _validate.check_adata(adata, min_cells=1)
    if not isinstance(adata_ref, AnnData):
        raise TypeError(f"adata_ref is a {type(adata_ref).__name__}; pass the AnnData that holds the trained model.")

    from scanpy_scvipyro import data, storage, training
    from scanpy_scvipyro.tl._write import write_results

    model, spec = storage.from_uns(adata_ref, key, module)
    positions = spec.gene_positions(adata)
    if impute:
        _validate.check_memory(4 * adata.n_obs * adata.n_vars, "the imputed layer", "pass impute=False.")
    cell_data = data.load(adata, spec, positions)

    start = logg.info(f"mapping {adata.n_obs} cells onto the model {key!r}")
    stored = deepcopy(_stored.trained(adata_ref, key))
    adata = adata.copy() if copy else adata
    with training.isolated_random_state(0):  # the guide draws codes, of which only the mean is used
        added = write_results(adata, model, cell_data, positions, stored, impute=impute, key_added=key)
    logg.info("    finished", time=start, deep=added)
    return adata if copy else None
