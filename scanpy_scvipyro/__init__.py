"""scVI for Scanpy, in Pyro and PyTorch Lightning."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scanpy_scvipyro import datasets, get, pl, tl
    from scanpy_scvipyro.model_file import read_model, write_model

__all__ = ["datasets", "get", "pl", "read_model", "tl", "write_model"]
__version__ = version("scanpy-scvipyro")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is: the command line answers ``--help`` without waiting for Scanpy."""
    if name in ("read_model", "write_model"):
        return getattr(import_module("scanpy_scvipyro.model_file"), name)
    if name in __all__:
        return import_module(f"scanpy_scvipyro.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
