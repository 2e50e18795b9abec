"""What a model writes into an AnnData under its key, and what of an earlier model it takes away."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pandas as pd

from scanpy_scvipyro import _lazy, _stored, labels, posterior

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.labels import Predicted
    from scanpy_scvipyro.model import SCVI

# By field, the names of all that functions of tl write under the key of a model, {}, if they are given no other.
_RESULTS = {
    "obs": r"{}_(elbo|reconstruction|kl|log_likelihood|uncertainty|probability|novelty|da_lfc|da_fdr)",
    "obsm": r"X_{0}(_var|_samples)?|{0}_probabilities",
    "layers": r"{}_(imputed(_q[\d.e-]+)?|simulated)",
    "varm": r"{}_loadings",
    "uns": r"(rank_genes_groups_)?{0}|{0}_da",
}


def remove_results(adata: AnnData, key: str) -> None:
    """Remove the model of this key, and what has been written of it: all of it belongs to this model alone."""
    if "labels" in adata.uns.get(key, ()) and key in adata.obs:
        _lazy.drop_columns(adata, [key])
    for field, pattern in _RESULTS.items():
        names = [name for name in getattr(adata, field) if re.fullmatch(pattern.format(re.escape(key)), str(name))]
        if field == "obs":
            _lazy.drop_columns(adata, names)
        else:
            for name in names:
                del getattr(adata, field)[name]


def write_results(
    adata: AnnData,
    module: SCVI,
    cell_data: CellData,
    genes: NDArray[np.bool_] | NDArray[np.intp],
    stored: dict[str, Any],
    *,
    impute: bool,
    key_added: str,
) -> str:
    """Write what a trained model says of its cells, and the model itself; return the log of what was added.

    ``genes`` says where the modelled genes stand in ``adata.var``, as a mask or as positions; ``stored`` is the model
    as :func:`scanpy_scvipyro.storage.to_uns` returns it.
    """
    latent = posterior.latent_codes(module, cell_data)[0]
    imputed = posterior.expected_counts(module, cell_data, latent, genes, adata.n_vars) if impute else None
    is_linear = stored["model_options"]["decoder"] == "linear"
    loadings = posterior.loadings(module, adata.var_names, genes) if is_linear else None
    predicted = labels.predict(module, cell_data, stored["labels"]) if "labels" in stored else None

    # Nothing is changed before everything has been computed, so that a failure leaves adata as it was.
    remove_results(adata, key_added)
    adata.obsm[f"X_{key_added}"] = latent
    added = f"added\n    'X_{key_added}', latent codes (adata.obsm)\n"
    if imputed is not None:
        adata.layers[f"{key_added}_imputed"] = imputed
        added += f"    '{key_added}_imputed', expected counts (adata.layers)\n"
    if loadings is not None:
        adata.varm[f"{key_added}_loadings"] = loadings
        added += f"    '{key_added}_loadings', loadings of the genes (adata.varm)\n"
    if predicted is not None:
        _write_labels(adata, predicted, key_added)
        added += (
            f"    '{key_added}', '{key_added}_probability' and '{key_added}_novelty', predicted labels (adata.obs)\n"
            f"    '{key_added}_probabilities', of all labels (adata.obsm)\n"
        )
    adata.uns[key_added] = _stored.whole(stored)
    return added + f"    '{key_added}', parameters, history and weights (adata.uns)"


def _write_labels(adata: AnnData, predicted: Predicted, key_added: str) -> None:
    columns = {
        key_added: pd.Categorical.from_codes(predicted.codes, pd.Index(predicted.categories)),
        f"{key_added}_probability": predicted.probabilities.max(axis=1),
        f"{key_added}_novelty": predicted.novelty,
    }
    _lazy.write_columns(adata, columns)
    # Files do not store columns with a '/' in their names.
    names = [name.replace("/", "|") for name in predicted.categories[: predicted.probabilities.shape[1]]]
    adata.obsm[f"{key_added}_probabilities"] = pd.DataFrame(predicted.probabilities, adata.obs_names, names)
