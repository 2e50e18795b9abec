"""Exit codes, and the line that says why: bad input, interrupted, out of memory or disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

BAD_INPUT, EXHAUSTED, INTERRUPTED = 1, 3, 130
"""Click's own are 0, and 2 for wrong usage."""

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
# HDF5 reports errors of the system in its own words, PyTorch those of memory.
_HDF5_ERRNO = re.compile(r"errno = (\d+)")
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


@contextlib.contextmanager
def codes() -> Iterator[None]:
    """End the program where data, arguments or the machine are at fault; other errors are ours and show where."""
    try:
        with _signals_interrupt():
            yield
    except KeyboardInterrupt:
        _end(INTERRUPTED, "interrupted; unfinished output was removed.")
    except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
        raise
    except (KeyError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        what = _exhausted(error)
        _end(EXHAUSTED if what else BAD_INPUT, f"{what}: {_line(error)}" if what else _line(error))


def say(message: str) -> None:
    """Write a line to stderr; that nobody reads it any more is no reason to stop."""
    try:
        click.echo(message, err=True)
    except BrokenPipeError:  # what is left in the buffer would fail once more at exit, with code 120
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    except (OSError, ValueError):
        pass


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Hold signals back while files are put in place or removed, which takes an instant."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, *_SIGNALS})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Schedulers end jobs by SIGTERM, lost terminals by SIGHUP: both clean up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _exhausted(error: BaseException) -> str | None:
    """Say what ran out, if something did: the error, or what it came from, tells."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, MemoryError) or (isinstance(seen, RuntimeError) and _NO_MEMORY.search(text)):
            return "out of memory"
        of_hdf5 = _HDF5_ERRNO.search(text)
        number = int(of_hdf5[1]) if of_hdf5 else seen.errno if isinstance(seen, OSError) else None
        if number in _FULL:
            return "no space left to write to"
        seen = seen.__cause__ or seen.__context__
    return None


def _line(error: BaseException) -> str:
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(message).split()) or type(error).__name__


def _end(code: int, message: str) -> NoReturn:
    say(f"error: {message}")
    raise click.exceptions.Exit(code)
