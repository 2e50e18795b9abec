"""Tools: what is computed and written into an AnnData."""

from scanpy_scvipyro.tl._differential_abundance import differential_abundance
from scanpy_scvipyro.tl._gene_correlations import gene_correlations
from scanpy_scvipyro.tl._impute import impute
from scanpy_scvipyro.tl._latent import latent
from scanpy_scvipyro.tl._map_query import map_query
from scanpy_scvipyro.tl._posterior_predictive import posterior_predictive
from scanpy_scvipyro.tl._rank_genes_groups import rank_genes_groups
from scanpy_scvipyro.tl._scanvi_pyro import scanvi_pyro
from scanpy_scvipyro.tl._score_cells import score_cells
from scanpy_scvipyro.tl._scvi_pyro import scvi_pyro

__all__ = [
    "differential_abundance",
    "gene_correlations",
    "impute",
    "latent",
    "map_query",
    "posterior_predictive",
    "rank_genes_groups",
    "scanvi_pyro",
    "score_cells",
    "scvi_pyro",
]
