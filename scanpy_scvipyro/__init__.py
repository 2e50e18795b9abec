"""scVI for Scanpy, in Pyro and PyTorch Lightning."""

from __future__ import annotations

from importlib.metadata import version

from scanpy_scvipyro import datasets, get, pl, tl

__all__ = ["datasets", "get", "pl", "tl"]
__version__ = version("scanpy-scvipyro")
