"""Files and folders that commands read: AnnData, 10x, and several of them as one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from anndata import AnnData

FORMATS = ".h5ad, .zarr, 10x .h5, or a folder with a 10x matrix.mtx"
MODEL = ".safetensors"


def read(path: Path, tell: Callable[[str], None]) -> AnnData:
    """Read cells from a file or folder of any of the formats; its content says which it is."""
    if not path.exists():
        raise FileNotFoundError(f"{str(path)!r} does not exist; name {FORMATS}.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{str(path)!r} cannot be read; ask for the permission to.")
    if path.suffix == MODEL:
        raise ValueError(f"{str(path)!r} is a model without counts; name {FORMATS}.")
    try:
        adata = _read_folder(path) if path.is_dir() else _read_file(path)
    except MemoryError:
        raise
    except Exception as error:  # h5py, zarr and anndata raise many kinds
        raise ValueError(f"could not read {str(path)!r}: {error}; name {FORMATS}.") from error
    if not adata.var_names.is_unique:  # as symbols in 10x files: models find genes by name
        tell(f"{path}: some genes have the same name; numbers were appended to those that come later.")
        adata.var_names_make_unique()
    return adata


def read_together(
    paths: Sequence[Path], batch_key: str | None, join: Literal["inner", "outer"], tell: Callable[[str], None]
) -> AnnData:
    """Read one or several as one; where files of several name no batch, it is that of the file."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("the same input is named twice; name each once.")
    if len(paths) == 1:
        return read(paths[0], tell)

    import anndata as ad

    parts = {name: read(path, tell) for name, path in zip(names_of(paths), paths, strict=True)}
    if batch_key is None:
        tell("cells of all inputs are taken for one batch; --batch-key names a column, or makes one of the inputs.")
    else:
        name_batches(parts, batch_key, tell)
    everyone = [cell for part in parts.values() for cell in part.obs_names]
    separator = None if len(set(everyone)) == len(everyone) else "-"
    adata = ad.concat(parts, join=join, merge="same", index_unique=separator)
    if adata.n_vars == 0:
        raise ValueError("no gene is in all inputs; name their genes alike, or pass --join outer.")
    tell(f"{len(paths)} inputs: {adata.n_obs} cells and {adata.n_vars} genes")
    return adata


def name_batches(parts: dict[str, AnnData], batch_key: str, tell: Callable[[str], None]) -> None:
    """Give cells of those that have no such column the name of their input as batch."""
    nameless = [name for name, part in parts.items() if batch_key not in part.obs]
    for name in nameless:
        parts[name].obs[batch_key] = name
    if nameless:
        shown = ", ".join(map(repr, nameless[:10])) + ", ..." * (len(nameless) > 10)
        tell(f"no column {batch_key!r} in {len(nameless)} of {len(parts)} inputs: their batches are {shown}")


def read_reference(path: Path, tell: Callable[[str], None]) -> AnnData:
    """Read what holds a trained model: a model file, or an AnnData."""
    if path.suffix != MODEL:
        return read(path, tell)

    from scanpy_scvipyro import read_model

    return read_model(path)


def names_of(paths: Sequence[Path]) -> list[str]:
    """Name inputs by what their paths do not share: ``a/filtered.h5`` and ``b/filtered.h5`` are ``a`` and ``b``."""
    stems = [[*path.absolute().parent.parts, path.stem] for path in paths]
    while len({parts[-1] for parts in stems}) == 1 and min(map(len, stems)) > 1:
        stems = [parts[:-1] for parts in stems]
    n_parts = 1
    while len({tuple(parts[-n_parts:]) for parts in stems}) < len(stems):
        n_parts += 1
    return ["_".join(parts[-n_parts:]) for parts in stems]


def _read_file(path: Path) -> AnnData:
    import anndata as ad
    import h5py
    import scanpy as sc

    with h5py.File(path) as file:
        is_anndata = "obs" in file and "var" in file
    return ad.read_h5ad(path) if is_anndata else sc.read_10x_h5(path)


def _read_folder(path: Path) -> AnnData:
    import anndata as ad
    import scanpy as sc

    matrices = [*path.glob("*matrix.mtx"), *path.glob("*matrix.mtx.gz")]
    if not matrices:
        return ad.read_zarr(path)
    if len(matrices) > 1:
        raise ValueError("it holds several matrices, where one was expected")
    prefix = matrices[0].name.partition("matrix.mtx")[0]  # as in files from GEO
    return sc.read_10x_mtx(path, prefix=prefix or None, make_unique=False)
