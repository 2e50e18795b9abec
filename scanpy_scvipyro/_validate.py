"""Checks of what users pass: each refusal says what was wrong, what was found, and what to do."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from scanpy_scvipyro import _lazy, _machine, _names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

T = TypeVar("T")

# Smallest and largest allowed value, and whether only whole numbers are.
_BOUNDS: dict[str, tuple[float, float, bool]] = {
    "n_latent": (1, math.inf, True),
    "n_hidden": (1, math.inf, True),
    "n_layers": (1, math.inf, True),
    "n_batch_embedding": (1, math.inf, True),
    "n_prior_components": (1, math.inf, True),
    "dropout_rate": (0, 0.99, False),
    "batch_offset": (0, 1, False),
    "batch_alignment": (0, math.inf, False),
    "max_epochs": (1, math.inf, True),
    "batch_size": (2, math.inf, True),
    "train_size": (0.01, 1, False),
    "learning_rate": (1e-8, 1, False),
    "kl_weight": (0, 100, False),
    "n_epochs_kl_warmup": (0, math.inf, True),
    "early_stopping_patience": (1, math.inf, True),
    "num_nodes": (1, math.inf, True),
    "random_state": (0, 2**32 - 1, True),
    "n_samples": (1, math.inf, True),
    "n_genes": (1, math.inf, True),
    "n_neighbors": (5, math.inf, True),
    "max_cells": (20, math.inf, True),
    "delta": (0, math.inf, False),
    "max_novelty": (0, 1, False),
    "pseudocounts": (0, math.inf, False),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "gene_likelihood": ("nb", "zinb", "poisson"),
    "dispersion": ("gene", "gene-batch", "gene-label", "gene-cell"),
    "library": ("observed", "latent"),
    "encoder_input": ("log_normalized", "log_counts"),
    "activation": ("relu", "gelu", "silu", "leaky_relu", "tanh"),
    "encoder_normalization": ("batch", "layer", "none"),
    "decoder_normalization": ("batch", "layer", "none"),
    "batch_representation": ("one-hot", "embedding", "offset"),
    "decoder": ("nonlinear", "linear"),
    "prior": ("normal", "mixture"),
    "missing_genes": ("refuse", "impute"),
}
# None stands for what is worked out later, or for what is left out.
_MAY_BE_NONE = {
    "max_epochs",
    "n_epochs_kl_warmup",
    "batch_offset",
    "delta",
    "pseudocounts",
    "max_novelty",
    "key_added",
}


def choices(argument: str) -> tuple[str, ...]:
    """Values of an argument that takes one of a few names; none for other arguments."""
    return _CHOICES.get(argument, ())


def did_you_mean(name: object, existing: Iterable[object]) -> str:
    """Hint at the existing name nearest to a missing one, then the names there are."""
    names = [str(n) for n in existing]
    lower = {n.lower(): n for n in reversed(names)}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.6)
    hint = f"Did you mean {lower[close[0]]!r}? " if close else ""
    listed = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    return f"{hint}There is: {listed or 'nothing'}."


def check_arguments(arguments: Mapping[str, object], *, may_be_none: Iterable[str] = ()) -> None:
    """Refuse values out of range, unknown choices and bad names."""
    for name, value in arguments.items():
        if value is None and name in {*_MAY_BE_NONE, *may_be_none}:
            continue
        if name == "key_added":
            check_key_added(value)
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name}={value!r} is not a choice. {did_you_mean(value, _CHOICES[name])}")
        if name in _BOUNDS:
            low, high, whole = _BOUNDS[name]
            fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
            if not fits or not low <= float(value) <= high:  # type: ignore[arg-type]
                span = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
                what = "a whole number" if whole else "a number"
                raise ValueError(f"{name}={value!r} was passed; pass {what} {span}.")


def check_adata(adata: object, *, min_cells: int = 2, on_disk: bool = False) -> None:
    """Refuse what is not an AnnData with some cells, two of them to fit a model, and at least one gene.

    Cells may be in a file where the function can read them from there, ``on_disk``.
    """
    if not isinstance(adata, AnnData):
        msg = (
            f"adata is a {type(adata).__name__}, not an AnnData; wrap a count matrix as anndata.AnnData(counts), read "
            "a file with scanpy.read_h5ad(path), or several as one with "
            "anndata.concat([anndata.experimental.read_lazy(path) for path in paths])."
        )
        raise TypeError(msg)
    if not on_disk and _lazy.is_on_disk(adata):
        raise ValueError("the cells of adata are on disk; read them into memory first: adata = adata.to_memory().")
    if adata.isbacked and adata.is_view:
        msg = (
            "adata is a part of a backed AnnData, which holds no results; read it into memory: adata.to_memory(), or "
            "open the file by anndata.experimental.read_lazy(path), whose parts can be used."
        )
        raise ValueError(msg)
    if adata.n_obs < min_cells:
        needed = {1: "one is needed", 2: "two are needed"}.get(min_cells, f"{min_cells} are needed")
        raise ValueError(f"adata has {adata.n_obs} cell{'s' * (adata.n_obs != 1)}; at least {needed}.")
    if adata.n_vars < 1:
        raise ValueError("adata has no genes; pass the counts of at least one.")


def check_imputed_fits(adata: AnnData, instead: str, n_layers: int = 1) -> None:
    """Refuse imputed layers where the cells are on disk, or that would not fit in the free memory."""
    if _lazy.is_on_disk(adata):
        msg = f"the cells of adata are on disk, and the imputed layer would be in memory; {instead}"
        raise ValueError(msg)
    check_memory(4 * adata.n_obs * adata.n_vars * n_layers, "the imputed layer", instead)


def check_key_added(key_added: object) -> None:
    """Refuse names of results that cannot be written to a file."""
    if not is_storable(key_added):
        msg = f"key_added={key_added!r} was passed; pass a name without '/' that files can store, such as 'my_model'."
        raise ValueError(msg)


def check_spares_counts(key_added: str | None, layer: str | None) -> None:
    """Refuse a layer of results that would take the place of the counts."""
    if layer is not None and key_added == layer:
        raise ValueError(f"key_added={key_added!r} is the layer of counts that the model reads; pass another name.")


def is_storable(name: object) -> bool:
    """Whether HDF5 files, and zarr stores, whose entries are folders, can hold an entry of this name."""
    if not isinstance(name, str) or len(name.encode(errors="replace")) > 200:  # with a suffix, folders have up to 255
        return False
    is_path = name in {"", ".", ".."} or bool(set(name) & set("/\\\0"))
    is_of_zarr = name == "zarr.json" or name.startswith(".z")
    return not is_path and not is_of_zarr and name == name.encode(errors="ignore").decode()


def aligned(mask: Any, names: pd.Index, argument: str) -> Any:
    """Take a mask in the order of the names: a Series says by its index whose its values are."""
    if not isinstance(mask, pd.Series) or len(mask) != len(names) or isinstance(mask.index, pd.RangeIndex):
        return mask
    if mask.index.equals(names):
        return mask
    if not names.is_unique or set(mask.index) != set(names):
        msg = (
            f"{argument} is a Series whose index has other names than adata, for example {mask.index[0]!r}; pass one "
            "with the names of adata, or .to_numpy() if it has their order."
        )
        raise ValueError(msg)
    return mask.reindex(names)


def gene_mask(adata: AnnData, mask_var: NDArray[np.bool_] | str | None) -> NDArray[np.bool_]:
    """Boolean mask of the genes to model, (n_vars,)."""
    if mask_var is None:
        return np.ones(adata.n_vars, dtype=bool)
    if isinstance(mask_var, str):
        if mask_var not in adata.var:
            raise KeyError(f"mask_var={mask_var!r} is not in adata.var. {did_you_mean(mask_var, adata.var)}")
        mask = _lazy.column(adata.var, mask_var).to_numpy()
    else:
        mask = np.asarray(aligned(mask_var, adata.var_names, "mask_var"))
    if mask.dtype != bool:
        msg = (
            f"mask_var holds values of type {mask.dtype}; pass True for each gene to model, else False. A list of "
            "names becomes that by adata.var_names.isin(names)."
        )
        raise ValueError(msg)
    if mask.shape != (adata.n_vars,):
        raise ValueError(f"mask_var has shape {mask.shape}; adata has {adata.n_vars} genes, pass one value for each.")
    if not mask.any():
        raise ValueError("mask_var selects no genes; select at least one.")
    if not mask.all() and not adata.var_names.is_unique:
        raise ValueError(
            "adata.var_names has duplicates, so the genes of mask_var could not be found again by name; call "
            "adata.var_names_make_unique() before training."
        )
    return mask


def check_obs_key(adata: AnnData, key: str, argument: str) -> None:
    """Refuse what is not the name of one column of adata.obs."""
    if not isinstance(key, str):
        further = ", or pass further ones as categorical_covariate_keys=" if argument == "batch_key" else ""
        msg = f"{argument}={key!r} is not the name of a column of adata.obs; of several, make one that joins them"
        raise TypeError(f"{msg}{further}.")
    if key not in adata.obs:
        raise KeyError(f"{argument}={key!r} is not in adata.obs. {did_you_mean(key, adata.obs)}")
    if not isinstance(_lazy.column(adata.obs, key), pd.Series):
        n_columns = (adata.obs.columns == key).sum()
        raise ValueError(f"{argument}={key!r} names {n_columns} columns of adata.obs; rename or drop all but one.")


def obs_column(adata: AnnData, key: str, argument: str) -> pd.Series:
    """Column of adata.obs without missing values."""
    check_obs_key(adata, key, argument)
    column = _lazy.column(adata.obs, key)
    n_missing = int(column.isna().sum())
    if n_missing:
        msg = (
            f"{argument}={key!r} has {n_missing} missing values, the first for cell "
            f"{adata.obs_names[np.argmax(column.isna())]!r}; fill them or leave these cells out."
        )
        raise ValueError(msg)
    return column


def obs_codes(
    adata: AnnData, key: str, argument: str, known: NDArray[np.str_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Codes of a categorical column and the categories that occur, or codes among the categories of a trained model."""
    column = _names.categories(obs_column(adata, key, argument), f"{argument}={key!r}")
    found = column.categories.to_numpy(dtype=str)
    if known is not None:
        codes = np.array(_names.positions(found, known.tolist()))
        if (codes < 0).any():
            raise ValueError(_unknown_categories(found.tolist(), known.tolist(), f"{argument}={key!r}"))
        return codes[column.codes], known
    if not is_storable(key):
        renamed = re.sub(r"[^\w -]", "_", key)[:100] or "unnamed"
        raise ValueError(
            f"{argument}={key!r} is a name with which files cannot store the model; rename the column: "
            f"adata.obs = adata.obs.rename(columns={{{key!r}: {renamed!r}}})."
        )
    _check_grouping(len(found), adata.n_obs, f"{argument}={key!r}")
    return column.codes.astype(np.int64), found


def new_categories(adata: AnnData, key: str, argument: str, known: NDArray[np.str_]) -> list[str]:
    """Categories of a column that a trained model does not know, in their order."""
    found = _names.categories(obs_column(adata, key, argument), f"{argument}={key!r}").categories
    new = [name for name, code in zip(found, _names.positions(found, known.tolist()), strict=True) if code < 0]
    _check_grouping(len(new), adata.n_obs, f"{argument}={key!r}")
    return new


def _check_grouping(n_groups: int, n_cells: int, what: str) -> None:
    if n_groups > n_cells / 2 >= 10:  # barcodes, or a measurement
        raise ValueError(
            f"{what} has {n_groups} different values for {n_cells} cells; pass a column that groups cells. "
            "Measurements belong into continuous_covariate_keys=."
        )


def _unknown_categories(found: list[str], known: list[str], what: str) -> str:
    """Name the categories that a model does not know, and those that may have had another name in training."""
    unknown = [name for name, code in zip(found, _names.positions(found, known), strict=True) if code < 0]
    msg = (
        f"{what} has categories that the model was not trained on: {', '.join(map(repr, unknown[:20]))}. "
        f"It knows: {', '.join(map(repr, known[:20]))}. Leave these cells out, or train on them."
    )
    if len(found) == len(known):
        renamed = [(new, old) for new, old in zip(found, known, strict=True) if new != old]
        if not {old for _, old in renamed} & set(found):  # the others stand where they stood
            pairs = ", ".join(f"{new!r} was {old!r}" for new, old in renamed[:5])
            msg += f" If they were renamed since ({pairs}), give them their old names."
    return msg


def obs_numbers(adata: AnnData, keys: Sequence[str], argument: str, *, positive: bool = False) -> NDArray[np.float64]:
    """Numeric columns of adata.obs, (n_obs, n_keys), all finite."""
    values = np.empty((adata.n_obs, len(keys)), dtype=np.float64)
    for i, key in enumerate(keys):
        column = obs_column(adata, key, argument)
        if not pd.api.types.is_numeric_dtype(column):
            msg = (
                f"{argument}={key!r} holds values of type {column.dtype}; it must be numeric. Convert numbers by "
                f"adata.obs[{key!r}].astype(float); names of groups belong into categorical_covariate_keys=."
            )
            raise ValueError(msg)
        values[:, i] = column.to_numpy(np.float64)
        limits = np.finfo(np.float32)  # in which the model computes
        if not ((values[:, i] >= (limits.tiny if positive else limits.min)) & (values[:, i] <= limits.max)).all():
            kind = "positive and finite" if positive else "finite"
            msg = f"{argument}={key!r} has values that are not {kind}; correct them or leave these cells out."
            raise ValueError(msg)
    return values


def keys_as_list(keys: Iterable[str] | str | None, argument: str) -> list[str]:
    """One key or several, as a list; each at most once."""
    listed = [] if keys is None else _names.listed(keys)
    if len(set(listed)) < len(listed):
        raise ValueError(f"{argument}={listed} names a key twice; pass each once.")
    return listed


def instances(value: Any, kind: type[T], argument: str) -> list[T]:
    """One instance of a class or several, as a list; none for None."""
    if value is None:
        return []
    listed = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    for part in listed:
        # By name, since users may have Lightning in its other package, lightning.pytorch, whose classes serve as well.
        if kind.__name__ not in {base.__name__ for base in type(part).__mro__}:
            is_class = isinstance(part, type)
            found = f"the class {part.__name__} itself" if is_class else repr(part)
            example = f"{part.__name__}(...)" if is_class else f"{argument}=[...]"
            msg = f"{argument} has {found}; pass an instance of a {kind.__name__}, or several in a list: {example}."
            raise TypeError(msg)
    return listed


def check_memory(n_bytes: int, what: str, instead: str) -> None:
    """Refuse results that would not fit in the free memory."""
    free = _machine.free_memory()
    if n_bytes > free:
        msg = f"{what} would take {n_bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free; {instead}"
        raise MemoryError(msg)
