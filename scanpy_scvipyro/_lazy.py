"""AnnData whose parts are on disk: what is read of them, and how results get into them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData


def is_on_disk(adata: AnnData) -> bool:
    """Whether the cells are in a file: opened with ``backed=``, or by ``read_lazy``."""
    return bool(adata.isbacked) or not isinstance(adata.obs, pd.DataFrame) or is_matrix_on_disk(adata.X)


def is_matrix_on_disk(matrix: Any) -> bool:
    """Whether it is neither in memory nor absent, but something of which rows can be read."""
    return not (matrix is None or sparse.issparse(matrix) or isinstance(matrix, np.ndarray)) and (
        isinstance(matrix, CSRDataset | CSCDataset) or is_dask(matrix) or hasattr(matrix, "chunks")  # h5py, zarr
    )


def is_dask(value: Any) -> bool:
    """Whether it is a dask array, without an import of dask."""
    return any(base.__module__.startswith("dask.") for base in type(value).__mro__)


def frame(table: Any, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Read a table, or some of its columns, into memory; what is there already is returned as it is."""
    if isinstance(table, pd.DataFrame):
        return table if columns is None else table[list(columns)]
    return table.to_memory() if columns is None else table[list(columns)].to_memory()


def column(table: Any, key: str) -> Any:
    """Read one column; of several with the same name, all."""
    return table[key] if isinstance(table, pd.DataFrame) else frame(table, [key])[key]


def write_columns(adata: AnnData, columns: dict[str, Any]) -> None:
    """Add columns to ``adata.obs``, which stays the kind of table that it is."""
    for name, values in columns.items():
        is_lazy_category = isinstance(values, pd.Categorical) and not isinstance(adata.obs, pd.DataFrame)
        adata.obs[name] = (adata.obs.index_dim, values) if is_lazy_category else values


def drop_columns(adata: AnnData, names: list[str]) -> None:
    """Remove columns from ``adata.obs``."""
    if not names:
        return
    if isinstance(adata.obs, pd.DataFrame):
        adata.obs = adata.obs.drop(columns=names)
    else:
        adata.obs = type(adata.obs)(adata.obs.ds.drop_vars(names))


def in_memory(value: Any) -> Any:
    """Read what ``read_lazy`` leaves in files of an entry of ``adata.uns``."""
    if isinstance(value, dict):
        return {name: in_memory(part) for name, part in value.items()}
    if is_dask(value):
        return value.compute(scheduler="sync")
    return value.to_memory() if hasattr(value, "to_memory") else value
