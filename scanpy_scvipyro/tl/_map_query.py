from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from anndata import AnnData
from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _stored, _validate

if TYPE_CHECKING:
    from scanpy_scvipyro.model import SCVI


@_validate.refuse_unknown_arguments
def map_query(
    adata: AnnData,
    adata_ref: AnnData,
    *,
    key: str = "scvi_pyro",
    max_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 3e-2,
    accelerator: str = "auto",
    progress_bar: bool | None = None,
    random_state: int = 0,
    impute: bool = True,
    module: type[SCVI] | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Map new cells onto a trained model: their latent codes stand beside those of the reference.

    The model of the reference is copied into ``adata``; afterwards every function for trained models works on the new
    cells. Nothing about the reference changes.

    Cells of known batches need no training. Batches and other categories that the reference never saw get parameters
    of their own, which alone are learnt (architecture surgery :cite:p:`Lotfollahi2022`): their weights in encoder and
    decoder, their offsets, their dispersion where it depends on the batch. All else is frozen, so that codes of
    reference cells by the new model are what they were, to the bit. The model in ``adata`` is then a reference for the
    next batch.

    Parameters
    ----------
    adata
        AnnData with raw counts of the new cells, in the same layer as in the reference, and the same columns of
        ``.obs``. All genes of the model must be there, in any order and among any others.
    adata_ref
        AnnData with the trained model, for example from :func:`scanpy_scvipyro.read_model`. Its cells are not used.
    key
        Name of the model, and of the results.
    max_epochs
        Passes over the cells, where there are new categories; by default as many as make 50 steps, between 5 and 50.
    batch_size, learning_rate
        Cells per minibatch and peak of the learning rate then. The few parameters take a higher rate than a whole
        model.
    accelerator
        Where to train then: ``"auto"`` is CUDA or else the CPU.
    progress_bar
        Whether to show a bar then; by default if ``sc.settings.verbosity`` is above 0.
    random_state
        Seed of the training. The global random states are left alone.
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
        The model, as in the reference. Where categories were learnt, they are in ``categories`` and ``weights``, and
        ``surgery`` has the ``history`` of that training as a DataFrame and its ``params``.

    What an earlier model left under this key is removed.

    Raises
    ------
    KeyError
        If the reference has no such model, or ``adata`` lacks a column or the layer.
    ValueError
        If genes of the model are missing, or the counts or an argument are not as described.
    MemoryError
        If the imputed layer would not fit in the free memory.
    RuntimeError
        If training diverges. After any error and after Ctrl-C, ``adata`` is as before.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> reference, query = adata[::2].copy(), adata[1::2].copy()
    >>> scvip.tl.scvi_pyro(reference, batch_key="batch", max_epochs=2, progress_bar=False)
    >>> scvip.tl.map_query(query, reference)
    >>> query.obsm["X_scvi_pyro"].shape
    (672, 10)

    A batch that the reference has not seen:

    >>> query.obs["batch"] = "another lab"
    >>> scvip.tl.map_query(query, reference, max_epochs=2, progress_bar=False)
    >>> query.uns["scvi_pyro"]["categories"]["batch"].tolist()
    ['10x_3cl', 'celseq2_3cl', 'dropseq_3cl', 'another lab']
    """
    _validate.check_adata(adata, min_cells=1)
    training_options: dict[str, Any] = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "random_state": random_state,
    }
    _validate.check_arguments(training_options)
    if not isinstance(adata_ref, AnnData):
        raise TypeError(f"adata_ref is a {type(adata_ref).__name__}; pass the AnnData that holds the trained model.")

    from scanpy_scvipyro import data, hardware, storage, surgery, training
    from scanpy_scvipyro.tl._write import write_results

    accelerator = hardware.accelerator_name(accelerator, devices=1)
    model, known = storage.from_uns(adata_ref, key, module)
    positions = known.gene_positions(adata)
    if impute:
        _validate.check_memory(4 * adata.n_obs * adata.n_vars, "the imputed layer", "pass impute=False.")
    spec = data.describe_more(adata, known)
    cell_data = data.load(adata, spec, positions)
    stored = deepcopy(_stored.trained(adata_ref, key))

    start = logg.info(f"mapping {adata.n_obs} cells onto the model {key!r}")
    adata = adata.copy() if copy else adata
    with training.isolated_random_state(random_state):
        if new := surgery.new_categories(known, spec):
            logg.info("    learning " + "; ".join(f"{column!r}: {', '.join(names)}" for column, names in new.items()))
            model, stored = surgery.learn(
                model,
                stored,
                cell_data,
                known,
                spec,
                accelerator=accelerator,
                progress_bar=settings.verbosity > 0 if progress_bar is None else progress_bar,
                **training_options,
            )
        added = write_results(adata, model, cell_data, positions, stored, impute=impute, key_added=key)
    logg.info("    finished", time=start, deep=added)
    return adata if copy else None
