"""Access to what the functions of ``tl`` have written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scanpy_scvipyro import _public, _validate

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scvipyro.model import SCVI


@_public.public
def model(adata: AnnData, *, key: str = "scvi_pyro", module: type[SCVI] | None = None) -> SCVI:
    """Rebuild the trained Pyro module from an AnnData.

    Parameters
    ----------
    adata
        AnnData on which a model was trained, also after a round trip through a file.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.

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


@_public.public
def from_scvi_tools(
    model: Any,
    adata: AnnData,
    *,
    impute: bool = True,
    key_added: str = "scvi_pyro",
    copy: bool = False,
) -> AnnData | None:
    """Bring a model trained by scvi-tools into an AnnData, as if :func:`scanpy_scvipyro.tl.scvi_pyro` had trained it.

    The weights are copied into a module of this package whose latent codes, expected counts and ELBO are the same, so
    that all functions for trained models work on it. scvi-tools itself is then no longer needed. Categories that a
    column of the model's AnnData lists without a cell are left out: their weights have never been trained.

    Parameters
    ----------
    model
        Trained ``scvi.model.SCVI``, ``scvi.model.LinearSCVI`` or ``scvi.model.SCANVI``. Not supported are
        ``gene_likelihood="normal"``, ``latent_distribution="ln"``, ``log_variational=False``, size factors, batch and
        layer normalization in the same network, and custom arguments of encoder, decoder and classifier.
    adata
        AnnData with the counts and the columns of ``.obs`` that the model was set up with: that of the model, or
        another with the same genes (in any order) and categories. For a ``SCANVI``, cells of all its labels.
    impute
        Whether to write the imputed counts, 4 bytes per cell and gene.
    key_added
        Name of the results.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the same fields as :func:`scanpy_scvipyro.tl.scvi_pyro`.
    ``adata.uns["scvi_pyro"]["history"]`` holds the epochs that scvi-tools recorded. A ``SCANVI`` sets those of
    :func:`scanpy_scvipyro.tl.scanvi_pyro`, too (``key_added="scanvi_pyro"`` is a good name then): its own
    probabilities, which are not calibrated, and novelty beside its labelled cells.

    Raises
    ------
    TypeError
        If ``model`` is of another class.
    ValueError
        If the model is not trained, has an option that this package has not, or ``adata`` does not fit it.
    KeyError
        If ``adata`` lacks a column or layer.
    MemoryError
        If the imputed layer would not fit in the free memory.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> import scvi  # doctest: +SKIP
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvi.model.SCVI.setup_anndata(adata, batch_key="batch")  # doctest: +SKIP
    >>> model = scvi.model.SCVI(adata)  # doctest: +SKIP
    >>> model.train()  # doctest: +SKIP
    >>> scvip.get.from_scvi_tools(model, adata)  # doctest: +SKIP
    >>> adata.obsm["X_scvi_pyro"].shape  # doctest: +SKIP
    (1345, 10)
    """
    import torch

    from scanpy_scvipyro import absent, data, labels, posterior, storage, training
    from scanpy_scvipyro.from_scvi_tools import convert, given_labels
    from scanpy_scvipyro.scanvi import SCANVI
    from scanpy_scvipyro.tl._write import write_results

    _validate.check_adata(adata)
    _validate.check_key_added(key_added)
    if impute:
        _validate.check_memory(4 * adata.n_obs * adata.n_vars, "the imputed layer", "pass impute=False.")
    converted = convert(model)
    genes = converted.spec.gene_positions(adata)
    cell_data = data.load(adata, converted.spec, genes)
    params = {"labels_key": converted.labels_key}
    module, fitted = converted.module, None
    with training.isolated_random_state(0):  # novelty is measured beside simulated counts
        if isinstance(module, SCANVI):
            given = given_labels(adata, converted)
            codes = posterior.latent_codes(module, cell_data)[0]
            module.start_densities(torch.from_numpy(codes), torch.from_numpy(given.codes))
            fitted = labels.learn(module, cell_data, given, np.zeros(adata.n_obs, dtype=bool))
            fitted |= {"temperature": 1.0, "density_weight": 0.0}  # to predict as scvi-tools does
        stored = storage.to_uns(module, converted.spec, converted.model_options, params, converted.history)
        stored |= absent.entry(cell_data)
        if fitted is not None:
            stored["labels"] = fitted
        adata = adata.copy() if copy else adata
        write_results(adata, module, cell_data, genes, stored, impute=impute, key_added=key_added)
    return adata if copy else None
