"""A model trained by scvi-tools as a model of this package, with the same weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from scanpy_scvipyro import _validate, surgery
from scanpy_scvipyro._names import categories, positions, text
from scanpy_scvipyro.data import DataSpec
from scanpy_scvipyro.labels import Given
from scanpy_scvipyro.model import SCVI, reads_labels
from scanpy_scvipyro.scanvi import SCANVI

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

# Beginnings of names in the state of scvi-tools' module, and in ours.
_RENAMED = {
    "z_encoder.encoder.fc_layers.Layer ": "encoder.hidden.layers.",
    "z_encoder.mean_encoder.": "encoder.loc.",
    "z_encoder.var_encoder.": "encoder.log_variance.",
    "l_encoder.encoder.fc_layers.Layer ": "library_encoder.hidden.layers.",
    "l_encoder.mean_encoder.": "library_encoder.loc.",
    "l_encoder.var_encoder.": "library_encoder.log_variance.",
    "decoder.px_decoder.fc_layers.Layer ": "decoder.hidden.layers.",
    "decoder.px_scale_decoder.0.": "decoder.rate.",
    "decoder.px_dropout_decoder.": "decoder.dropout_logits.",
    "decoder.px_r_decoder.": "decoder.log_inverse_dispersion.",
    "_embeddings_dict.batch.": "batch_embedding.",
    "classifier.classifier.0.fc_layers.Layer ": "classifier_hidden.layers.",
}


class Converted(NamedTuple):
    """What it takes to write a model into an AnnData."""

    module: SCVI
    spec: DataSpec
    model_options: dict[str, Any]
    labels_key: str | None
    """Column with labels, which the model need not read."""
    history: pd.DataFrame
    labels: NDArray[np.str_] | None
    """Names of the labels that a SCANVI predicts."""


def convert(peer: Any) -> Converted:
    """Build our module from a trained model of scvi-tools: ``SCVI``, ``LinearSCVI`` or ``SCANVI``.

    The densities of labels of a SCANVI are those of ours to find (:meth:`SCANVI.start_densities`): scvi-tools has a
    second latent code in their place.
    """
    _refuse(peer)
    labels_key = peer.registry["setup_args"]["labels_key"]
    spec = _spec(peer.registry)
    labels = _labels(peer)
    if labels is not None or not reads_labels("SCVI", vars(peer.module)):
        spec = replace(spec, labels_key=None)
    options = _model_options(peer, spec)
    kind: type[SCVI] = SCVI
    if labels is not None:
        kind = SCANVI
        options |= {"n_labels": len(labels), "n_prior_components": 1, "n_classifier_layers": _n_layers(peer.module)}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
        module = kind(len(spec.genes), spec.n_batches, **options)
    start, weights = module.state_dict(), _weights(peer.module)
    if labels is not None:
        weights |= {name: value for name, value in start.items() if name.startswith(("prior_", "classification_"))}
    module.load_state_dict({name: _widened(weights[name], value) for name, value in start.items()})
    keys = [key for key in (spec.batch_key, spec.labels_key, *spec.categorical_covariate_keys) if key is not None]
    if unused := {key: names for key in keys if (names := _unused(peer, key))}:
        seen = {key: names[~np.isin(names, [*unused.get(key, ())])] for key, names in spec.categories.items()}
        everything, spec = spec, replace(spec, categories=seen)
        options["n_categories"] = spec.n_categories
        if spec.labels_key is not None:
            options["n_labels"] = spec.n_labels
        module = surgery.shrink(module, everything, spec, options)
    return Converted(module.eval(), spec, options, labels_key, _history(peer.history or {}), labels)


def given_labels(adata: AnnData, converted: Converted) -> Given:
    """Labels of the cells, as a SCANVI of scvi-tools numbers them."""
    assert converted.labels is not None
    key, names = str(converted.labels_key), converted.labels
    _validate.check_obs_key(adata, key, "labels_key of the model")
    column = categories(adata.obs[key], f"adata.obs[{key!r}]")
    codes = np.array([*positions(column.categories, names.tolist()), -1])
    given = Given(key, names, codes[column.codes] + 1)
    if missing := given.unlearnt(np.array([], dtype=np.intp)):
        msg = (
            f"adata.obs[{key!r}] has no cell of {', '.join(map(repr, missing))}, which the model knows; pass the "
            "AnnData that it was trained on."
        )
        raise ValueError(msg)
    return given


def _unused(peer: Any, key: str | None) -> set[str]:
    """Names of categories that a column lists and no cell has: their weights have never been trained.

    After surgery by scvi-tools, the cells are those of the query, whose column does not list what the reference had.
    """
    if key is None or peer.adata is None or key not in peer.adata.obs:
        return set()
    n_cells = peer.adata.obs[key].value_counts()
    return {text(name) for name in n_cells.index[n_cells == 0]}


def _labels(peer: Any) -> NDArray[np.str_] | None:
    """Names of the labels in the order of the classifier, without that of unlabelled cells."""
    if type(peer).__name__ != "SCANVI":
        return None
    names = peer.registry["field_registries"]["labels"]["state_registry"]["categorical_mapping"]
    return np.array([text(name) for name in names[: peer.module.n_labels]])


def _n_layers(module: Any) -> int:
    """Hidden layers of the classifier."""
    return len(module.classifier.classifier[0].fc_layers) if len(module.classifier.classifier) > 1 else 0


def _refuse(peer: Any) -> None:
    """Refuse other models, untrained ones, and options that have no equal here."""
    name = type(peer).__name__
    if name not in ("SCVI", "LinearSCVI", "SCANVI") or not type(peer).__module__.startswith("scvi."):
        raise TypeError(f"model is a {name}; pass a trained scvi.model.SCVI, LinearSCVI or SCANVI.")
    if not peer.is_trained:
        raise ValueError("model has not been trained; call model.train() first.")
    arguments, module = _arguments(peer), peer.module
    embedding_arguments = set(arguments.get("batch_embedding_kwargs") or ())
    unsupported = {
        "gene_likelihood='normal'": module.gene_likelihood == "normal",
        "latent_distribution='ln'": module.latent_distribution == "ln",
        "log_variational=False": not module.log_variational,
        "size_factor_key (through a softplus)": module.use_size_factor_key,
        "use_batch_norm and use_layer_norm in one network": None in _normalizations(arguments),
        "batch_representation='embedding' of a single batch": bool(module.embeddings_dict)
        and module.n_batch - len(_unused(peer, peer.registry["setup_args"]["batch_key"])) == 1,
        "batch_embedding_kwargs": not embedding_arguments <= {"embedding_dim"},
        "var_activation": bool(arguments.get("var_activation")),
        "extra_encoder_kwargs": bool(arguments.get("extra_encoder_kwargs")),
        "extra_decoder_kwargs": bool(arguments.get("extra_decoder_kwargs")),
        "dispersion='gene-label' of unlabelled cells": name == "SCANVI" and module.dispersion == "gene-label",
        "classifier_parameters": bool(arguments.get("classifier_parameters")),
        "labels_groups": bool(arguments.get("use_labels_groups")),
    }
    used = [option for option, is_used in unsupported.items() if is_used]
    if used:
        msg = (
            f"the scvi-tools model was built with {', '.join(used)}, which this package does not have; "
            "convert a model without it, or train one with tl.scvi_pyro."
        )
        raise ValueError(msg)


def _arguments(peer: Any) -> dict[str, Any]:
    """Arguments that the model was built with; defaults of scvi-tools' module are not among them."""
    passed = peer.init_params_
    return passed["non_kwargs"] | {name: value for more in passed["kwargs"].values() for name, value in more.items()}


def _normalizations(arguments: dict[str, Any]) -> list[str | None]:
    """Name the normalization in encoder and decoder; None where there are two."""
    batch, layer = arguments.get("use_batch_norm", "both"), arguments.get("use_layer_norm", "none")
    names = {(False, False): "none", (True, False): "batch", (False, True): "layer"}
    return [names.get((batch in ("both", network), layer in ("both", network))) for network in ("encoder", "decoder")]


def _spec(registry: Mapping[str, Any]) -> DataSpec:
    """Keys, genes and categories, in the order of the weights."""
    keys = registry["setup_args"]
    fields = {name: field["state_registry"] for name, field in registry["field_registries"].items()}
    categorical = list(keys.get("categorical_covariate_keys") or ())
    categories = {key: fields["extra_categorical_covs"]["mappings"][key] for key in categorical}
    for name, key in (("batch", keys["batch_key"]), ("labels", keys["labels_key"])):
        if key is not None:
            categories[key] = fields[name]["categorical_mapping"]
    return DataSpec(
        layer=keys["layer"],
        batch_key=keys["batch_key"],
        labels_key=keys["labels_key"],
        categorical_covariate_keys=categorical,
        continuous_covariate_keys=list(keys.get("continuous_covariate_keys") or ()),
        genes=np.asarray(fields["X"]["column_names"], dtype=str),
        categories={key: np.array([text(name) for name in names], dtype=str) for key, names in categories.items()},
    )


def _model_options(peer: Any, spec: DataSpec) -> dict[str, Any]:
    """Arguments of :class:`SCVI`; the batch offset is left out, which scvi-tools does not have."""
    module, arguments = peer.module, _arguments(peer)
    is_linear = type(peer).__name__ == "LinearSCVI"
    # LinearSCVI has batch normalization in its encoder in any case, and shows it no covariates.
    encoder, decoder = ("batch", "none") if is_linear else _normalizations(arguments)
    options = {
        "n_latent": module.n_latent,
        "n_hidden": module.n_hidden,
        "n_layers": module.n_layers,
        "dropout_rate": arguments["dropout_rate"],
        "encoder_normalization": encoder,
        "decoder_normalization": decoder,
        "gene_likelihood": module.gene_likelihood,
        "dispersion": module.dispersion,
        "library": "observed" if module.use_observed_lib_size else "latent",
        "encode_covariates": module.encode_covariates and not is_linear,
        "deeply_inject_covariates": arguments.get("deeply_inject_covariates", True),
        "batch_representation": module.batch_representation,
        "has_batch_offset": False,
        "decoder": "linear" if is_linear else "nonlinear",
        "n_labels": spec.n_labels,
        "n_categories": spec.n_categories,
        "n_continuous": len(spec.continuous_covariate_keys),
    }
    if module.embeddings_dict:
        options["n_batch_embedding"] = module.embeddings_dict["batch"].embedding_dim
    return options


def _weights(peer: Any) -> dict[str, Tensor]:
    """State of scvi-tools' module under the names of ours; some of it is not used by either."""
    weights = {}
    for name, value in peer.state_dict().items():
        for old, new in _RENAMED.items():
            if name.startswith(old):
                weights[new + name.removeprefix(old)] = value.cpu()
    if hasattr(peer.decoder, "factor_regressor"):
        weights |= _folded("decoder.rate", peer.decoder.factor_regressor)
        weights |= _folded("decoder.dropout_logits", peer.decoder.px_dropout_decoder)
    if hasattr(peer, "classifier"):
        logits = peer.classifier.classifier[-1]
        assert isinstance(logits, torch.nn.Linear), "older versions end in a softmax"
        weights |= {f"classifier_logits.{name}": value.cpu() for name, value in logits.state_dict().items()}
    if hasattr(peer, "px_r"):
        weights["log_inverse_dispersion"] = peer.px_r.detach().cpu().T  # genes first there, last here
    if hasattr(peer, "library_log_means"):
        weights["library_loc"] = peer.library_log_means.cpu().T
        weights["library_scale"] = peer.library_log_vars.cpu().T.sqrt()
    return weights


@torch.no_grad()
def _folded(name: str, network: Any) -> dict[str, Tensor]:
    """Linear map and the batch normalization after it as one linear map, which they are once trained."""
    linear, normalization = network.fc_layers[0][:2]
    weight = linear.weight.cpu()
    bias = torch.zeros(len(weight)) if linear.bias is None else linear.bias.cpu()
    if normalization is not None:
        scale = (normalization.weight / (normalization.running_var + normalization.eps).sqrt()).cpu()
        weight = weight * scale[:, None]
        bias = (bias - normalization.running_mean.cpu()) * scale + normalization.bias.cpu()
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _widened(weight: Tensor, start: Tensor) -> Tensor:
    """Add columns of zeros where deeper layers of ours see covariates that those of scvi-tools do not.

    These are the first ones after the hidden units: continuous covariates, and the embedding of the batch.
    """
    if weight.ndim < 2 or weight.shape == start.shape:
        return weight
    n_hidden = len(weight)
    zeros = weight.new_zeros(n_hidden, start.shape[1] - weight.shape[1])
    return torch.cat([weight[:, :n_hidden], zeros, weight[:, n_hidden:]], dim=1)


def _history(history: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Training history with our names and signs, epochs from 1; NaN for epochs without validation."""
    columns = {}
    for part in ("train", "validation"):
        names = {"elbo": (-1, "elbo"), "reconstruction": (-1, "reconstruction_loss"), "kl": (1, "kl_local")}
        for ours, (sign, theirs) in names.items():
            if f"{theirs}_{part}" in history:
                columns[f"{part}_{ours}"] = sign * history[f"{theirs}_{part}"].iloc[:, 0]
    if "kl_weight" in history:
        columns["kl_weight"] = history["kl_weight"].iloc[:, 0]
    table = pd.DataFrame(columns).astype(np.float64)
    table.index = pd.RangeIndex(1, len(table) + 1, name="epoch")
    return table
