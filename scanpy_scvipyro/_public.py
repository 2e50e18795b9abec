"""What all public functions have in common."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import numpy as np
from anndata import AnnData
from scanpy import logging as logg

from scanpy_scvipyro._validate import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()


def public(function: Callable[P, R]) -> Callable[P, R]:
    """Name the nearest parameter where an argument is not one, and let calls from several threads take turns.

    Switches take True and False, since "no" would switch them on.
    """
    parameters = inspect.signature(function).parameters
    switches = {name for name, parameter in parameters.items() if parameter.annotation in ("bool", "bool | None")}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in parameters:
                msg = f"{function.__name__}() has no argument {name!r}. {did_you_mean(name, parameters)}"
                raise TypeError(msg)
        for name in switches & set(kwargs):
            if not isinstance(kwargs[name], bool | np.bool_) and kwargs[name] is not parameters[name].default:
                raise ValueError(f"{name}={kwargs[name]!r} was passed; pass True or False.")
        adata = args[0] if args else None
        if kwargs.get("copy") and isinstance(adata, AnnData) and adata.isbacked:
            msg = f"{function.__name__}(copy=True) would copy the file of adata; leave copy out: results are written "
            raise ValueError(msg + "into adata in memory, and the file stays as it is.")
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
