"""Counts as the model reads them, and refusals of what is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scanpy_scvipyro import _lazy, _select
from scanpy_scvipyro._validate import did_you_mean

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

# How far a count may be from a whole number, in shares of itself: what float32 arithmetic leaves, on the way back from
# log counts for example.
_ROUNDING = 1e-6


def find(adata: AnnData, layer: str | None) -> tuple[Any, str]:
    """Return the matrix of counts, in memory or on disk, and its name in messages."""
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if layer is not None and layer not in adata.layers:
        there = did_you_mean(layer, filter(None, adata.layers))
        raise KeyError(f"layer={layer!r} is not in adata.layers. {there} {_where_counts_may_be(adata, where)}")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise ValueError(
            f"adata.X is empty; pass layer=, the name of the layer with counts. {_where_counts_may_be(adata, where)}"
        )
    is_in_memory = sparse.issparse(matrix) or isinstance(matrix, np.ndarray)
    if not is_in_memory and not _lazy.is_matrix_on_disk(matrix):
        msg = (
            f"{where} is a {type(matrix).__name__}; pass a numpy array or a scipy sparse matrix, or a file as "
            "ad.read_h5ad(path, backed='r') or ad.experimental.read_lazy(path) opens it."
        )
        raise TypeError(msg)
    if matrix.dtype.kind not in "iufb":
        raise TypeError(f"{where} holds values of type {matrix.dtype}; pass integer or float counts.")
    return matrix, where


def read_counts(
    adata: AnnData, matrix: Any, where: str, genes: NDArray[np.bool_] | NDArray[np.intp]
) -> sparse.csr_array:
    """Check the counts of the selected genes and read them as canonical CSR in float32; the user's stay as they are.

    Errors of rounding are taken out.
    """
    columns = _select.columns(genes, adata.n_vars)
    everything = isinstance(columns, slice)
    matrix = matrix if everything else matrix[:, columns]  # scipy copies also through a slice
    csr = checked(matrix, where, adata)
    refuse_empty(np.asarray(csr.sum(axis=1)).ravel(), where, adata, everything=everything)
    return csr


def checked(matrix: Any, where: str, adata: AnnData, first: int = 0) -> sparse.csr_array:
    """Refuse what is no count, and return the counts of cells, from the first on, as :func:`canonical` does."""
    csr = _as_csr(matrix)
    return canonical(csr, is_whole=_check_values(csr, where, adata, first))


def canonical(matrix: Any, *, is_whole: bool = False) -> sparse.csr_array:
    """Bring counts into the form of the model: float32, sorted, without zeros or errors of rounding."""
    csr = _as_csr(matrix)
    if not is_whole and csr.dtype.kind == "f":
        csr.data = np.rint(csr.data)
    # The likelihoods take stored values for counts above zero. Repeated entries are summed as float32, since their sum
    # may not fit a small integer type.
    is_canonical = csr.has_canonical_format and bool(csr.data.all())
    csr = csr.astype(np.float32, copy=not is_canonical)
    if not is_canonical:
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def refuse_empty(depth: NDArray[Any], where: str, adata: AnnData, *, everything: bool) -> None:
    """Refuse cells without counts."""
    empty = np.flatnonzero(depth == 0)
    if len(empty):
        scope = "" if everything else " in the selected genes"
        msg = (
            f"{len(empty)} of {adata.n_obs} cells have no counts{scope} in {where}, the first is "
            f"{adata.obs_names[empty[0]]!r}; remove them, for example with sc.pp.filter_cells(adata, min_counts=1)"
            + (", or select more genes." if scope else ".")
        )
        raise ValueError(msg)


def _as_csr(matrix: Any) -> sparse.csr_array:
    """Take the user's arrays as views where they can be; scipy.sparse does not know float16."""
    return sparse.csr_array(matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix)


def _check_values(csr: sparse.csr_array, where: str, adata: AnnData, first: int) -> bool:
    """Refuse what is no count, and say whether all are whole numbers to the last digit."""
    is_whole = True
    chunk = 1 << 22  # values at a time, so that the checks need little memory
    for start in range(0, len(csr.data), chunk):
        values = csr.data[start : start + chunk]
        if values.dtype.kind in "ub":
            break
        is_negative = values < -_ROUNDING
        for wrong, what in ((~np.isfinite(values), "NaN or infinite values"), (is_negative, "negative values")):
            if wrong.any():
                row, gene = _position(csr, start + int(np.argmax(wrong)))
                msg = (
                    f"{where} has {what}: {values[wrong][0]} in cell {adata.obs_names[first + row]!r} (column "
                    f"{gene} of the genes used); pass raw counts. {_where_counts_may_be(adata, where)}"
                )
                raise ValueError(msg)
        if values.dtype.kind == "f":
            error = _rounding_error(values)
            wrong = error > _ROUNDING
            if wrong.any():
                msg = (
                    f"{where} has values that are not whole numbers, for example {values[wrong][0]!s}; it looks like "
                    f"normalized data. The model needs raw counts. {_where_counts_may_be(adata, where)}"
                )
                raise ValueError(msg)
            is_whole = is_whole and not error.any()
    return is_whole


def _rounding_error(values: NDArray[Any]) -> NDArray[Any]:
    """Distance from the nearest whole number, in shares of the value where it is above one."""
    return np.abs(values - np.rint(values)) / np.maximum(values, 1)


def _position(csr: sparse.csr_array, k: int) -> tuple[int, int]:
    return int(np.searchsorted(csr.indptr, k, side="right")) - 1, int(csr.indices[k])


def _where_counts_may_be(adata: AnnData, where: str) -> str:
    """Point to matrices whose first values are whole numbers, other than the one that was refused."""
    candidates = {"adata.X": (adata.X, "adata.X")}
    candidates |= {
        f"adata.layers[{name!r}]": (matrix, f"layer={name!r}")
        for name, matrix in adata.layers.items()
        if name  # anndata 0.13: None is X
    }
    if adata.raw is not None and not _lazy.is_on_disk(adata):
        copied = "adata.raw (take them by adata.layers['counts'] = adata.raw[:, adata.var_names].X)"
        candidates["adata.raw"] = (adata.raw.X, copied)
    candidates.pop(where, None)
    found = [name for matrix, name in candidates.values() if matrix is not None and _is_whole(matrix)]
    if found:
        return f"Whole numbers are in: {', '.join(found)}. For a model that is trained already, put them into {where}."
    return "Keep them before normalizing: adata.layers['counts'] = adata.X.copy(), then pass layer='counts'."


def _is_whole(matrix: Any) -> bool:
    matrix = _lazy.in_memory(matrix[:100])
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix).ravel()
    if values.dtype.kind not in "iufb" or not len(values) or not np.isfinite(values).all():
        return False
    return bool(((values >= -_ROUNDING) & (_rounding_error(values) <= _ROUNDING)).all())
