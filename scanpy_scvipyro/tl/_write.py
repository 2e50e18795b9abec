from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scanpy_scvipyro import posterior, storage

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData, DataSpec
    from scanpy_scvipyro.model import SCVI


def write_results(
    adata: AnnData,
    module: SCVI,
    cell_data: CellData,
    spec: DataSpec,
    genes: NDArray[np.bool_] | NDArray[np.intp],
    *,
    model_options: dict[str, Any],
    params: dict[str, Any],
    history: pd.DataFrame,
    impute: bool,
    key_added: str,
) -> str:
    """Write what a trained model says of its cells, and the model itself; return the log of what was added.

    ``genes`` says where the modelled genes stand in ``adata.var``, as a mask or as positions.
    """
    latent = posterior.latent_codes(module, cell_data)[0]
    imputed = posterior.expected_counts(module, cell_data, latent, genes, adata.n_vars) if impute else None
    is_linear = model_options["decoder"] == "linear"
    loadings = posterior.loadings(module, adata.var_names, genes) if is_linear else None
    stored = storage.to_uns(module, spec, model_options, params, history)
    if module.batch_embedding is not None:
        batches = pd.Index(stored["categories"][spec.batch_key], name=spec.batch_key)
        stored["batch_embedding"] = posterior.batch_embedding(module.batch_embedding, batches)

    # Nothing is attached before everything has been computed, so that a failure leaves adata as it was. What an earlier
    # model left under the same key is not of this one.
    adata.layers.pop(f"{key_added}_imputed", None)
    adata.varm.pop(f"{key_added}_loadings", None)
    adata.obsm[f"X_{key_added}"] = latent
    added = f"added\n    'X_{key_added}', latent codes (adata.obsm)\n"
    if imputed is not None:
        adata.layers[f"{key_added}_imputed"] = imputed
        added += f"    '{key_added}_imputed', expected counts (adata.layers)\n"
    if loadings is not None:
        adata.varm[f"{key_added}_loadings"] = loadings
        added += f"    '{key_added}_loadings', loadings of the genes (adata.varm)\n"
    adata.uns[key_added] = stored
    return added + f"    '{key_added}', parameters, history and weights (adata.uns)"
