"""Donors with known truth, made from sorted blood cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scanpy_scvipyro import datasets
from scanpy_scvipyro.datasets import _donors

if TYPE_CHECKING:
    from anndata import AnnData

N_GENES = 2000
TYPES = {
    "CD14+ Monocyte": "Monocytes",
    "CD19+ B": "B cells",
    "CD56+ NK": "NK cells",
    "CD8+ Cytotoxic T": "T cells",
    "CD4+/CD45RO+ Memory": "T cells",
    "CD4+/CD45RA+/CD25- Naive T": "T cells",
}


def pool() -> AnnData:
    """Six FACS-sorted populations of four types, and the 2,000 genes with most counts in any type."""
    adata = datasets.pbmc_facs_zheng()
    adata = adata[adata.obs["cell_type"].isin(TYPES)].copy()
    adata.obs["population"] = adata.obs["cell_type"].astype(str)
    adata.obs["cell_type"] = adata.obs["population"].map(TYPES)
    kinds = adata.obs["cell_type"].unique()
    mean = np.max([np.ravel(adata[adata.obs["cell_type"] == kind].X.mean(axis=0)) for kind in kinds], axis=0)
    return adata[:, np.sort(np.argsort(-mean)[:N_GENES])].copy()


def make(seed: int, *, n_changed: int = 0, enriched: dict[str, float] | None = None) -> AnnData:
    """Six cases and six controls with 20 to 500 cells of each type."""
    return _donors.make(pool(), n_changed=n_changed, enriched=enriched, random_state=seed)
