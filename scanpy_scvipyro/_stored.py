"""A trained model in ``adata.uns``: is it there, and in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from scanpy_scvipyro import _lazy
from scanpy_scvipyro._validate import did_you_mean

_PARTS = {"params", "history", "genes", "module", "model_options", "weights"}
_DICTIONARIES = ("params", "categories", "model_options", "weights", "labels")
_LOST = (
    "ad.concat keeps a model only with uns_merge='same', where all have the same one. Map the cells onto a model anew: "
    "tl.map_query(adata, one_that_has_it)."
)


def trained(adata: AnnData, key: str) -> dict[str, Any]:
    """Return the stored parts of a trained model, or say which models there are."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata is a {type(adata).__name__}; pass the AnnData that holds the trained model.")
    if not isinstance(key, str):
        raise TypeError(f"key={key!r} was passed; pass the name of one model, such as 'scvi_pyro'.")
    models = names(adata)
    if key in models:
        return {"categories": {}} | _lazy.in_memory(adata.uns[key])  # ad.concat drops empty dictionaries
    found, hint = adata.uns.get(key), did_you_mean(key, models)
    if isinstance(found, dict) and len(_PARTS & set(found)) > 1:
        what = ", ".join(faults(found)[:5])
        raise KeyError(f"key={key!r}: adata.uns[{key!r}] is not one model any more, it has {what}. {_LOST} {hint}")
    if found is None and f"X_{key}" in adata.obsm:
        raise KeyError(f"key={key!r}: adata.obsm has 'X_{key}', but adata.uns has no model {key!r}. {_LOST} {hint}")
    wrong = "is not in adata.uns" if found is None else "is in adata.uns, but is no trained model"
    raise KeyError(f"key={key!r} {wrong}; train a model first: tl.scvi_pyro(adata). {hint}")


def names(adata: AnnData) -> list[str]:
    """Names of the models."""
    return [name for name, value in adata.uns.items() if isinstance(value, dict) and not faults(value)]


def whole(stored: dict[str, Any]) -> dict[str, Any]:
    """Add the names of all entries of a model, which show later whether it is still in one piece."""
    return stored | {"entries": np.array(_entries(stored), dtype=object)}


def faults(stored: dict[str, Any]) -> list[str]:
    """Name what a stored model has lost, or got from another one; nothing where it is whole."""
    missing = _PARTS - set(stored)
    if missing or "entries" not in stored:  # as models of version 0.1, which list none
        return [f"no {name!r}" for name in sorted(missing)]
    there, written = set(_entries(stored)), {str(name) for name in _lazy.in_memory(stored["entries"])}
    return [f"no {name!r}" for name in sorted(written - there)] + [
        f"{name!r} of another model" for name in sorted(there - written)
    ]


def _entries(stored: dict[str, Any]) -> list[str]:
    return [f"{part}/{name}" for part in _DICTIONARIES for name in stored.get(part, ())]
