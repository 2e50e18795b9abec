"""Data sets for judging integration: real ones, and ones made from real counts with batch effects that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import _common
import anndata as ad
import numpy as np
import scanpy as sc
from scipy import sparse

from scanpy_scvipyro import datasets

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

REAL = ("pbmc", "pbmc_unequal", "plates", "mixtures")
N_GENES_MADE = 1000


def load(name: str) -> ad.AnnData:
    """Read or make a set: raw counts of highly variable genes; ``batch`` and ``cell_type`` in ``.obs``.

    Where finer labels are known, they are in ``cell_type_fine``.
    """
    if name == "mixtures":
        return datasets.cell_mixtures()
    if name in REAL:
        return _common.load(name)
    adata = MADE[name](np.random.default_rng(0))
    adata.obs["batch"] = adata.obs["batch"].astype("category")
    sc.pp.filter_cells(adata, min_counts=10)
    return adata


# Genes are chosen before batch effects are made, so that the sets differ in their effects only.
def sorted_cells(rng: np.random.Generator, n_cells: int) -> ad.AnnData:
    """Take random cells of ten FACS-sorted populations; the coarse labels merge the T cells."""
    adata = datasets.pbmc_facs_zheng()
    adata = adata[rng.permutation(adata.n_obs)[:n_cells]].copy()
    sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES_MADE, flavor="seurat_v3", subset=True)
    fine, coarse = adata.obs["cell_type"].astype(str), adata.obs["subpop"].astype(str)
    adata.obs = adata.obs[[]].assign(cell_type=coarse, cell_type_fine=fine)
    return adata


def one_chemistry() -> ad.AnnData:
    """Take PBMC of one chemistry, so without a batch effect."""
    adata = datasets.pbmc_10x_4chemistries()
    adata = adata[adata.obs["batch"] == "10x_v1_3k"].copy()
    sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES_MADE, flavor="seurat_v3", subset=True)
    adata.obs = adata.obs[["cell_type", "cell_type_fine"]].astype(str)
    return adata


def with_effects(
    adata: ad.AnnData, rng: np.random.Generator, gene_sd: float = 0.5, interaction_sd: float = 0.0
) -> ad.AnnData:
    """Thin each count by a probability that depends on gene and batch, and on the cell type with interactions.

    Logarithms of the probabilities are Normal with the given standard deviations; the highest two per cent are cut, so
    that they stay below one. So counts stay counts of real cells, at a lower depth.
    """
    batch = np.unique(adata.obs["batch"], return_inverse=True)[1]
    cell_type = np.unique(adata.obs["cell_type"], return_inverse=True)[1]
    effect = rng.normal(0, gene_sd, (batch.max() + 1, 1, adata.n_vars))
    effect = effect + rng.normal(0, interaction_sd, (batch.max() + 1, cell_type.max() + 1, adata.n_vars))
    share = np.exp(np.minimum(effect - np.quantile(effect, 0.98), 0))
    counts = sparse.coo_matrix(adata.X)
    kept = rng.binomial(counts.data.astype(np.int64), share[batch[counts.row], cell_type[counts.row], counts.col])
    adata.X = sparse.csr_matrix((kept.astype(np.float32), (counts.row, counts.col)), counts.shape)
    adata.X.eliminate_zeros()
    return adata


def random_batches(adata: ad.AnnData, rng: np.random.Generator, sizes: NDArray[np.floating]) -> ad.AnnData:
    """Deal the cells out to batches at random; sizes are relative."""
    codes = rng.choice(len(sizes), adata.n_obs, p=sizes / sizes.sum())
    adata.obs["batch"] = np.array([f"batch {i}" for i in range(len(sizes))])[codes]
    return adata


def _depth(rng: np.random.Generator) -> ad.AnnData:
    adata = random_batches(sorted_cells(rng, 2000), rng, np.ones(2))
    shallow = (adata.obs["batch"] == "batch 1").to_numpy()
    parts = adata[~shallow].copy(), adata[shallow].copy()
    parts[1].X = _common.thinned(parts[1].X, 0.1, rng)
    return ad.concat(parts)


def _ambient(rng: np.random.Generator) -> ad.AnnData:
    adata = random_batches(sorted_cells(rng, 2000), rng, np.ones(2))
    soiled = (adata.obs["batch"] == "batch 1").to_numpy()
    parts = adata[~soiled].copy(), adata[soiled].copy()
    depth = np.ravel(parts[1].X.sum(axis=1))
    profile = np.ravel(adata.X.sum(axis=0))
    ambient = sparse.csr_matrix(rng.multinomial((0.1 * depth).astype(int), profile / profile.sum()).astype(np.float32))
    parts[1].X = (_common.thinned(parts[1].X, 0.9, rng) + ambient).tocsr()
    return ad.concat(parts)


def _interactions(rng: np.random.Generator) -> ad.AnnData:
    return with_effects(random_batches(sorted_cells(rng, 2000), rng, np.ones(3)), rng, interaction_sd=0.3)


def _unequal_sizes(rng: np.random.Generator) -> ad.AnnData:
    sizes = np.geomspace(1, 1 / 20, 10)
    return with_effects(random_batches(sorted_cells(rng, 2000), rng, sizes), rng)


def _ten_small(rng: np.random.Generator) -> ad.AnnData:
    adata = sorted_cells(rng, 3000)
    return with_effects(random_batches(adata, rng, np.ones(10)), rng, gene_sd=0.8, interaction_sd=0.2)


def _single_type(rng: np.random.Generator) -> ad.AnnData:
    adata = random_batches(one_chemistry(), rng, np.ones(3))
    is_b = (adata.obs["cell_type"] == "B cells").to_numpy()
    adata = adata[(adata.obs["batch"] != "batch 2").to_numpy() | is_b].copy()
    return with_effects(adata, rng)


def _similar_types(rng: np.random.Generator) -> ad.AnnData:
    adata = random_batches(one_chemistry(), rng, np.ones(2))
    batch, cell_type = adata.obs["batch"], adata.obs["cell_type"]
    elsewhere = (batch == "batch 0") & (cell_type == "FCGR3A+ Monocytes")
    elsewhere |= (batch == "batch 1") & (cell_type == "CD14+ Monocytes")
    return with_effects(adata[~elsewhere.to_numpy()].copy(), rng)


def _no_effect(rng: np.random.Generator) -> ad.AnnData:
    return random_batches(one_chemistry(), rng, np.ones(2))


MADE: dict[str, Callable[[np.random.Generator], ad.AnnData]] = {
    "depth": _depth,
    "ambient": _ambient,
    "interactions": _interactions,
    "unequal_sizes": _unequal_sizes,
    "ten_small": _ten_small,
    "single_type": _single_type,
    "similar_types": _similar_types,
    "no_effect": _no_effect,
}
"""By name: depth lowered to a tenth in one of two batches; 10 % ambient RNA in one of two; effects that differ by cell
type; ten batches from 30 to 600 cells; ten batches of 300 cells with strong effects; a batch of B cells only; two kinds
of monocytes, each in one batch only; batches without any effect."""
