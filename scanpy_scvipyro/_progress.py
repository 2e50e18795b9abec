"""Progress bars for terminals and notebooks."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")


def bar(total: int | None, description: str, unit: str, *, show: bool = True) -> Any:
    """Return a tqdm bar, hidden where nobody would see it move: in files and pipes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # Jupyter without ipywidgets: the bar is text
        from tqdm.auto import tqdm

    # disable=None hides the bar where the output is not a terminal, which is wrong for notebooks.
    hide = False if _in_notebook() else None
    return tqdm(total=total, desc=description, unit=unit, disable=hide if show else True)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def over_cells(
    chunks: Iterable[tuple[slice, T]], n_cells: int, description: str, *, show: bool
) -> Iterator[tuple[slice, T]]:
    """Pass on chunks of cells and count the cells in a bar."""
    with bar(n_cells, description, "cell", show=show) as progress:
        for rows, chunk in chunks:
            yield rows, chunk
            progress.update(rows.stop - rows.start)
