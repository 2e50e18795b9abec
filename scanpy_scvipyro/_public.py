"""What all public functions have in common."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from scanpy import logging as logg

from scanpy_scvipyro._validate import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Name the nearest parameter where an argument is not one, and let calls from several threads take turns."""
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in parameters:
                msg = f"{function.__name__}() has no argument {name!r}. {did_you_mean(name, parameters)}"
                raise TypeError(msg)
        with turn():
            return function(*args, **kwargs)

    return checked


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Wait until no other thread is in one of our functions.

    Pyro's handlers, the random generators and pyplot's figures belong to the process, so that two calls at once would
    take each other's. A callback may call us again in its own thread.
    """
    if not _lock.acquire(blocking=False):
        logg.info("waiting for a call in another thread")
        _lock.acquire()
    try:
        yield
    finally:
        _lock.release()
