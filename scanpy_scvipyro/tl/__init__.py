"""Tools: what is computed and written into an AnnData."""

from scanpy_scvipyro.tl._impute import impute
from scanpy_scvipyro.tl._scvi_pyro import scvi_pyro

__all__ = ["impute", "scvi_pyro"]
