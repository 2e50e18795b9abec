"""What the packages that we build on expect of their surroundings, and containers and clusters do not always have."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scanpy_scvipyro._machine import n_processors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def prepare() -> None:
    """Give numba and matplotlib a folder for what they compile, where the home directory cannot be written to.

    Numba refuses to be imported without one, matplotlib complains. Call it before Scanpy is imported.
    """
    os.environ["MPLBACKEND"] = "agg"  # Jupyter hands on its own, which works in its kernels only
    names = [name for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR") if name not in os.environ]
    if not names or _is_writable(Path(os.path.expanduser("~/.cache"))):  # noqa: PTH111, which raises without a home
        return
    folder = tempfile.mkdtemp(prefix="scanpy-scvipyro-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.update(dict.fromkeys(names, folder))


def _is_writable(folder: Path) -> bool:
    """Whether a folder, or the first one above it that exists, can be written to."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def limited(n_threads: int | None, tell: Callable[[str], None]) -> Iterator[int]:
    """Compute with so many threads, or with as many as there are processors for this process; yield their number."""
    import numba
    import torch
    from threadpoolctl import threadpool_limits

    allowed = n_processors()
    if n_threads is not None and n_threads > allowed:
        tell(f"--threads {n_threads} is more than the {allowed} processors that this process may use")
    before = torch.get_num_threads(), numba.get_num_threads()
    chosen = min(before[0], allowed) if n_threads is None else n_threads
    with threadpool_limits(chosen):
        torch.set_num_threads(chosen)
        numba.set_num_threads(min(chosen, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        try:
            yield chosen
        finally:
            torch.set_num_threads(before[0])
            numba.set_num_threads(before[1])
