"""Highly variable genes, where ``--n-top-genes`` asks for them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scvipyro.cli._run import Run


def select(adata: AnnData, run: Run) -> None:
    """Mark the most variable genes in ``adata.var["highly_variable"]``, and have them modelled.

    By Pearson residuals of the counts (Lause et al. 2021), within batches: genes that are among the first in most
    batches. ``seurat_v3`` would need scikit-misc, and fails on batches of a dozen cells, where its regression is
    singular.
    """
    n_top_genes = run.values["n_top_genes"]
    if n_top_genes is None:
        return
    if run.arguments["mask_var"] is not None:
        run.messages.say("--mask-var names the genes, so that --n-top-genes chooses none")
        return
    layer, batch_key = run.arguments["layer"], run.arguments["batch_key"]
    _check(adata, layer, batch_key)
    if n_top_genes >= adata.n_vars:
        run.messages.say(f"there are {adata.n_vars} genes, not more than --n-top-genes: all are modelled")
        return

    import scanpy as sc

    with run.timed("select genes"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # of genes without counts in a batch
        sc.experimental.pp.highly_variable_genes(
            adata, flavor="pearson_residuals", n_top_genes=n_top_genes, batch_key=batch_key, layer=layer
        )
    run.arguments["mask_var"] = "highly_variable"


def _check(adata: AnnData, layer: str | None, batch_key: str | None) -> None:
    """Refuse what training would refuse, before the work of choosing genes."""
    from scanpy_scvipyro import _counts, _validate

    _validate.check_adata(adata)
    if batch_key is not None:
        _validate.obs_codes(adata, batch_key, "batch_key")
    _counts.read_counts(adata, *_counts.find(adata, layer), np.ones(adata.n_vars, dtype=bool))
