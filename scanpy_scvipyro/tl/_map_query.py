from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

from anndata import AnnData
from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _genes, _lazy, _stored, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from scanpy_scvipyro.model import SCVI


@public
def map_query(
    adata: AnnData,
    adata_ref: AnnData,
    *,
    key: str = "scvi_pyro",
    missing_genes: Literal["refuse", "impute"] = "refuse",
    var_key: str | None = None,
    ensembl_versions: bool = True,
    max_epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float = 5e-2,
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
    reference cells by the new model are what they were, to the bit. Where the reference was trained with
    ``batch_alignment``, new batches are brought to the components of its prior. The model in ``adata`` is then a
    reference for the next batch.

    Parameters
    ----------
    adata
        AnnData with raw counts of the new cells, in the same layer as in the reference, and the same columns of
        ``.obs``. The genes of the model may stand in any order and among any others.
    adata_ref
        AnnData with the trained model, for example from :func:`scanpy_scvipyro.read_model`. Its cells are not used.
    key
        Name of the model, and of the results.
    missing_genes
        What to do where genes of the model are not in ``adata``. ``"refuse"`` them, or ``"impute"``: the encoder gets
        what the model expects of them, found by encoding, decoding and encoding again, twice. Zeros in their place, as
        scvi-tools has them, move the codes further and cost accuracy of labels. Library sizes then count the genes that
        were measured, on the scale of the reference. What this function writes is then all that can be had: other
        functions need counts of all genes, and say so.
    var_key
        Column of ``adata.var`` with the names of the genes as the model knows them; by default ``adata.var_names``.
    ensembl_versions
        Whether the version of an Ensembl id (``.5`` of ``ENSG00000141510.5``) is part of its name. ``False`` drops it
        on both sides.
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
        ``surgery`` has the ``history`` of that training as a DataFrame and its ``params``. ``missing_genes`` has the
        names of genes that were imputed, if any.

    What an earlier model left under this key is removed.

    Raises
    ------
    KeyError
        If the reference has no such model, or ``adata`` lacks a column or the layer.
    ValueError
        If genes of the model are missing (and, with ``"impute"``, if all are), or the counts or an argument are not as
        described.
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
    _validate.check_adata(adata, min_cells=1, on_disk=True)
    training_options: dict[str, Any] = {
        "max_epochs": max_epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "random_state": random_state,
    }
    _validate.check_arguments(training_options | {"missing_genes": missing_genes})
    if not isinstance(adata_ref, AnnData):
        raise TypeError(f"adata_ref is a {type(adata_ref).__name__}; pass the AnnData that holds the trained model.")

    import torch

    from scanpy_scvipyro import data, hardware, missing, storage, surgery, training
    from scanpy_scvipyro.tl._write import write_results

    accelerator = hardware.accelerator_name(accelerator, devices=1)
    model, known = storage.from_uns(adata_ref, key, module)
    if missing_genes == "refuse" and var_key is None and ensembl_versions:
        positions = known.gene_positions(adata)
    else:
        positions = _genes.match(
            adata, known.genes, var_key=var_key, ensembl_versions=ensembl_versions, missing_genes=missing_genes
        )
    measured = positions >= 0
    if impute:
        _validate.check_imputed_fits(adata, "pass impute=False, and write it to disk by tl.impute(adata, out=path).")
    if not _lazy.is_on_disk(adata):
        n_bytes = 32 * adata.n_obs * int((~measured).sum())
        _validate.check_memory(n_bytes, "expected counts of missing genes", "map fewer cells at a time.")
    spec = data.describe_more(adata, known)
    cell_data = data.load(adata, spec, positions[measured])
    stored = deepcopy(_stored.trained(adata_ref, key))

    start = logg.info(f"mapping {adata.n_obs} cells onto the model {key!r}")
    adata = adata.copy() if copy else adata
    with training.isolated_random_state(random_state):
        if not measured.all():
            cell_data = missing.completed(model, cell_data, torch.from_numpy(measured), known)
            stored["missing_genes"] = known.genes[~measured].astype(object)
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
