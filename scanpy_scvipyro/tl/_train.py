"""What ``tl.scvi_pyro`` and its like do with their arguments."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _confounding, _lazy, _names, _validate
from scanpy_scvipyro._arguments import taken_by

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

    from scanpy_scvipyro.labels import Given


def checked(adata: AnnData, arguments: dict[str, Any]) -> NDArray[np.bool_]:
    """Refuse bad data and arguments before any work; return the mask of the genes to model."""
    _validate.check_adata(adata, on_disk=True)
    _validate.check_arguments(arguments, may_be_none=("batch_size", "learning_rate"))
    _validate.check_key_added(arguments["key_added"])
    if arguments["dispersion"] == "gene-label" and arguments["labels_key"] is None:
        raise ValueError("dispersion='gene-label' needs labels; pass labels_key=, a column of adata.obs.")
    is_without = arguments["batch_offset"] is None and arguments["batch_key"] is not None
    if is_without and arguments["batch_representation"] == "offset":
        msg = "batch_representation='offset', the default, needs offsets; with batch_offset=None, pass 'one-hot'."
        raise ValueError(msg)
    if arguments["labels_key"] is not None:
        _validate.check_obs_key(adata, arguments["labels_key"], "labels_key")
    if arguments["library"] == "latent" and arguments["size_factor_key"] is not None:
        raise ValueError("library='latent' infers what size_factor_key sets; pass one of the two.")
    genes = _validate.gene_mask(adata, arguments["mask_var"])
    if arguments["impute"]:
        _validate.check_imputed_fits(adata, "pass impute=False, and write it to disk by tl.impute(adata, out=path).")
    return genes


def train(
    adata: AnnData, arguments: dict[str, Any], given: Given | None = None, start: dict[str, Tensor] | None = None
) -> AnnData | None:
    """Check, train, and write the results; with the labels that are given, if any, and from start weights, if any.

    ``arguments`` are those of ``tl.scvi_pyro`` by name. Each goes to what declares it: those of the data to
    ``DataSpec``, of the model to ``SCVI``, of training to ``Recipe``, of Lightning to ``training.fit``.
    """
    genes = checked(adata, arguments)

    import torch

    from scanpy_scvipyro import (
        absent,
        checkpoint,
        data,
        devices,
        labels,
        outcome,
        posterior,
        storage,
        training,
    )
    from scanpy_scvipyro.model import SCVI, reads_labels
    from scanpy_scvipyro.scanvi import SCANVI
    from scanpy_scvipyro.tl._write import write_results

    keys = ("categorical_covariate_keys", "continuous_covariate_keys")
    arguments = arguments | {name: _validate.keys_as_list(arguments[name], name) for name in keys}
    arguments |= _for_lightning(arguments)
    # Leading offsets must keep up with the codes, or what all cells of a batch share stays in these (docs/recipe.md).
    arguments["offset_speed"] = 20.0 if arguments["batch_representation"] == "offset" else 1.0
    is_first = devices.is_first(arguments["n_devices"])
    inform, warn = (logg.info, logg.warning) if is_first else (logg.debug, logg.debug)
    storage.check_class(arguments["module"], SCVI if given is None else SCANVI)
    labels_key, module = arguments["labels_key"], arguments["module"] or (SCVI if given is None else SCANVI)
    if given is not None or not reads_labels(module.__name__, arguments):
        arguments["labels_key"] = None
    spec = data.describe(adata, data.DataSpec(**taken_by(data.DataSpec, arguments)), genes)
    recipe = training.recipe(adata.n_obs, **taken_by(training.Recipe, arguments))
    split = training.split(adata.n_obs, recipe)
    unseen, judged = split.validation.numpy(), outcome.judged(adata.n_obs)
    looked_at = torch.cat([*split.evaluated, torch.from_numpy(judged)])
    cell_data = data.load(adata, spec, genes, kept=looked_at, show=arguments["progress_bar"])
    batch_offset = arguments["batch_offset"]
    model_options = taken_by(SCVI, arguments) | {
        "n_labels": spec.n_labels if given is None else len(given.names),
        "n_categories": spec.n_categories,
        "n_continuous": len(spec.continuous_covariate_keys),
        "has_batch_offset": batch_offset is not None,
        "has_size_factor": spec.size_factor_key is not None,
    }
    training_data = cell_data
    if given is not None:
        held_out = given.hold_out(unseen, recipe.random_state)
        if unlearnt := given.unlearnt(unseen):
            warn(
                f"no cell of {', '.join(map(repr, unlearnt))} is among those trained on, so they are not learnt; "
                "label more cells, or pass train_size=1."
            )
        training_data = replace(cell_data, label=torch.from_numpy(np.where(held_out, 0, given.codes)))

    if given is not None:
        label_codes = given.codes - 1
    elif labels_key is not None:
        label_codes = _names.categories(_lazy.column(adata.obs, labels_key), f"labels_key={labels_key!r}").codes
    if confounded := _confounding.warning(cell_data, spec, None if labels_key is None else label_codes):
        warn(confounded)

    name = "scVI" if given is None else "scANVI"
    begin = inform(f"training {name} on {adata.n_obs} cells and {len(spec.genes)} genes")
    with training.isolated_random_state(recipe.random_state):
        model = training.untrained(module, training_data, spec.n_batches, model_options, batch_offset or 0.0)
        if given is not None:
            assert isinstance(model, SCANVI)
            model.weigh_labels(training_data.label)
            if start is not None:
                model.continue_from(start)
                codes = posterior.latent_codes(model, training_data)[0]
                model.start_densities(torch.from_numpy(codes), training_data.label)
        run = None
        if arguments["checkpoint"] is not None:
            options = model_options | vars(recipe) | {"batch_offset": batch_offset, "precision": arguments["precision"]}
            identity = checkpoint.identity(model, training_data, spec.genes, options)
            run = arguments["checkpoint"] = checkpoint.opened(arguments["checkpoint"], identity)
        history = training.fit(model, training_data, recipe, **taken_by(training.fit, arguments))
        params = vars(recipe) | {"batch_offset": batch_offset, "labels_key": labels_key}
        params |= {"init_from": arguments.get("init_from")}
        stored = storage.to_uns(model, spec, model_options, params, history)
        stored |= absent.entry(cell_data)
        rows = split.evaluated[1].numpy()[:5000] if len(unseen) else judged
        stored["elbo_without_codes"] = outcome.elbo_without_codes(cell_data, rows, model.gene_likelihood)
        if given is not None:
            stored["labels"] = labels.learn(model, cell_data, given, held_out)
        adata = adata.copy() if arguments["copy"] else adata
        # In each process, so that the next call finds the model in all; of the largest result, one is enough.
        impute = arguments["impute"] and is_first
        added = write_results(adata, model, cell_data, genes, stored, impute=impute, key_added=arguments["key_added"])
        findings = outcome.findings(model, cell_data, stored)
    if spec.batches is not None:
        of_kinds = None if labels_key is None else label_codes
        latent = adata.obsm[f"X_{arguments['key_added']}"]
        findings += outcome.alone(latent, cell_data.batch.numpy(), of_kinds, spec.batches)
    for finding in findings:
        warn(f"{finding.title}. {finding.found} See pl.report(adata, key={arguments['key_added']!r}).")
    if run is not None and is_first:
        run.path.unlink(missing_ok=True)
    inform("    finished", time=begin, deep=added)
    return adata if arguments["copy"] else None


def _for_lightning(arguments: dict[str, Any]) -> dict[str, Any]:
    """Check what Lightning is handed, and work out what depends on the machine."""
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger

    from scanpy_scvipyro import devices, hardware

    precision = hardware.precision_name(arguments["precision"])
    taken = {"accelerator": hardware.accelerator_name(arguments["accelerator"], arguments["devices"])}
    used, n_devices = devices.checked(**taken_by(devices.checked, arguments | taken))
    strategy = devices.lightnings_strategy(arguments["strategy"], n_devices)
    callbacks = _validate.instances(arguments["callbacks"], Callback, "callbacks")
    logger, show = arguments["logger"], arguments["progress_bar"]
    if not isinstance(logger, bool):
        logger = _validate.instances(logger, Logger, "logger")
    return taken | {
        "precision": precision,
        "devices": used,
        "n_devices": n_devices,
        "strategy": strategy,
        "callbacks": callbacks,
        "logger": logger,
        "progress_bar": settings.verbosity > 0 if show is None else show,
    }
