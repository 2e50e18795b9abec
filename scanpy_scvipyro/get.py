"""Access to what the functions of ``tl`` have written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scvipyro.model import SCVI


def model(adata: AnnData, *, key: str = "scvi_pyro", module: type[SCVI] | None = None) -> SCVI:
    """Rebuild the trained Pyro module from an AnnData.

    Parameters
    ----------
    adata
        AnnData on which a model was trained, also after a round trip through a file.
    key
        Key of the model in ``adata.uns``.
    module
        The class, if the model is of another class than :class:`~scanpy_scvipyro.model.SCVI`.

    Returns
    -------
    The module in evaluation mode, on the CPU, with the trained weights. Changing it does not change ``adata``.

    Raises
    ------
    KeyError
        If there is no such model.
    ValueError
        If the model is of another class.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, progress_bar=False)
    >>> scvip.get.model(adata).n_latent
    10
    """
    from scanpy_scvipyro import storage

    return storage.from_uns(adata, key, module)[0]
