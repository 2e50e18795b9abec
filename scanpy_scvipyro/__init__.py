"""scVI for Scanpy, in Pyro and PyTorch Lightning."""

from __future__ import annotations

from importlib.metadata import version

from scanpy_scvipyro import datasets, get, pl, tl
from scanpy_scvipyro.model_file import read_model, write_model

__all__ = ["datasets", "get", "pl", "read_model", "tl", "write_model"]
__version__ = version("scanpy-scvipyro")
