"""Prediction of held-out counts, beside scvi-tools, MAGIC and the mean of each gene."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import _common
import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import typer
from scipy import sparse

import scanpy_scvipyro as scvip

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHARE_OF_DEPTH = {"pbmc_facs_zheng": 1.0, "sc_mixology_5plates": 0.1}  # the plates have 27,000 counts per cell


def main(
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = ",".join(SHARE_OF_DEPTH),
    corruptions: Annotated[str, typer.Option(help="Of thinned, zeroed, reduced.")] = "thinned,zeroed,reduced",
    genes: Annotated[int, typer.Option(help="Number of highly variable genes.")] = 2_000,
    seeds: Annotated[int, typer.Option(help="Number of seeds; medians are reported.")] = 3,
    max_epochs_peer: Annotated[int | None, typer.Option(help="Train scvi-tools shorter, for a quick check.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Hide counts, fit each method to the others, and compare its expected counts with those that were hidden.

    thinned: each single count is held out with a probability of 20 %. What is held out is a second, independent
    measurement of the same cell with a quarter of the depth, so that the expected counts times a quarter predict it.

    zeroed, reduced: of a tenth of the non-zero entries all counts are hidden, or all but Binomial(count, 0.2), as in
    Lopez et al. 2018. The error is the median absolute error of these entries, as there. Most of them are ones,
    whatever was expected, since zeros are never hidden: a fit that tells cells and genes less well apart can have a
    lower error, and the thinned counts are the test to trust.

    The plates are thinned to a tenth of their depth before. All methods see the same genes and predict expected counts
    at the depth of the corrupted cell. MAGIC has its defaults, on square roots of counts per 10,000 as its authors
    recommend; its result is squared and scaled to the observed mean of each gene. The mean of a gene is that within the
    batch. A hundredth of it replaces a hundredth of every method's prediction, since a zero would make the deviance
    infinite where a count was held out.
    """
    _common.quiet()
    methods = {
        "scanpy_scvipyro": ours,
        "scvi-tools, ZINB (default)": lambda adata, seed: peer(adata, seed, "zinb", max_epochs_peer),
        "scvi-tools, NB": lambda adata, seed: peer(adata, seed, "nb", max_epochs_peer),
        "MAGIC": magic,
        "gene mean": lambda adata, _: gene_mean(adata),
    }
    rows = []
    for name in sets.split(","):
        for corruption in corruptions.split(","):
            for seed in range(seeds):
                task = TASKS[corruption](load(name, seed), genes, np.random.default_rng(seed))
                floor = gene_mean(task.seen)
                for method, impute in methods.items():
                    start = time.perf_counter()
                    expected = 0.99 * impute(task.seen.copy(), seed) + 0.01 * floor
                    row = {"data": name, "corruption": corruption, "method": method, "seed": seed}
                    rows.append(row | {"seconds": time.perf_counter() - start} | task.errors(expected))
                    print(rows[-1], flush=True)
    groups = pd.DataFrame(rows).groupby(["data", "corruption", "method"], sort=False)
    _common.report(groups.median().drop(columns="seed").reset_index(), "imputation", output, decimals=4)


class Task(NamedTuple):
    """Corrupted counts, and the errors of the counts that a method expects in each cell at its corrupted depth."""

    seen: ad.AnnData
    errors: Callable[[NDArray[np.float64]], dict[str, float]]


def load(name: str, seed: int) -> ad.AnnData:
    """Read counts of all genes, thinned where they are very deep."""
    adata = getattr(scvip.datasets, name)()
    if SHARE_OF_DEPTH[name] < 1:
        adata.X = _common.thinned(adata.X, SHARE_OF_DEPTH[name], np.random.default_rng(1000 + seed))
    return adata


def select(seen: ad.AnnData, n_genes: int) -> ad.AnnData:
    """Choose genes, and cells that have counts of them, from what the methods see."""
    sc.pp.highly_variable_genes(seen, n_top_genes=n_genes, flavor="seurat_v3", batch_key="batch", subset=True)
    sc.pp.filter_cells(seen, min_counts=1)
    return seen


def thin(adata: ad.AnnData, n_genes: int, rng: np.random.Generator, share: float = 0.2) -> Task:
    """Hold out counts by binomial thinning."""
    seen = select(ad.AnnData(_common.thinned(adata.X, 1 - share, rng), adata.obs[["batch"]], adata.var[[]]), n_genes)
    held_out = adata[seen.obs_names, seen.var_names].X.toarray() - seen.X.toarray()

    def errors(expected: NDArray[np.float64]) -> dict[str, float]:
        mean = expected * share / (1 - share)
        ratio = np.where(held_out > 0, held_out, 1) / mean  # x log x is 0 at 0
        deviance = 2 * (held_out * np.log(ratio) - held_out + mean).sum(axis=1).mean()
        log_truth, log_mean = np.log1p(held_out), np.log1p(mean)
        return {
            "Poisson deviance": float(deviance),
            "RMSE of log1p": float(np.sqrt(np.mean((log_truth - log_mean) ** 2))),
            "Pearson of log1p": float(np.corrcoef(log_truth.ravel(), log_mean.ravel())[0, 1]),
            "Pearson by gene": correlation_by_gene(log_truth, log_mean),
        }

    return Task(seen, errors)


def correlation_by_gene(truth: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Mean over the genes, whose truth is not constant, of the correlation over cells."""
    truth, predicted = truth - truth.mean(axis=0), predicted - predicted.mean(axis=0)
    norms = np.sqrt((truth**2).sum(axis=0) * (predicted**2).sum(axis=0))
    varies = (truth**2).sum(axis=0) > 0
    return float(np.mean((truth * predicted).sum(axis=0)[varies] / np.maximum(norms[varies], 1e-12)))


def mask(adata: ad.AnnData, n_genes: int, rng: np.random.Generator, kept: float, share: float = 0.1) -> Task:
    """Hide counts of a share of the non-zero entries, but for Binomial(count, kept)."""
    adata = select(ad.AnnData(adata.X.copy(), adata.obs[["batch"]], adata.var[[]]), n_genes)
    truth = adata.X.tocoo()
    hidden = rng.choice(truth.nnz, round(share * truth.nnz), replace=False)
    counts = truth.data.copy()
    counts[hidden] = rng.binomial(counts[hidden].astype(np.int64), kept)
    seen = sparse.csr_matrix((counts, truth.coords), shape=truth.shape)
    seen.eliminate_zeros()
    not_empty = np.ravel(seen.sum(axis=1)) > 0
    hidden = hidden[not_empty[truth.row[hidden]]]
    row, column = (np.cumsum(not_empty) - 1)[truth.row[hidden]], truth.col[hidden]

    def errors(expected: NDArray[np.float64]) -> dict[str, float]:
        return {"median absolute error": float(np.median(np.abs(expected[row, column] - truth.data[hidden])))}

    return Task(ad.AnnData(seen[not_empty], adata.obs[not_empty], adata.var), errors)


TASKS = {
    "thinned": thin,
    "zeroed": lambda adata, n_genes, rng: mask(adata, n_genes, rng, kept=0.0),
    "reduced": lambda adata, n_genes, rng: mask(adata, n_genes, rng, kept=0.2),
}


def ours(adata: ad.AnnData, seed: int) -> NDArray[np.float64]:
    """Impute with the defaults."""
    scvip.tl.scvi_pyro(adata, batch_key="batch", random_state=seed, progress_bar=False)
    return adata.layers["scvi_pyro_imputed"].astype(np.float64)


def peer(adata: ad.AnnData, seed: int, likelihood: str, max_epochs: int | None) -> NDArray[np.float64]:
    """Impute with scvi-tools: its defaults, but for the likelihood."""
    import scvi

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, gene_likelihood=likelihood)
    model.train(max_epochs, enable_progress_bar=False, logger=False)
    frequency = model.get_normalized_expression(library_size=1, return_numpy=True, silent=True)
    return frequency.astype(np.float64) * depth(adata)


def magic(adata: ad.AnnData, seed: int) -> NDArray[np.float64]:
    """Impute with MAGIC, and map the result back to counts."""
    from magic import MAGIC

    per_10k = adata.X.toarray().astype(np.float64) / depth(adata) * 1e4
    imputed = MAGIC(random_state=seed, verbose=0).fit_transform(np.sqrt(per_10k))
    # Small negative values come from the compression by PCA; the square of a mean of roots is below the mean.
    squared = np.maximum(imputed, 0) ** 2
    squared *= per_10k.mean(axis=0) / np.maximum(squared.mean(axis=0), 1e-12)
    return squared / squared.sum(axis=1, keepdims=True) * depth(adata)


def gene_mean(adata: ad.AnnData) -> NDArray[np.float64]:
    """Expect the frequency of the gene among all counts of the batch in each of its cells.

    Half a count is added to each gene, shared out as the counts of all batches are.
    """
    total = np.ravel(adata.X.sum(axis=0)) + 0.5
    prior = total / total.sum()
    expected = np.empty(adata.shape)
    for batch in adata.obs["batch"].unique():
        cells = (adata.obs["batch"] == batch).to_numpy()
        counts = np.ravel(adata.X[cells].sum(axis=0)) + 0.5 * adata.n_vars * prior
        expected[cells] = counts / counts.sum() * depth(adata)[cells]
    return expected


def depth(adata: ad.AnnData) -> NDArray[np.float64]:
    """Counts per cell, (n_cells, 1)."""
    return np.asarray(adata.X.sum(axis=1), dtype=np.float64).reshape(-1, 1)


if __name__ == "__main__":
    typer.run(main)
