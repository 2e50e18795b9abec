"""A trained model as one ``.safetensors`` file, and back."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scanpy_scvipyro import _files, _lazy, _names, _stored, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike
    from pathlib import Path

    from numpy.typing import NDArray

ENTRY, FORMAT_VERSION = "scanpy_scvipyro", 1


@public
def write_model(
    adata: AnnData,
    path: PathLike[str] | str,
    *,
    key: str = "scvi_pyro",
    codes: bool = False,
    obs_keys: Iterable[str] | str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a trained model as one file, with which others can map their cells: no counts, and no cells unless asked.

    The file is in the format `safetensors <https://github.com/huggingface/safetensors>`__, which holds arrays and text
    and no code: weights as tensors; genes, categories, options, history and versions as JSON in its header. It appears
    whole or not at all.

    Parameters
    ----------
    adata
        AnnData with a trained model.
    path
        File to write; its name ends in ``.safetensors``.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    codes
        Whether latent codes, names, batch and covariates of the cells travel along, so that query and reference can
        share neighbours and labels. Without it the file says nothing of single cells: it holds the names of genes and
        categories (such as samples), and weights, from which the mean expression of each batch can be read.
    obs_keys
        With ``codes=True``: further columns of ``adata.obs`` to write, such as cell types.
    overwrite
        Whether to replace an existing file.

    Raises
    ------
    KeyError
        If there is no such model, no codes, or no such column.
    FileExistsError
        If there is a file already.
    ValueError
        If the name of the file has another ending, its folder does not exist, or a column or weight cannot be stored.

    See Also
    --------
    read_model

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> reference, query = adata[::2].copy(), adata[1::2].copy()
    >>> scvip.tl.scvi_pyro(reference, batch_key="batch", max_epochs=2, progress_bar=False)
    >>> path = Path(mkdtemp(), "mixtures.safetensors")
    >>> scvip.write_model(reference, path)
    >>> scvip.tl.map_query(query, scvip.read_model(path))
    >>> query.obsm["X_scvi_pyro"].shape
    (672, 10)
    """
    from safetensors.numpy import save

    if not isinstance(adata, AnnData):
        raise TypeError(f"adata is a {type(adata).__name__}; pass the AnnData that holds the trained model.")
    stored = _stored.trained(adata, key)
    columns = _validate.keys_as_list(obs_keys, "obs_keys")
    if columns and not codes:
        raise ValueError("obs_keys names columns of cells, which are only written with codes=True; pass both.")
    file = _free_path(path, overwrite=overwrite)
    tensors: dict[str, NDArray[Any]] = {}
    header = {
        "format_version": FORMAT_VERSION,
        "description": _description(stored, adata.n_obs if codes else 0),
        "packages": {name: version(name) for name in ("scanpy-scvipyro", "torch", "pyro-ppl", "anndata")},
        "key": key,
        "model": _to_json(stored, "model", tensors),
    }
    if codes:
        header["cells"] = _to_json(_cells(adata, key, stored, columns), "cells", tensors)
    _check_finite(tensors, f"adata.uns[{key!r}]")
    # One entry, since safetensors writes several in an order that changes from run to run.
    _files.replace(file, save(tensors, metadata={ENTRY: json.dumps(header)}))


@public
def read_model(path: PathLike[str] | str) -> AnnData:
    """Read a model that :func:`write_model` has written, as a reference for :func:`scanpy_scvipyro.tl.map_query`.

    Nothing in the file is run: a pickle, or any other file under that name, is refused unread.

    Parameters
    ----------
    path
        File that :func:`write_model` has written.

    Returns
    -------
    AnnData with the genes of the model as ``.var_names`` and the model in ``.uns``, under the name it was trained with
    (``"scvi_pyro"`` by default). It has no counts (``.X`` is None) and no cells, unless the file was written with
    ``codes=True``: then their codes are in ``.obsm["X_scvi_pyro"]``, and what was written of ``.obs`` is there.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is another kind of file, is damaged, or was written by a newer version that stores models differently.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> path = Path(mkdtemp(), "mixtures.safetensors")
    >>> scvip.write_model(adata, path, codes=True, obs_keys="cell_type")
    >>> reference = scvip.read_model(path)
    >>> reference.obs["cell_type"].value_counts().to_dict()
    {'H1975': 492, 'H2228': 444, 'HCC827': 409}
    >>> reference.obsm["X_scvi_pyro"].shape
    (1345, 10)
    """
    file = _files.path_of(path, "path")
    metadata, tensors = _read(file)
    header = _header(file, metadata)
    _check_finite(tensors, str(file))
    try:
        stored = _from_json(header["model"], "model", tensors)
        cells = _from_json(header["cells"], "cells", tensors) if "cells" in header else None
        key = str(header["key"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, f"its header cannot be read ({error!r})") from error
    if faults := _stored.faults(stored if isinstance(stored, dict) else {}):
        raise _damaged(file, f"the model has {', '.join(faults)}")
    adata = _anndata(file, stored, cells, key)
    adata.uns[key] = stored
    _check_weights(file, adata, key)
    return adata


def _free_path(path: PathLike[str] | str, *, overwrite: bool) -> Path:
    file = _files.path_of(path, "path")
    if file.suffix != ".safetensors":
        raise ValueError(f"path={str(file)!r} does not end in '.safetensors', as files of this format do; rename it.")
    if not file.parent.is_dir():
        raise ValueError(f"path={str(file)!r} would be in a folder that does not exist; create {str(file.parent)!r}.")
    if file.is_dir() or (file.exists() and not overwrite):
        raise FileExistsError(f"path={str(file)!r} exists already; pass overwrite=True, or another path.")
    return file


def _description(stored: dict[str, Any], n_cells: int) -> str:
    params = stored["params"]
    batches = stored["categories"].get(params.get("batch_key"), ())
    of_cells = f"; latent codes of {n_cells} cells" if n_cells else ""
    return (
        f"{stored['module']} of scanpy_scvipyro: {len(stored['genes'])} genes, {max(1, len(batches))} batches, "
        f"{params['n_latent']} latent dimensions{of_cells}. Read it with scanpy_scvipyro.read_model(path)."
    )


def _cells(adata: AnnData, key: str, stored: dict[str, Any], columns: list[str]) -> dict[str, Any]:
    """Codes of the cells, and what is known of them."""
    if f"X_{key}" not in adata.obsm:
        raise KeyError(f"adata.obsm has no 'X_{key}', the codes that codes=True writes; call tl.latent(adata) first.")
    params = stored["params"]
    read = [params.get(name) for name in ("batch_key", "labels_key")]
    read += [*params.get("categorical_covariate_keys", ()), *params.get("continuous_covariate_keys", ())]
    names = [str(name) for name in read if name is not None and name in adata.obs]
    for name in columns:
        if name not in adata.obs:
            raise KeyError(
                f"obs_keys has {name!r}, which is not in adata.obs. {_validate.did_you_mean(name, adata.obs)}"
            )
    return {
        "names": adata.obs_names.to_numpy(dtype=object),
        "codes": np.asarray(adata.obsm[f"X_{key}"], dtype=np.float32),
        "obs": {name: _column(adata, name) for name in [*names, *columns]},
    }


def _column(adata: AnnData, name: str) -> dict[str, Any]:
    """Numbers as they are; everything else as categories, which keep their order."""
    column = _lazy.column(adata.obs, name)
    if pd.api.types.is_numeric_dtype(column) and column.dtype.kind in "biuf":
        return {"values": column.to_numpy()}
    named = _names.categories(column, f"the column {name!r} of adata.obs", only_used=False)
    return {"codes": named.codes.astype(np.int32), "categories": named.categories.to_numpy(dtype=object)}


def _anndata(file: Path, stored: dict[str, Any], cells: dict[str, Any] | None, key: str) -> AnnData:
    # From lists, of which each version of pandas makes the type of string that its other tables have.
    var = pd.DataFrame(index=pd.Index([*stored["genes"]]))
    if cells is None:
        return AnnData(obs=pd.DataFrame(index=pd.Index([], dtype=object)), var=var)
    try:
        columns = {name: _values(part) for name, part in cells["obs"].items()}
        obs = pd.DataFrame(columns, index=pd.Index([*cells["names"]]))
        adata = AnnData(obs=obs, var=var, obsm={f"X_{key}": cells["codes"]})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, f"codes and columns of its cells do not fit together ({error})") from error
    return adata


def _values(part: dict[str, Any]) -> Any:
    """Numbers, or categories, of a column."""
    if "values" in part:
        return part["values"]
    names: pd.Index[str] = pd.Index([*part["categories"]])
    return pd.Categorical.from_codes(part["codes"], names)


def _to_json(value: Any, path: str, tensors: dict[str, NDArray[Any]]) -> Any:
    """Weights, and the numbers of cells, go to ``tensors`` under their path; what is left is JSON."""
    if isinstance(value, dict):
        return {name: _to_json(part, f"{path}/{name}", tensors) for name, part in value.items()}
    if isinstance(value, pd.DataFrame):
        columns = {str(name): value[name].to_numpy() for name in value}
        table = {"index": value.index.to_numpy(), "columns": columns}
        return {"table": _to_json(table, path, tensors), "index_name": value.index.name}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        if path.startswith(("model/weights/", "cells/")):
            tensors[path] = np.require(value, requirements="C")
            return {"tensor": path}
        return {"numbers": value.tolist(), "dtype": value.dtype.name}
    if isinstance(value, np.ndarray):
        return [str(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{path} is a {type(value).__name__}, which a model file does not store; remove it.")


def _from_json(value: Any, path: str, tensors: dict[str, NDArray[Any]]) -> Any:
    if isinstance(value, list):
        return np.array(value, dtype=object)
    if not isinstance(value, dict):
        return value
    if set(value) == {"tensor"}:
        return tensors[path]
    if set(value) == {"numbers", "dtype"}:
        return np.array(value["numbers"], dtype=value["dtype"])
    if set(value) == {"table", "index_name"}:
        table = _from_json(value["table"], path, tensors)
        return pd.DataFrame(table["columns"], index=pd.Index(table["index"], name=value["index_name"]))
    return {name: _from_json(part, f"{path}/{name}", tensors) for name, part in value.items()}


def _read(file: Path) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Header and tensors of a safetensors file; anything else is refused by its first bytes."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise FileNotFoundError(
            f"path={str(file)!r} is no file; name one that scanpy_scvipyro.write_model has written."
        )
    with file.open("rb") as content:
        start = content.read(9)
    if start[8:] != b"{":  # after the length of the header, which is JSON
        msg = f"{str(file)!r} is no safetensors file; name one that scanpy_scvipyro.write_model has written."
        raise ValueError(msg)
    try:
        with safe_open(file, "np") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(file, f"it is incomplete ({error})") from error


def _header(file: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Return what the file says of itself, if this version of the package understands it."""
    if ENTRY not in metadata:
        msg = f"{str(file)!r} is a safetensors file of something else; name one that scanpy_scvipyro.write_model wrote."
        raise ValueError(msg)
    try:
        header = json.loads(metadata[ENTRY])
        found = int(header["format_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(file, f"its header cannot be read ({error!r})") from error
    if found > FORMAT_VERSION:
        msg = (
            f"{str(file)!r} has format version {found}, written by {header.get('packages', 'a newer version')}; "
            f"scanpy_scvipyro {version('scanpy-scvipyro')} reads up to {FORMAT_VERSION}. Install a newer one."
        )
        raise ValueError(msg)
    return header


def _check_finite(tensors: dict[str, NDArray[Any]], where: str) -> None:
    for name, values in tensors.items():
        if name.startswith(("model/weights/", "cells/codes")) and not np.isfinite(values).all():
            raise ValueError(
                f"{where} has values in {name!r} that are not finite: no model to map with; train it again."
            )


def _check_weights(file: Path, adata: AnnData, key: str) -> None:
    """Refuse weights that do not fit the options beside them; those of a user's own class wait for that class."""
    from scanpy_scvipyro import storage
    from scanpy_scvipyro.model import SCVI
    from scanpy_scvipyro.scanvi import SCANVI

    stored = adata.uns[key]
    if stored["module"] not in (SCVI.__name__, SCANVI.__name__):
        return
    try:
        storage.from_uns(adata, key)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        details = str(error).strip().splitlines()
        raise _damaged(file, f"its weights do not fit its options ({details[-1].strip()})") from error


def _damaged(file: Path, what: str) -> ValueError:
    return ValueError(f"{str(file)!r} is damaged: {what}; copy it anew, or write it again.")
