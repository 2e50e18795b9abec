"""A trained model as plain arrays in ``adata.uns``, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scanpy_scvipyro import _stored
from scanpy_scvipyro.data import DataSpec
from scanpy_scvipyro.model import SCVI, reads_labels
from scanpy_scvipyro.scanvi import SCANVI

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

OURS = {cls.__name__: cls for cls in (SCVI, SCANVI)}
_KEYS = ("layer", "batch_key", "labels_key", "size_factor_key")
_KEY_LISTS = ("categorical_covariate_keys", "continuous_covariate_keys")


def to_uns(
    module: SCVI, spec: DataSpec, model_options: dict[str, Any], params: dict[str, Any], history: pd.DataFrame
) -> dict[str, Any]:
    """Parameters, history and weights in types that every AnnData file format stores."""
    keys = {name: getattr(spec, name) for name in (*_KEYS, *_KEY_LISTS)}
    stored: dict[str, Any] = {
        "params": _storable(keys | model_options | params),
        "history": history,
        "genes": spec.genes.astype(object),
        "categories": {key: names.astype(object) for key, names in spec.categories.items()},
        "module": type(module).__name__,
        "model_options": _storable(model_options),
        "weights": {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()},
    }
    if spec.standardization is not None:
        stored["standardization"] = spec.standardization
    if module.batch_embedding is not None and spec.batch_key is not None:
        batches = pd.Index(stored["categories"][spec.batch_key], name=spec.batch_key)
        vectors = stored["weights"]["batch_embedding.weight"].copy()
        stored["batch_embedding"] = pd.DataFrame(vectors, batches, [f"E_{i}" for i in range(vectors.shape[1])])
    return stored


def check_class(module: object, base: type[SCVI]) -> None:
    """Refuse what is no subclass; None stands for the class itself."""
    if module is None or (isinstance(module, type) and issubclass(module, base)):
        return
    found = f"the class {module.__name__}" if isinstance(module, type) else f"an instance of {type(module).__name__}"
    raise TypeError(f"module is {found}; pass {base.__name__}, or a class of your own that is a subclass of it.")


def from_uns(adata: AnnData, key: str, module: type[SCVI] | None = None) -> tuple[SCVI, DataSpec]:
    """Rebuild the module and what it reads from an AnnData."""
    stored = _stored.trained(adata, key)
    check_class(module, SCVI)
    module = module or OURS.get(stored["module"], SCVI)
    if stored["module"] != module.__name__:
        msg = (
            f"adata.uns[{key!r}] holds the weights of a {stored['module']}, not of {module.__name__}; "
            f"pass the class itself: module={stored['module']}."
        )
        raise ValueError(msg)
    known = spec(adata, key)
    options = {name: plain(value) for name, value in stored["model_options"].items()}
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
        live = module(len(known.genes), known.n_batches, **options).float()
    weights = {name: torch.tensor(np.asarray(value)) for name, value in stored["weights"].items()}
    if "offset" in live.state_dict() and "offset" not in weights and not live.has_leading_offset:
        _move_offsets(weights, known.n_batches)
    shapes, expected = ({name: w.shape for name, w in state.items()} for state in (weights, live.state_dict()))
    if unfit := sorted(dict(shapes.items() ^ expected.items())):
        msg = (
            f"adata.uns[{key!r}] holds weights that do not fit a {module.__name__} with its options, {unfit[0]!r} for "
            "one: the class or the options have changed since it was trained. Train it anew."
        )
        raise ValueError(msg)
    live.load_state_dict(weights)
    return live.eval(), known


def _move_offsets(weights: dict[str, torch.Tensor], n_batches: int) -> None:
    """Take the offsets of batches from the last columns of the decoder's weights, where they once were."""
    weights["decoder.rate.weight"], offset = weights["decoder.rate.weight"].tensor_split([-n_batches], dim=1)
    weights["offset"] = offset.T


def spec(adata: AnnData, key: str) -> DataSpec:
    """Rebuild what the model reads from an AnnData."""
    stored = _stored.trained(adata, key)
    params: dict[str, Any] = dict(stored["params"])
    if "labels" in stored or not reads_labels(stored["module"], stored["model_options"]):
        params.pop("labels_key", None)
    return DataSpec(
        **{name: params.get(name) for name in _KEYS},  # type: ignore[arg-type]
        **{name: tuple(map(str, params.get(name, ()))) for name in _KEY_LISTS},  # type: ignore[arg-type]
        genes=_strings(stored["genes"]),
        categories={name: _strings(values) for name, values in stored["categories"].items()},
        standardization=stored.get("standardization"),
    )


def _storable(options: dict[str, Any]) -> dict[str, Any]:
    """None and empty sequences are left out, which not every file format has; sequences become arrays."""
    stored = {}
    for name, value in options.items():
        if isinstance(value, list | tuple):
            value = np.asarray(value, dtype=object if value and isinstance(value[0], str) else None)
        if value is not None and np.size(value):
            stored[name] = value
    return stored


def _strings(values: NDArray[Any]) -> NDArray[np.str_]:
    """Strings as files give them back: of type object, or numpy's StringDType, which does not cast to str."""
    return np.array([str(value) for value in values], dtype=str)


def plain(value: Any) -> Any:
    """Numpy scalars, as files give them back, to Python's."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
