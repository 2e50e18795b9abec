from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scanpy_scvipyro import _select, _validate
from scanpy_scvipyro._public import public
from scanpy_scvipyro.pl import _figure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scanpy_scvipyro.checks import CountStatistics
    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI

STATISTICS = ("mean_variance", "zeros", "library_size")


class Simulation(NamedTuple):
    """Statistics of real counts, and of counts that were simulated for the same cells."""

    real: CountStatistics
    simulated: CountStatistics


@public
def posterior_predictive(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    statistics: Iterable[str] | str | None = None,
    max_cells: int = 5000,
    module: type[SCVI] | None = None,
    random_state: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot real counts beside counts simulated from a trained model: where they differ, the model misses something.

    Counts are simulated as by :func:`scanpy_scvipyro.tl.posterior_predictive` :cite:p:`Gelman1996`; ``adata`` is not
    changed.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    statistics
        What to plot, one panel each, by default all: ``"mean_variance"``, the variance of each gene over its mean;
        ``"zeros"``, the share of cells without a count of each gene, simulated over real; ``"library_size"``, the
        distribution of the counts per cell.
    max_cells
        Cells to simulate, at least 20, drawn at random if there are more.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    random_state
        Seed of the simulation and of the choice of cells. The global random states are left alone.
    ax
        Axes to draw on, with one of ``statistics``.
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
        If there is no such model.
    ValueError
        If an argument is not as described above, or the counts do not fit the model.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> axes = scvip.pl.posterior_predictive(adata, show=False)
    >>> [ax.get_title() for ax in axes]
    ['variance of genes', 'share of zeros of genes', 'library size']
    """
    _validate.check_adata(adata, min_cells=1, on_disk=True)
    _validate.check_arguments({"max_cells": max_cells, "random_state": random_state})
    names = _figure.choices(statistics, STATISTICS, "statistics")

    from scanpy_scvipyro import data, storage

    model, spec = storage.from_uns(adata, key, module)
    rows = _select.random_cells(adata.n_obs, max_cells, random_state)
    simulation = simulate(model, data.load(adata, spec), rows, random_state)
    axes = _figure.panels(len(names), ax)
    for panel, name in zip(axes, names, strict=True):
        draw(panel, simulation, name)
    return _figure.finish("posterior_predictive", axes, show=show, save=save, return_fig=return_fig)


def simulate(model: SCVI, cell_data: CellData, rows: NDArray[np.intp], random_state: int) -> Simulation:
    """Simulate the counts of the given cells, and describe them beside the real ones."""
    import torch
    from scipy import sparse

    from scanpy_scvipyro import checks, posterior, training

    genes = np.arange(cell_data.n_genes)
    with training.isolated_random_state(random_state):
        chunks = posterior.simulated_counts(model, cell_data, rows, genes, None)
        simulated = sparse.vstack([chunk for _, chunk in chunks], format="csr")
    real = cell_data.counts.read(torch.from_numpy(rows)).to_scipy()
    return Simulation(checks.count_statistics(real), checks.count_statistics(simulated))


def draw(ax: Axes, simulation: Simulation, statistic: str) -> None:
    """Draw one statistic."""
    {"mean_variance": _mean_variance, "zeros": _zeros, "library_size": _library_size}[statistic](ax, *simulation)


def _mean_variance(ax: Axes, real: CountStatistics, simulated: CountStatistics) -> None:
    # Circles and dots, since one of the two clouds would hide the other.
    circles: dict[str, Any] = {
        "s": 20,
        "facecolors": "none",
        "edgecolors": _figure.DATA,
        "linewidths": 0.6,
        "label": "data",
    }
    dots: dict[str, Any] = {"s": 5, "color": _figure.MODEL, "linewidths": 0, "label": "simulation"}
    for statistics, style in ((real, circles), (simulated, dots)):
        seen = statistics.variance > 0  # on logarithmic axes
        ax.scatter(statistics.mean[seen], statistics.variance[seen], **style)
    ax.set(xscale="log", yscale="log", xlabel="mean count", ylabel="variance", title="variance of genes")
    ax.legend(frameon=False, markerscale=1.5, loc="upper left")


def _zeros(ax: Axes, real: CountStatistics, simulated: CountStatistics) -> None:
    ax.axline((0, 0), (1, 1), color=_figure.FADED, linewidth=1, zorder=0)
    ax.scatter(real.zeros, simulated.zeros, s=6, color=_figure.MODEL, alpha=0.5, linewidths=0)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set(xlabel="data", ylabel="simulation", title="share of zeros of genes")


def _library_size(ax: Axes, real: CountStatistics, simulated: CountStatistics) -> None:
    sizes = np.concatenate([real.library_size, simulated.library_size])
    low, high = max(1.0, sizes.min()), sizes.max() + 1
    bins = np.geomspace(low, high, 41).tolist()
    ax.hist(real.library_size, bins, color=_figure.FADED, label="data")
    ax.hist(simulated.library_size, bins, color=_figure.MODEL, histtype="step", linewidth=1.5, label="simulation")
    ax.set(xscale="log", xlabel="counts per cell", ylabel="cells", title="library size")
    ax.legend(frameon=False)
