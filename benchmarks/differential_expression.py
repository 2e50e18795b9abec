"""False discoveries and power of differential expression on simulated cells, beside scvi-tools and Wilcoxon."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import _common
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from scipy import sparse

import scanpy_scvipyro as scvip

GROUPS = ("0", "1", "2")
SETTINGS = {
    "large changes": {},
    "small changes": {"largest": 1.0},
    "few changes": {"share_changed": 0.02},
    "no changes": {"share_changed": 0.0},
    "shallow, more cells": {"n_cells": 2400, "depth": 800},
    "9 cells in a group": {"n_in_first": 9},
}


def main(
    seeds: Annotated[int, typer.Option(help="Simulations of each kind.")] = 3,
    with_peer: Annotated[bool, typer.Option(help="Also train scvi-tools, with its defaults (minutes each).")] = True,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Call genes at an (expected) false discovery rate of 5 %.

    Cells of three groups in two batches are simulated as negative binomial counts. A share of the genes changes in each
    group; two factors vary within all groups. A call is false if the gene is the same in all groups; power is the share
    of the genes that change in a group that are called for it.
    """
    _common.quiet()
    rows = []
    for name, options in SETTINGS.items():
        for seed in range(seeds):
            adata = simulate(seed, **options)
            methods = {"change": ours, "vanilla": ours, "wilcoxon": wilcoxon} | (
                {"scvi-tools": peer} if with_peer else {}
            )
            for method, test in methods.items():
                start = time.perf_counter()
                calls = test(adata, method)
                rows.append({"data": name, "method": method, **judge(adata, calls)})
                print(rows[-1], f"{time.perf_counter() - start:.1f} s", flush=True)
    sums = pd.DataFrame(rows).groupby(["data", "method"], sort=False).sum().reset_index()
    sums["false discovery proportion"] = sums["false"] / sums["calls"].clip(lower=1)
    sums["power"] = sums["found"] / sums["changed"].clip(lower=1)
    _common.report(sums.drop(columns=["found", "changed"]), "differential_expression", output, decimals=3)


def simulate(
    seed: int,
    *,
    n_cells: int = 900,
    n_genes: int = 600,
    share_changed: float = 0.1,
    largest: float = 2.4,
    depth: float = 1500,
    n_in_first: int | None = None,
) -> ad.AnnData:
    """Simulate counts; ``varm["change"]`` has the log2 fold change of each gene in each group.

    With ``n_in_first`` all but so many cells of the first group are left out, and it alone is judged.
    """
    rng = np.random.default_rng(seed)
    group, batch = rng.integers(3, size=n_cells), rng.integers(2, size=n_cells)
    change = np.zeros((3, n_genes))
    for row in change:
        genes = rng.choice(n_genes, round(share_changed * n_genes), replace=False)
        row[genes] = rng.choice([-1, 1], len(genes)) * rng.uniform(largest / 4, largest, len(genes))
    log_rate = rng.normal(0, 1.3, n_genes) + np.log(2) * change[group] + rng.normal(0, 0.4, (2, n_genes))[batch]
    log_rate += rng.normal(size=(n_cells, 2)) @ rng.normal(0, 0.3, (2, n_genes))
    rate = np.exp(log_rate)
    mean = rate / rate.sum(axis=1, keepdims=True) * rng.lognormal(np.log(depth), 0.4, (n_cells, 1))
    counts = rng.negative_binomial(3.0, 3.0 / (3.0 + mean)).astype(np.float32)
    obs = pd.DataFrame({"group": group.astype(str), "batch": batch.astype(str)}, dtype="category")
    adata = ad.AnnData(sparse.csr_matrix(counts), obs.set_index("c" + obs.index.astype(str)))
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    adata.varm["change"] = change.T
    adata.uns["judged"] = GROUPS
    if n_in_first is not None:
        left_out = np.flatnonzero(group == 0)[n_in_first:]
        adata = adata[np.setdiff1d(np.arange(n_cells), left_out)].copy()
        adata.uns["judged"] = GROUPS[:1]
    return adata


def judge(adata: ad.AnnData, calls: dict[str, np.ndarray]) -> dict[str, int]:
    """Count the calls, those that are false, and the changes that were found, over the groups."""
    judged = adata.uns["judged"]
    change = adata.varm["change"]
    same, changed = ~change.any(axis=1), {group: change[:, GROUPS.index(group)] != 0 for group in judged}
    return {
        "calls": sum(int(calls[group].sum()) for group in judged),
        "false": sum(int(calls[group][same].sum()) for group in judged),
        "found": sum(int((calls[group] & changed[group]).sum()) for group in judged),
        "changed": sum(int(changed[group].sum()) for group in judged),
    }


def ours(adata: ad.AnnData, mode: str) -> dict[str, np.ndarray]:
    """Call genes with ``tl.rank_genes_groups``."""
    if "scvi_pyro" not in adata.uns:
        scvip.tl.scvi_pyro(adata, batch_key="batch", impute=False)
    scvip.tl.rank_genes_groups(adata, "group", mode=mode)
    return called_by_scanpy(adata, "rank_genes_groups_scvi_pyro")


def wilcoxon(adata: ad.AnnData, method: str) -> dict[str, np.ndarray]:
    """Call genes with Scanpy's Wilcoxon test on log-normalized counts."""
    log_counts = adata.copy()
    sc.pp.normalize_total(log_counts)
    sc.pp.log1p(log_counts)
    sc.tl.rank_genes_groups(log_counts, "group", method=method)
    return called_by_scanpy(log_counts, "rank_genes_groups")


def called_by_scanpy(adata: ad.AnnData, key: str) -> dict[str, np.ndarray]:
    """Call genes whose adjusted p-value is below 5 %."""
    tables = {group: sc.get.rank_genes_groups_df(adata, group, key=key).set_index("names") for group in GROUPS}
    return {group: (table["pvals_adj"].reindex(adata.var_names) < 0.05).to_numpy() for group, table in tables.items()}


def peer(adata: ad.AnnData, _: str) -> dict[str, np.ndarray]:
    """Call genes with scvi-tools: mode "change", its default delta and test, batch correction."""
    import scvi

    adata = ad.AnnData(adata.X, adata.obs, adata.var)
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    model.train(accelerator="cpu", enable_progress_bar=False)
    table = model.differential_expression(groupby="group", mode="change", batch_correction=True, silent=True)
    by_group = {group: table[table["group1"] == group].reindex(adata.var_names) for group in GROUPS}
    return {group: part["is_de_fdr_0.05"].to_numpy(bool) for group, part in by_group.items()}


if __name__ == "__main__":
    typer.run(main)
