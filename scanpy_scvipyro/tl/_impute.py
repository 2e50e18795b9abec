from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _files, _lazy, _names, _select, _stored, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro._names import Names
    from scanpy_scvipyro.model import SCVI


@public
def impute(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    transform_batch: Names | None = None,
    library_size: Literal["observed", "latent"] | float = "observed",
    n_samples: int = 1,
    statistic: Literal["mean", "median"] | float | Iterable[float] = "mean",
    genes: Iterable[str] | str | NDArray[np.bool_] | None = None,
    key_added: str | None = None,
    out: PathLike[str] | str | None = None,
    module: type[SCVI] | None = None,
    progress_bar: bool | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Denoised expression from a trained model :cite:p:`Lopez2018`, with or without batch effects.

    The library size :math:`\ell_n` times the frequencies :math:`\rho_n` that are decoded from the latent code of the
    cell: the expected counts, had none been lost to dropout. Cells are worked on in chunks, so that little more memory
    is needed than the result takes; with ``out`` the result goes to disk, and may be larger than the memory.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    transform_batch
        Batch to express all cells in, as if they had been measured there: the name of one, as the column holds it, or
        of several, over which the result is averaged, or ``"all"``. By default each cell stays in its own, and batch
        effects stay in the data. Genes that a whole batch lacks are warned of: elsewhere their expression is made up.
    library_size
        Counts per cell of the result: ``"observed"`` for those of each cell, a number such as 1e4 to which the genes of
        the model then sum in all cells alike, or ``"latent"`` for the inferred library size, if the model was trained
        with ``library="latent"``. A model with size factors has no totals of its own: with ``"observed"``, its cells
        have the counts that are expected at their size factors.
    n_samples
        Samples of the latent code per cell. The default of one takes the posterior mean instead of a sample, which is
        quick and not random.
    statistic
        What to report of the samples: their mean, median, or one or several quantiles (numbers between 0 and 1, which
        need ``n_samples`` above 1). Several quantiles are written to layers of their own.
    genes
        Genes to impute, by default all that the model knows: their names, or a boolean array (n_vars,). The others are
        NaN in the layer.
    key_added
        Name of the layer, by default ``f"{key}_imputed"``.
    out
        Path of a new zarr store for the result, instead of a layer. It holds an AnnData with the imputed genes in
        ``.X``, in chunks of cells: open it with :func:`anndata.io.read_zarr`, or lazily with
        :func:`anndata.experimental.read_lazy` or ``dask.array.from_zarr(out, component="X")``.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    progress_bar
        Whether to show a bar; by default if ``sc.settings.verbosity`` is above 0.
    random_state
        Seed of the samples. The global random states are left alone.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the following fields, unless ``out`` is given:

    ``adata.layers["scvi_pyro_imputed"]`` : float32 array (n_obs, n_vars)
        Denoised expression in counts; NaN for genes that were not modelled or not asked for.
    ``adata.layers["scvi_pyro_imputed_q0.05"]``, and so on : float32 array (n_obs, n_vars)
        The same per quantile, if several are asked for. In a store they are ``layers["q0.05"]``, and so on.

    Raises
    ------
    KeyError
        If there is no such model, gene or batch.
    ValueError
        If an argument is not as described above, or the counts do not fit the model.
    FileExistsError
        If there is something at ``out``.
    MemoryError
        If the layers would not fit in the free memory. All of these before any work starts.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> scvip.tl.impute(adata, transform_batch="all", library_size=1e4, key_added="normalized")
    >>> adata.layers["normalized"].sum(axis=1).round()
    array([10000., 10000., 10000., ..., 10000., 10000., 10000.],
          shape=(1345,), dtype=float32)
    """
    _validate.check_adata(adata, min_cells=1, on_disk=True)
    _validate.check_arguments({"n_samples": n_samples, "random_state": random_state, "key_added": key_added})
    quantiles = _quantiles(statistic, n_samples)
    suffixes = [f"q{quantile:g}" for quantile in quantiles] if len(quantiles) > 1 else [""]
    if len(set(suffixes)) < len(suffixes):
        raise ValueError(f"statistic={statistic!r} names quantiles that are alike to six digits; pass each once.")
    path = None if out is None else _free_path(out, key_added, copy=copy)

    from scanpy_scvipyro import _progress, absent, data, posterior, storage, training

    model, spec = storage.from_uns(adata, key, module)
    _validate.check_spares_counts(key_added, spec.layer)
    _check_library_size(library_size, model.library)
    batches = _select.batch_codes(transform_batch, spec.batches)
    selected = _select.gene_positions(adata, genes, spec.genes)
    if path is None:
        _validate.check_imputed_fits(adata, "pass out=, a path to write to.", len(suffixes))
    positions = spec.gene_positions(adata)
    show = settings.verbosity > 0 if progress_bar is None else progress_bar
    cell_data = data.load(adata, spec, positions, show=show)

    if batches is not None and (made_up := absent.warning(_stored.trained(adata, key), selected)):
        logg.warning(made_up)
    start = logg.info(f"imputing {len(selected)} genes of {adata.n_obs} cells")
    with training.isolated_random_state(random_state):
        chunks = posterior.expression(
            model,
            cell_data,
            selected,
            batches=batches,
            library_size=library_size,
            n_samples=n_samples,
            quantiles=quantiles,
        )
        chunks = _progress.over_cells(chunks, adata.n_obs, "Imputing", show=show)
        columns = positions[selected]
        if path is not None:
            _write_zarr(path, adata, columns, suffixes, chunks)
        else:
            layers = _collect(chunks, columns, (len(suffixes), *adata.shape))
    if path is not None:
        logg.info("    finished", time=start, deep=f"written to {path}")
        return None
    adata = adata.copy() if copy else adata
    key_added = f"{key}_imputed" if key_added is None else key_added
    for suffix, layer in zip(suffixes, layers, strict=True):
        adata.layers[f"{key_added}_{suffix}" if suffix else key_added] = layer
    logg.info("    finished", time=start, deep=f"added\n    '{key_added}', denoised expression (adata.layers)")
    return adata if copy else None


def _quantiles(statistic: str | float | Iterable[float], n_samples: int) -> list[float]:
    """Return the quantiles that were asked for; none for the mean."""
    if isinstance(statistic, str):
        if statistic not in {"mean", "median"}:
            msg = f"statistic={statistic!r} is not a choice; pass 'mean', 'median', or quantiles such as 0.95."
            raise ValueError(msg)
        if statistic == "mean":
            return []
    quantiles = [0.5] if isinstance(statistic, str) else _names.listed(statistic)
    if not quantiles or not all(isinstance(quantile, Real) and 0 <= float(quantile) <= 1 for quantile in quantiles):
        raise ValueError(f"statistic={statistic!r} was passed; quantiles are numbers from 0 to 1.")
    if n_samples == 1:
        raise ValueError(f"statistic={statistic!r} needs samples of the posterior; pass n_samples=, for example 100.")
    return quantiles


def _free_path(out: PathLike[str] | str, key_added: str | None, *, copy: bool) -> Path:
    if copy or key_added is not None:
        raise ValueError("with out=, the result goes to disk and nothing into adata; leave copy and key_added out.")
    path = _files.path_of(out, "out")
    if path.exists():
        raise FileExistsError(f"out={str(path)!r} exists already; remove it, or pass another path.")
    if not path.parent.is_dir():
        raise ValueError(f"out={str(path)!r} would be in a folder that does not exist; create {str(path.parent)!r}.")
    return path


def _check_library_size(library_size: str | float, library: str) -> None:
    if isinstance(library_size, str):
        if library_size not in {"observed", "latent"}:
            msg = f"library_size={library_size!r} is not a choice; pass 'observed', 'latent', or a number such as 1e4."
            raise ValueError(msg)
        if library_size == "latent" and library != "latent":
            msg = "library_size='latent', but the model takes library sizes as observed; pass 'observed' or a number."
            raise ValueError(msg)
    elif not isinstance(library_size, Real) or isinstance(library_size, bool) or not 0 < library_size < np.inf:
        raise ValueError(f"library_size={library_size!r} was passed; pass a positive number.")


def _collect(
    chunks: Iterator[tuple[slice, NDArray[np.float32]]], columns: NDArray[np.intp], shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    layers = np.full(shape, np.nan, dtype=np.float32)
    index = _select.columns(columns, shape[2])
    for rows, values in chunks:
        layers[:, rows, index] = values
    return layers


def _write_zarr(
    path: Path,
    adata: AnnData,
    columns: NDArray[np.intp],
    suffixes: Sequence[str],
    chunks: Iterator[tuple[slice, NDArray[np.float32]]],
) -> None:
    """Write chunk by chunk into a store beside ``path`` that takes its place when it is complete."""
    import tempfile
    import warnings

    import zarr
    from anndata import AnnData
    from anndata.io import write_elem

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder, warnings.catch_warnings():
        # Future defaults that anndata announces, and that zarr has metadata which it finds fast but not standard yet.
        warnings.filterwarnings("ignore", message=".*zarr v[23]")
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        partial = Path(folder) / path.name
        store = zarr.open_group(partial, mode="w")
        write_elem(store, "/", AnnData(obs=_lazy.frame(adata.obs), var=_lazy.frame(adata.var).iloc[columns]))
        for rows, values in chunks:
            for suffix, part in zip(suffixes, values, strict=True):
                group, name = (store["layers"], suffix) if suffix else (store, "X")
                if rows.start:
                    group[name].append(part)  # type: ignore[index,union-attr]
                else:
                    write_elem(group, name, part, dataset_kwargs={"chunks": part.shape})
        zarr.consolidate_metadata(store.store)
        partial.rename(path)
