"""What ``tl.scvi_pyro`` and its like do with their arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _validate
from scanpy_scvipyro._arguments import taken_by

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray


def checked(adata: AnnData, arguments: dict[str, Any]) -> NDArray[np.bool_]:
    """Refuse bad data and arguments before any work; return the mask of the genes to model."""
    _validate.check_adata(adata)
    _validate.check_arguments(arguments)
    _validate.check_key_added(arguments["key_added"])
    if arguments["dispersion"] == "gene-label" and arguments["labels_key"] is None:
        raise ValueError("dispersion='gene-label' needs labels; pass labels_key=, a column of adata.obs.")
    if arguments["labels_key"] is not None:
        _validate.check_obs_key(adata, arguments["labels_key"], "labels_key")
    if arguments["library"] == "latent" and arguments["size_factor_key"] is not None:
        raise ValueError("library='latent' infers what size_factor_key sets; pass one of the two.")
    genes = _validate.gene_mask(adata, arguments["mask_var"])
    if arguments["impute"]:
        _validate.check_memory(4 * adata.n_obs * adata.n_vars, "the imputed layer", "pass impute=False.")
    return genes


def train(adata: AnnData, arguments: dict[str, Any]) -> AnnData | None:
    """Check, train, and write the results.

    ``arguments`` are those of ``tl.scvi_pyro`` by name. Each goes to what declares it: those of the data to
    ``DataSpec``, of the model to ``SCVI``, of training to ``Recipe``, of Lightning to ``training.fit``.
    """
    genes = checked(adata, arguments)

    from scanpy_scvipyro import data, hardware, storage, training
    from scanpy_scvipyro.model import SCVI, reads_labels
    from scanpy_scvipyro.tl._write import write_results

    keys = ("categorical_covariate_keys", "continuous_covariate_keys")
    arguments = arguments | {name: _validate.keys_as_list(arguments[name], name) for name in keys}
    arguments["precision"] = hardware.precision_name(arguments["precision"])
    arguments["accelerator"] = hardware.accelerator_name(arguments["accelerator"], arguments["devices"])
    if arguments["progress_bar"] is None:
        arguments["progress_bar"] = settings.verbosity > 0
    labels_key, name = arguments["labels_key"], (arguments["module"] or SCVI).__name__
    if not reads_labels(name, arguments):
        arguments["labels_key"] = None
    spec = data.describe(adata, data.DataSpec(**taken_by(data.DataSpec, arguments)), genes)
    cell_data = data.load(adata, spec, genes)
    recipe = training.recipe(cell_data.n_cells, **taken_by(training.Recipe, arguments))
    batch_offset = arguments["batch_offset"]
    model_options = taken_by(SCVI, arguments) | {
        "n_labels": spec.n_labels,
        "n_categories": spec.n_categories,
        "n_continuous": len(spec.continuous_covariate_keys),
        "has_batch_offset": batch_offset is not None,
        "has_size_factor": spec.size_factor_key is not None,
    }

    start = logg.info(f"training scVI on {adata.n_obs} cells and {len(spec.genes)} genes")
    with training.isolated_random_state(recipe.random_state):
        model = training.untrained(arguments["module"], cell_data, spec.n_batches, model_options, batch_offset or 0.0)
        history = training.fit(model, cell_data, recipe, **taken_by(training.fit, arguments))
        params = vars(recipe) | {"batch_offset": batch_offset, "labels_key": labels_key}
        adata = adata.copy() if arguments["copy"] else adata
        added = write_results(
            adata,
            model,
            cell_data,
            genes,
            storage.to_uns(model, spec, model_options, params, history),
            impute=arguments["impute"],
            key_added=arguments["key_added"],
        )
    logg.info("    finished", time=start, deep=added)
    return adata if arguments["copy"] else None
