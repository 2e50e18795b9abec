from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np

from scanpy_scvipyro import _lazy, _names, _stored, _validate
from scanpy_scvipyro._arguments import shared_with
from scanpy_scvipyro._public import public
from scanpy_scvipyro.tl._scvi_pyro import scvi_pyro
from scanpy_scvipyro.tl._train import train

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from scanpy_scvipyro.labels import Given
    from scanpy_scvipyro.scanvi import SCANVI


@public
@shared_with(scvi_pyro, without=["prior"])
def scanvi_pyro(
    adata: AnnData,
    arguments: dict[str, Any],
    *,
    labels_key: str,
    unlabeled_category: str | None = None,
    init_from: str | None = None,
    max_novelty: float | None = None,
    module: type[SCANVI] | None = None,
    key_added: str = "scanvi_pyro",
) -> AnnData | None:
    r"""Fit scANVI :cite:p:`Xu2021` to raw counts and labels of some cells: labels of all cells, and of new ones.

    scVI (:func:`~scanpy_scvipyro.tl.scvi_pyro`) with a density of latent codes per label, and a network that tells the
    label from the code. Probabilities are calibrated: of cells labelled with probability 0.8, about four fifths are
    labelled correctly. Each cell gets a novelty, too, which says how unlike all labelled types it is.

    Parameters
    ----------
    adata
        AnnData with raw counts, as for :func:`~scanpy_scvipyro.tl.scvi_pyro`.
    labels_key
        Column of ``adata.obs`` with labels such as cell types, at least two of them. Cells with a missing value have
        no label. A tenth of the labels is kept from training, to calibrate by.
    unlabeled_category
        Value of this column that means that a cell has no label, such as ``"Unknown"``.
    init_from
        Name of a model in ``adata`` that :func:`~scanpy_scvipyro.tl.scvi_pyro` trained, to start from; by default
        training starts from scratch. Genes, batches, covariates and the shape of the networks are then those of that
        model, and training takes a third of the epochs.
    max_novelty
        Cells with a novelty above it are predicted to be ``"unknown"``, for example ``0.99``; by default every cell
        gets a label.
    module
        Your subclass of :class:`~scanpy_scvipyro.scanvi.SCANVI`, to change the model itself.
    key_added
        Name of the results, see below.
    n_prior_components
        Components of the prior for cells that no label describes, beside one per label.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the following fields (with the default ``key_added``):

    ``adata.obs["scanvi_pyro"]`` : categorical
        Predicted label of every cell, of those with a label too.
    ``adata.obs["scanvi_pyro_probability"]`` : float32
        Probability of this label; for ``"unknown"`` cells that of the most probable one.
    ``adata.obs["scanvi_pyro_novelty"]`` : float32
        From 0 to 1, the share of cells of the known labels that are less unlike them than this cell. So 0.99 is what
        one in a hundred cells of known types reaches, too; many such cells are a type without a label.
    ``adata.obsm["scanvi_pyro_probabilities"]`` : DataFrame (n_obs, n_labels)
        Probabilities of all labels. Names have ``|`` in the place of ``/``, which files do not store.
    ``adata.obsm["X_scanvi_pyro"]`` : float32 array (n_obs, n_latent)
        Posterior mean of the latent code.
    ``adata.layers["scanvi_pyro_imputed"]`` : float32 array (n_obs, n_vars)
        Expected counts at each cell's own sequencing depth.
    ``adata.uns["scanvi_pyro"]`` : dict
        The model, as :func:`~scanpy_scvipyro.tl.scvi_pyro` writes it, and ``labels``: their names, and what calibrates
        probabilities and novelty.

    Raises
    ------
    ValueError, KeyError, TypeError
        If the data or an argument are not as described above; before any work starts.
    MemoryError
        If the imputed layer would not fit in the free memory; before any work starts.
    RuntimeError
        If training diverges. After any error and after Ctrl-C, ``adata`` is as before.

    See Also
    --------
    map_query : labels of new cells, from a model that this function has trained.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> adata.obs["known"] = adata.obs["cell_type"].where(adata.obs["batch"] == "10x_3cl")
    >>> scvip.tl.scanvi_pyro(adata, labels_key="known", batch_key="batch", max_epochs=5, progress_bar=False)
    >>> bool((adata.obs["scanvi_pyro"] == adata.obs["cell_type"]).mean() > 0.9)
    True
    """
    _validate.check_adata(adata, on_disk=True)
    given = _given(adata, labels_key, unlabeled_category, max_novelty)
    if arguments["dispersion"] == "gene-label":
        raise ValueError(
            "dispersion='gene-label' needs a label of every cell; pass 'gene', 'gene-batch' or 'gene-cell'."
        )
    arguments["prior"] = "mixture"
    if init_from is None:
        return train(adata, arguments, given)

    from scanpy_scvipyro import training

    weights, taken = _start(adata, arguments, init_from)
    if arguments["max_epochs"] is None:
        arguments["max_epochs"] = max(5, training.default_max_epochs(adata.n_obs) // 3)
    if arguments["n_epochs_kl_warmup"] is None:
        arguments["n_epochs_kl_warmup"] = 0
    return train(adata, arguments | taken, given, weights)


def _given(adata: AnnData, labels_key: str, unlabeled_category: str | None, max_novelty: float | None) -> Given:
    """Read the labels; refuse columns that say too little or too much."""
    from scanpy_scvipyro.labels import UNKNOWN, Given

    _validate.check_arguments({"max_novelty": max_novelty})
    _validate.check_obs_key(adata, labels_key, "labels_key")
    column = _names.categories(_lazy.column(adata.obs, labels_key), f"labels_key={labels_key!r}")
    if unlabeled_category is not None:
        without = _names.text(unlabeled_category)
        if without not in column.categories:
            msg = f"unlabeled_category={unlabeled_category!r} is not in adata.obs[{labels_key!r}]."
            raise ValueError(f"{msg} {_validate.did_you_mean(without, column.categories)}")
        column = column.remove_categories(without)
    names, n_labelled = column.categories.to_numpy(dtype=str), int((column.codes >= 0).sum())
    if len(names) < 2:
        found = f"one label, {str(names[0])!r}" if len(names) else "no label"
        msg = (
            f"labels_key={labels_key!r} has {found}; two are needed to tell cells apart. Without labels, train with "
            "tl.scvi_pyro."
        )
        raise ValueError(msg)
    if len(names) > n_labelled / 2 >= 10:  # barcodes, or a measurement
        msg = (
            f"labels_key={labels_key!r} has {len(names)} labels for {n_labelled} labelled cells; pass a "
            "column that groups cells."
        )
        raise ValueError(msg)
    if max_novelty is not None and UNKNOWN in names:
        msg = (
            f"labels_key={labels_key!r} has the label {UNKNOWN!r}, which max_novelty= gives to cells; rename it, or "
            f"pass unlabeled_category={UNKNOWN!r} if it means that they have none."
        )
        raise ValueError(msg)
    return Given(labels_key, names, column.codes.astype(np.int64) + 1, max_novelty)


def _start(adata: AnnData, arguments: dict[str, Any], init_from: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights of the model to start from, and the arguments that it sets; refuse others that contradict it."""
    from scanpy_scvipyro import storage

    stored = _stored.trained(adata, init_from)
    options = {name: storage.plain(value) for name, value in stored["model_options"].items()}
    if stored["module"] != "SCVI" or options["dispersion"] == "gene-label":
        msg = (
            f"init_from={init_from!r} is a {stored['module']} with dispersion={options['dispersion']!r}; pass a model "
            "that tl.scvi_pyro trained without module= and labels."
        )
        raise ValueError(msg)
    module, spec = storage.from_uns(adata, init_from)
    genes = np.isin(adata.var_names, spec.genes)
    if not np.array_equal(adata.var_names[genes], spec.genes):
        raise ValueError(f"init_from={init_from!r} knows its genes in another order than adata; train from scratch.")
    has_offset = options["has_batch_offset"]
    taken = options | vars(spec) | {"batch_offset": stored["params"].get("batch_offset", 0.5) if has_offset else None}
    defaults = inspect.signature(scvi_pyro).parameters
    taken = {name: value for name, value in taken.items() if name in defaults and name not in ("prior", "labels_key")}
    for name, value in taken.items():
        passed, default = arguments[name], defaults[name].default
        if name.endswith("_keys"):
            passed, value, default = _validate.keys_as_list(passed, name), list(value), []
        if passed not in (default, value):
            msg = (
                f"{name}={passed!r} contradicts the model init_from={init_from!r}, which has {value!r}; leave it out, "
                "or train from scratch without init_from."
            )
            raise ValueError(msg)
    if arguments["mask_var"] is not None:
        raise ValueError(f"init_from={init_from!r} sets the genes; leave mask_var out, or train without init_from.")
    return module.state_dict(), taken | {"mask_var": genes}
