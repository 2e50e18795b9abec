"""Three ways to find cells that are more frequent in a condition, over donors with known truth."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Annotated, Any

import _common
import _donors
import anndata as ad
import numpy as np
import pandas as pd
import typer
from scipy.special import logsumexp
from scipy.stats import binom, false_discovery_control
from scipy.stats import t as student

import scanpy_scvipyro as scvip
from scanpy_scvipyro import abundance, quasi_likelihood
from scanpy_scvipyro.datasets import _donors as maker

ENRICHED = "CD8+ Cytotoxic T"
IS_CASE = np.repeat([False, True], 6)
DESIGN = np.column_stack([np.ones(12), IS_CASE])
N_PERMUTATIONS = 200


def main(
    seeds_null: Annotated[int, typer.Option(help="Data sets in which nothing is enriched.")] = 8,
    seeds: Annotated[int, typer.Option(help="Data sets of each enrichment.")] = 5,
    models: Annotated[Path | None, typer.Option(help="Folder to keep trained data sets in, or to find them.")] = None,
    options: Annotated[str, typer.Option(help="Arguments of tl.scvi_pyro other than the defaults, as JSON.")] = "{}",
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Find CD8+ T cells that are two or four times as frequent in six cases as in six controls, or nothing.

    Shares of populations vary between donors by a Dirichlet distribution (42 % for one of 10 %). Methods get the same
    codes: ``neighbourhoods`` is ``tl.differential_abundance``, with ten and with five neighbours for each sample;
    ``densities`` compares log densities of the aggregated posteriors of donors, as scvi-tools 1.4.2 does, by a
    moderated t test; ``permutation`` compares the log shares of donors in neighbourhoods, with a false discovery rate
    by permuting the labels of donors. A call of an enriched set is false if its sign is not that of the truth: the
    neighbourhood has less than five per cent of the enriched population and is called up, or more and is called down.
    """
    _common.quiet()
    rows = []
    for fold, n_seeds in ((1, seeds_null), (2, seeds), (4, seeds)):
        for seed in range(n_seeds):
            adata = trained(fold, seed, models, **json.loads(options))
            for name, method in METHODS.items():
                start = time.process_time()
                change, rate = method(adata)
                seconds = time.process_time() - start
                rows.append({"enriched": fold, "method": name, **judge(adata, change, rate < 0.05), "seconds": seconds})
            print(fold, seed, flush=True)
    _common.report(summary(pd.DataFrame(rows)), "abundance", output, decimals=3)


def trained(fold: int, seed: int, folder: Path | None, **options: Any) -> ad.AnnData:
    """Make donors and train on them, or read them if that was done before."""
    name = f"null{seed}" if fold == 1 else f"da{fold}x{300 + seed}"
    path = None if folder is None else folder / f"{name}.h5ad"
    if path is not None and path.exists():
        adata = ad.read_h5ad(path)
    else:
        enriched = {"enriched": {ENRICHED: float(fold)}, "at_least": 0, "at_most": 10**6, "random_state": 300 + seed}
        adata = _donors.make(seed) if fold == 1 else maker.make(_donors.pool(), **enriched)
        scvip.tl.scvi_pyro(adata, batch_key="donor", impute=False, **options)
        if path is not None:
            adata.write_h5ad(path)
    scvip.tl.latent(adata)
    return adata


def judge(adata: ad.AnnData, change: np.ndarray, called: np.ndarray) -> dict[str, float]:
    """Count calls, and those whose sign is wrong; the share of the enriched population that is called up."""
    is_enriched = (adata.obs["population"] == ENRICHED).to_numpy()
    near = abundance.neighbourhoods(adata.obsm["X_scvi_pyro"], 120, np.arange(adata.n_obs)).members
    has_some = is_enriched[near].mean(axis=1) > 0.05
    false = called & ((change > 0) != has_some)
    return {
        "calls": called.sum(),
        "false": false.sum(),
        "any": bool(called.any()),
        "power": (called & (change > 0))[is_enriched].mean(),
    }


def neighbourhoods(adata: ad.AnnData, n_neighbors: int) -> tuple[np.ndarray, np.ndarray]:
    """Milo's way: negative binomial regression of the cells of donors in each neighbourhood."""
    arguments = {"sample_key": "donor", "reference": "control", "n_neighbors": n_neighbors}
    scvip.tl.differential_abundance(adata, "condition", **arguments)
    return adata.obs["scvi_pyro_da_lfc"].to_numpy(), adata.obs["scvi_pyro_da_fdr"].to_numpy()


def densities(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Moderated t test of the log densities of the posteriors of the cells of each donor, at the codes of all cells."""
    codes, variance = (adata.obsm[f"X_scvi_pyro{part}"].astype(float) for part in ("", "_var"))
    donor = adata.obs["donor"].cat.codes.to_numpy()
    log_density = np.empty((12, adata.n_obs))
    for i in range(12):
        rows = np.flatnonzero(donor == i)
        precision = 1 / variance[rows]
        constant = (np.log(precision).sum(axis=1) - (codes[rows] ** 2 * precision).sum(axis=1)) / 2
        for start in range(0, adata.n_obs, 1000):
            z = codes[start : start + 1000]
            terms = z @ (codes[rows] * precision).T - z**2 @ precision.T / 2 + constant
            own = np.arange(start, start + len(z))[:, None] == rows
            terms[own] = -np.inf  # a cell says nothing of how many others are there
            log_density[i, start : start + 1000] = logsumexp(terms, axis=1) - np.log(len(rows) - own.sum(axis=1))
    difference, variance = _compare(log_density, IS_CASE)
    moderated = quasi_likelihood.moderate(variance, np.full(adata.n_obs, 10.0))
    t = difference / np.sqrt(moderated.variance / 3)
    return difference / np.log(2), false_discovery_control(2 * student.sf(np.abs(t), 10 + moderated.prior_df))


def permutation(adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Log shares of donors in neighbourhoods, and the calls that there are when labels of donors are permuted."""
    donor = adata.obs["donor"].cat.codes.to_numpy()
    near = abundance.neighbourhoods(adata.obsm["X_scvi_pyro"], 120, np.arange(adata.n_obs)).members
    share = np.log((abundance.cells_of_samples(near, donor, 12) + 0.5) / np.bincount(donor)[:, None])

    def statistic(is_case: np.ndarray) -> np.ndarray:
        difference, variance = _compare(share, is_case)
        return np.abs(difference) / np.sqrt((variance + np.median(variance)) / 2)

    found = statistic(IS_CASE)
    sets = [np.isin(np.arange(12), chosen) for chosen in itertools.combinations(range(12), 6) if 0 in chosen]
    order = np.random.default_rng(0).permutation(len(sets))[:N_PERMUTATIONS]
    thresholds = np.linspace(0, found.max(), 200)
    above = np.mean([[(statistic(sets[i])[:, None] >= thresholds).sum(axis=0)] for i in order], axis=(0, 1))
    rate = np.minimum.accumulate(above / [max((found >= t).sum(), 1) for t in thresholds])
    return _compare(share, IS_CASE)[0], np.interp(found, thresholds, rate)


def _compare(values: np.ndarray, is_case: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Difference of the means of two sets of donors, and their common variance."""
    sides = values[is_case], values[~is_case]
    variance = sum(((side - side.mean(axis=0)) ** 2).sum(axis=0) for side in sides) / (len(values) - 2)
    return sides[0].mean(axis=0) - sides[1].mean(axis=0), variance


METHODS = {
    "neighbourhoods": lambda adata: neighbourhoods(adata, 120),
    "neighbourhoods of 60": lambda adata: neighbourhoods(adata, 60),
    "densities": densities,
    "permutation": permutation,
}


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Sums over data sets."""
    table = []
    for (fold, method), part in rows.groupby(["enriched", "method"], sort=False):
        is_null = fold == 1
        table.append(
            {
                "enriched": "nothing" if is_null else f"{fold}-fold",
                "method": method,
                "data sets": len(part),
                "with any call": part["any"].sum(),
                "allowed at 5 %": f"up to {binom.ppf(0.975, len(part), 0.05):.0f}" if is_null else "",
                "calls": part["calls"].sum(),
                "share false": np.nan if is_null else part["false"].sum() / max(part["calls"].sum(), 1),
                "power": np.nan if is_null else part["power"].mean(),
                "processor seconds": part["seconds"].mean(),
            }
        )
    return pd.DataFrame(table)


if __name__ == "__main__":
    typer.run(main)
