"""Command line: a thin layer over the functions of the package, for pipelines."""

from scanpy_scvipyro.cli._program import app

__all__ = ["app"]
