from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scanpy_scvipyro import _lazy, _names, _select, _validate
from scanpy_scvipyro._public import public
from scanpy_scvipyro.pl import _figure, _umap

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


COLORS, NOT_FOUND = "RdBu_r", "#d8d8d8"


class Cells(NamedTuple):
    """What is drawn of cells, (n_cells,) each."""

    change: NDArray[np.float64]
    is_found: NDArray[np.bool_]
    """False discovery rate below 5 %."""
    what: str


@public
def abundance(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    groupby: str | None = None,
    max_cells: int = 5000,
    random_state: int = 0,
    show: bool | None = None,
    save: str | bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot where cells of one condition are more frequent: on a UMAP, and by label as a beeswarm.

    Cells are coloured by the log2 ratio of densities where the false discovery rate is below 5 %, and else grey.
    ``adata`` is not changed.

    Parameters
    ----------
    adata
        AnnData with results of :func:`scanpy_scvipyro.tl.differential_abundance`. Its UMAP is drawn,
        ``obsm["X_umap"]``; without one, one is made of the codes.
    key
        Name of the results: the ``key_added`` of :func:`scanpy_scvipyro.tl.differential_abundance`.
    groupby
        Column of ``adata.obs`` with the labels of the beeswarm; by default those that were compared, if any.
    max_cells
        Cells to draw, at least 20, drawn at random if there are more.
    random_state
        Seed of the choice of cells, and of UMAP.
    show
        Whether to show the figure, by default ``sc.settings.autoshow``.
    save
        ``True`` saves the figure in ``sc.settings.figdir``; a string is added to the file name, and its ending
        (``".svg"``, ``".pdf"``, ``".png"``) is the format.
    return_fig
        Whether to return the figure.

    Returns
    -------
    The axes (one, or a list) if ``show=False``, the figure with ``return_fig=True``, else ``None``.

    Raises
    ------
    KeyError
        If there are no such results or column.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.donors()
    >>> scvip.tl.scvi_pyro(adata, batch_key="donor", max_epochs=2, impute=False, progress_bar=False)
    >>> scvip.tl.differential_abundance(adata, "condition", sample_key="donor", reference="control")
    >>> axes = scvip.pl.abundance(adata, groupby="cell_type", max_cells=300, show=False)
    >>> axes[1].get_xlabel()
    'log2 ratio, case over control'
    """
    _validate.check_adata(adata, min_cells=4, on_disk=True)  # fewer have no UMAP
    _validate.check_arguments({"max_cells": max_cells, "random_state": random_state})
    if f"{key}_da" not in adata.uns:
        found = [name.removesuffix("_da") for name in adata.uns if name.endswith("_da")]
        raise KeyError(
            f"key={key!r} has no differences of abundance in adata.uns; call tl.differential_abundance(adata, ...) "
            f"first. {_validate.did_you_mean(key, found)}"
        )
    params = adata.uns[f"{key}_da"]["params"]
    groupby = params.get("groupby") if groupby is None else groupby
    if groupby is not None:
        _validate.check_obs_key(adata, groupby, "groupby")
    rows = _select.random_cells(adata.n_obs, max_cells, random_state)
    change, rate = (_lazy.column(adata.obs, f"{key}_da_{name}").to_numpy(float)[rows] for name in ("lfc", "fdr"))
    cells = Cells(change, rate < 0.05, f"{params['group']} over {params['reference']}")
    axes = _figure.panels(1 if groupby is None else 2, None, width=5, height=4.4)
    draw_umap(axes[0], _places(adata, params["key"], rows, random_state), cells)
    if groupby is not None:
        labels = _names.categories(_lazy.column(adata.obs, groupby).iloc[rows], f"groupby={groupby!r}")
        draw_by_label(axes[1], cells, labels)
    return _figure.finish("abundance", axes, show=show, save=save, return_fig=return_fig)


def _places(adata: AnnData, key: str, rows: NDArray[np.intp], random_state: int) -> NDArray[np.float32]:
    """Places of cells on the UMAP of the AnnData, or on one of their codes."""
    if "X_umap" in adata.obsm:
        return np.asarray(adata.obsm["X_umap"])[rows, :2]
    return _umap.of(np.asarray(adata.obsm[f"X_{key}"])[rows], random_state)


def draw_umap(ax: Axes, umap: NDArray[np.float32], cells: Cells) -> None:
    """UMAP by log2 ratio, the clearest differences on top."""
    size = min(60, 120_000 / len(umap))
    other, found = ~cells.is_found, np.flatnonzero(cells.is_found)
    found = found[np.argsort(np.abs(cells.change[found]))]
    ax.scatter(umap[other, 0], umap[other, 1], s=size, color=NOT_FOUND, linewidths=0)
    limit, (x, y) = _limit(cells), umap[found].T
    dots = ax.scatter(x, y, s=size, linewidths=0, c=cells.change[found], cmap=COLORS, vmin=-limit, vmax=limit)
    ax.figure.colorbar(dots, ax=ax, label=f"log2 ratio, {cells.what}", shrink=0.8)
    ax.set_title("No difference found" if not len(found) else "Differences of abundance, FDR < 5 %", fontsize="medium")
    ax.set_axis_off()


def draw_by_label(ax: Axes, cells: Cells, labels: pd.Categorical) -> None:
    """One row of dots for each label, as high as there are many of about the same ratio."""
    limit = _limit(cells)
    ax.axvline(0, color=_figure.FADED, linewidth=0.8, zorder=0)
    for i, _ in enumerate(labels.categories):
        inside = np.flatnonzero((labels.codes == i) & np.isfinite(cells.change))
        change, is_found = cells.change[inside], cells.is_found[inside]
        height = i + beeswarm(change, max(np.ptp(cells.change[np.isfinite(cells.change)]) / 60, 1e-6))
        ax.scatter(change[~is_found], height[~is_found], s=5, color=NOT_FOUND, linewidths=0)
        x, y = change[is_found], height[is_found]
        ax.scatter(x, y, s=5, linewidths=0, c=x, cmap=COLORS, vmin=-limit, vmax=limit)
    ax.set_yticks(range(len(labels.categories)), labels.categories, fontsize="small")
    ax.set(xlabel=f"log2 ratio, {cells.what}", ylim=(len(labels.categories) - 0.4, -0.6))


def _limit(cells: Cells) -> float:
    """End of the scale of colours."""
    found = np.abs(cells.change[cells.is_found])
    return float(max(np.quantile(found, 0.99), 1)) if len(found) else 1.0


def beeswarm(values: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """Heights from -0.4 to 0.4 of dots that are stacked, from the middle out, with those of about the same value."""
    order = np.argsort(values, kind="stable")
    bins = np.floor(values[order] / width)
    starts = np.flatnonzero(np.diff(bins, prepend=np.nan) != 0)
    place = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    from_middle = (place + 1) // 2 * np.where(place % 2, 1, -1)
    heights = np.empty(len(values))
    heights[order] = from_middle * 0.4 / max(np.abs(from_middle).max(initial=0), 12)
    return heights
