"""Axes to draw on, and Scanpy's manners of showing, saving and returning them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _names
from scanpy_scvipyro._validate import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scanpy_scvipyro._names import Names

# Readable side by side, also for the colour-blind, and on white.
DATA, MODEL, FADED = "#595959", "#c2410c", "#b0b0b0"


def panels(
    n_panels: int, ax: Axes | None, *, n_columns: int = 4, width: float = 4.2, height: float = 3.6
) -> list[Axes]:
    """Return the given axes for a single panel, or axes in rows of a new figure."""
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    if ax is not None:
        if n_panels != 1:
            raise ValueError(f"ax is one axes, and there are {n_panels} panels; ask for one of them, or leave ax out.")
        if not isinstance(ax, Axes):
            raise TypeError(f"ax is a {type(ax).__name__}; pass one matplotlib axes: figure, ax = plt.subplots().")
        return [ax]
    n_columns = min(n_columns, n_panels)
    n_rows = -(-n_panels // n_columns)
    size, layout = (width * n_columns, height * n_rows), ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout=layout)
    for empty in grid.flat[n_panels:]:
        figure.delaxes(empty)
    return list(grid.flat[:n_panels])


def finish(
    name: str, axes: list[Axes], *, show: bool | None, save: str | bool | None, return_fig: bool
) -> Axes | list[Axes] | Figure | None:
    """Save, show and return, as ``sc.pl`` does: axes only if they are not shown; a saved figure is closed."""
    import matplotlib.pyplot as plt

    figure = axes[0].get_figure(root=True)
    assert figure is not None
    save = settings.autosave if save is None else save
    if save:
        added = save if isinstance(save, str) else ""
        extension = "" if added.endswith((".svg", ".pdf", ".png")) else f".{settings.file_format_figs}"
        path = Path(settings.figdir) / f"{name}{added}{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, bbox_inches="tight")
        logg.info(f"saved figure to {path}")
    if return_fig:
        return figure
    show = settings.autoshow if show is None else show
    if show:
        plt.show()
    if save:
        plt.close(figure)
    if show:
        return None
    return axes[0] if len(axes) == 1 else axes


def choices(asked: Names | None, known: Sequence[str], argument: str) -> list[str]:
    """Return what was asked for, by default all that is known; refuse other names."""
    names = known if asked is None else _names.listed(asked)
    if not len(names):
        raise ValueError(f"{argument} is empty; name at least one, or leave it out. {did_you_mean('', known)}")
    places = _names.positions(names, known)
    if -1 in places:
        name = names[places.index(-1)]
        raise ValueError(f"{argument} has {name!r}, which is not there to plot. {did_you_mean(name, known)}")
    return [known[place] for place in places]
