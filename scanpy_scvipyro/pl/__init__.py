"""Plots of trained models and of what was asked of them, and a report as a page."""

from scanpy_scvipyro.pl._abundance import abundance
from scanpy_scvipyro.pl._history import history
from scanpy_scvipyro.pl._integration import integration
from scanpy_scvipyro.pl._labels import labels
from scanpy_scvipyro.pl._loadings import loadings
from scanpy_scvipyro.pl._posterior_predictive import posterior_predictive
from scanpy_scvipyro.pl._rank_genes import rank_genes
from scanpy_scvipyro.pl._report import report

__all__ = ["abundance", "history", "integration", "labels", "loadings", "posterior_predictive", "rank_genes", "report"]
