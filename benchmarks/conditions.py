"""False discoveries and power of comparisons of conditions over donors with known truth."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from typing import Annotated

import _common
import _donors
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from scipy.stats import binom

import scanpy_scvipyro as scvip

SETTINGS = {"nothing changed": 0, "100 genes changed": 100}
METHODS = ("samples", "pseudobulk", "change", "wilcoxon")
COMPARED = {"groups": ["case"], "reference": "control"}


def main(
    seeds_null: Annotated[int, typer.Option(help="Data sets without a change.")] = 10,
    seeds_changed: Annotated[int, typer.Option(help="Data sets with 100 changed genes in each type.")] = 5,
    models: Annotated[Path | None, typer.Option(help="Folder to keep trained data sets in, or to find them.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Call genes between six cases and six controls, in each of four cell types, at a false discovery rate of 5 %.

    ``samples`` is ``tl.rank_genes_groups(sample_key="donor", within="cell_type")``, ``pseudobulk`` is pydeseq2 on sums
    of counts per donor, ``change`` is today's mode on the cells, ``wilcoxon`` Scanpy's on log-normalized counts of the
    cells. The interval is that of 95 % for the number of false calls if five per cent of the calls were false; where
    nothing changed, for the number of comparisons with any call if five per cent had one.
    """
    _common.quiet()
    rows = []
    for setting, n_changed in SETTINGS.items():
        for seed in range(seeds_changed if n_changed else seeds_null):
            adata = trained(100 + seed if n_changed else seed, n_changed, models)
            for method in METHODS:
                start = time.process_time()
                rows += [{"data": setting, "method": method, **row} for row in judge(adata, method)]
                rows[-1]["seconds"] = time.process_time() - start
            print(setting, seed, flush=True)
    _common.report(summary(pd.DataFrame(rows)), "conditions", output, decimals=3)


def trained(seed: int, n_changed: int, folder: Path | None) -> ad.AnnData:
    """Make donors and train on them, or read them if that was done before."""
    path = None if folder is None else folder / f"{'de' if n_changed else 'null'}{seed}.h5ad"
    if path is not None and path.exists():
        return ad.read_h5ad(path)
    adata = _donors.make(seed, n_changed=n_changed)
    scvip.tl.scvi_pyro(adata, batch_key="donor", impute=False)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(path)
    return adata


def judge(adata: ad.AnnData, method: str) -> list[dict[str, object]]:
    """Count the calls in each cell type, those that are false, and the changes that were found."""
    if method == "samples":
        scvip.tl.rank_genes_groups(adata, "condition", **COMPARED, sample_key="donor", within="cell_type")
    rows = []
    for kind in adata.obs["cell_type"].cat.categories:
        part = adata[adata.obs["cell_type"] == kind].copy()
        table = {"samples": ours, "change": today, "pseudobulk": pseudobulk, "wilcoxon": wilcoxon}[method](part, kind)
        table = table.reindex(adata.var_names).fillna(1.0)
        changed = (adata.varm["log2_fold_change"][kind] != 0).to_numpy()
        called = table["adjusted"].to_numpy() < 0.05
        row = {"calls": called.sum(), "false": (called & ~changed).sum(), "found": (called & changed).sum()}
        rows.append(row | {"changed": changed.sum(), "p < 0.01": (table["p"].to_numpy()[~changed] < 0.01).mean()})
    return rows


def ours(adata: ad.AnnData, kind: str) -> pd.DataFrame:
    """Results with samples as replicates."""
    return _columns(sc.get.rank_genes_groups_df(adata, kind, key="rank_genes_groups_scvi_pyro"))


def today(adata: ad.AnnData, kind: str) -> pd.DataFrame:
    """Results with cells as replicates, each in its own batch, since batches are donors of one condition."""
    scvip.tl.rank_genes_groups(adata, "condition", **COMPARED, transform_batch=None)
    return _columns(sc.get.rank_genes_groups_df(adata, "case", key="rank_genes_groups_scvi_pyro"))


def wilcoxon(adata: ad.AnnData, kind: str) -> pd.DataFrame:
    """Results of Scanpy's Wilcoxon test on log-normalized counts."""
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "condition", **COMPARED, method="wilcoxon")
    return _columns(sc.get.rank_genes_groups_df(adata, "case"))


def pseudobulk(adata: ad.AnnData, kind: str) -> pd.DataFrame:
    """Results of pydeseq2 on sums of counts."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.ds import DeseqStats

    donors = adata.obs["donor"].cat.categories
    counts = pd.DataFrame({d: np.ravel(adata.X[(adata.obs["donor"] == d).to_numpy()].sum(axis=0)) for d in donors}).T
    counts.columns = adata.var_names
    condition = pd.DataFrame({"condition": [d.rstrip("0123456789") for d in donors]}, index=donors)
    with contextlib.redirect_stdout(io.StringIO()):
        counts = counts.loc[:, counts.sum() > 0].astype(int)
        fitted = DeseqDataSet(counts=counts, metadata=condition, design="~condition", quiet=True, n_cpus=1)
        fitted.deseq2()
        tested = DeseqStats(fitted, contrast=["condition", "case", "control"], quiet=True, n_cpus=1)
        tested.summary()
    return tested.results_df.rename(columns={"pvalue": "p", "padj": "adjusted"})[["p", "adjusted"]]


def _columns(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("names").rename(columns={"pvals": "p", "pvals_adj": "adjusted"})[["p", "adjusted"]]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Sums over data sets and cell types."""
    table = []
    for (setting, method), part in rows.groupby(["data", "method"], sort=False):
        is_null = part["changed"].sum() == 0
        n, wrong = (len(part), (part["calls"] > 0).sum()) if is_null else (part["calls"].sum(), part["false"].sum())
        low, high = binom.interval(0.95, n, 0.05)
        table.append(
            {
                "data": setting,
                "method": method,
                "comparisons": len(part),
                "calls": part["calls"].sum(),
                "false": part["false"].sum(),
                "share false": np.nan if is_null else wrong / max(n, 1),
                "comparisons with a false call": (part["false"] > 0).sum(),
                "allowed at 5 %": f"{low:.0f} to {high:.0f} of {n} {'comparisons' if is_null else 'calls'}",
                "power": np.nan if is_null else part["found"].sum() / part["changed"].sum(),
                "p < 0.01 of unchanged": part["p < 0.01"].mean(),
                "processor seconds": part["seconds"].sum() / (len(part) / 4),
            }
        )
    return pd.DataFrame(table)


if __name__ == "__main__":
    typer.run(main)
