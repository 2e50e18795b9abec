"""Default against default: time, held-out ELBO and integration scores beside scvi-tools, Harmony and PCA."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import _common
import pandas as pd
import typer

import scanpy_scvipyro as scvip


def main(
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = "pbmc,pbmc_unequal,plates",
    seeds: Annotated[int, typer.Option(help="Number of seeds; medians are reported.")] = 3,
    peer_with_our_schedule: Annotated[
        bool, typer.Option(help="Also train the peer for our number of epochs, with KL warm-up over all of them.")
    ] = True,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train both on the same cells, one after the other in one process, and score them on the same held-out cells.

    A tenth of the cells is held out from both. Times are wall-clock times of the training call alone: for scvi-tools
    SCVI.train(), for scanpy_scvipyro the whole of tl.scvi_pyro but the imputed layer, so including checks and codes.
    """
    _common.quiet()
    rows = []
    for name in sets.split(","):
        train, test = _common.hold_out(_common.load(name))
        _common.add_pca(train)
        add_harmony(train)
        keys = {"X_pca": "PCA", "X_harmony": "Harmony"}
        for seed in range(seeds):
            measured = {"scanpy_scvipyro": ours(train, test, seed)}
            n_epochs = len(train.uns["scvi_pyro"]["history"])
            measured["scvi-tools"] = peer(train, test, seed, "X_peer")
            keys |= {"X_scvi_pyro": "scanpy_scvipyro", "X_peer": "scvi-tools"}
            if peer_with_our_schedule:
                method = f"scvi-tools, {n_epochs} epochs"
                measured[method] = peer(
                    train, test, seed, "X_short", max_epochs=n_epochs, plan_kwargs={"n_epochs_kl_warmup": n_epochs}
                )
                keys["X_short"] = method
            for key, scores in _common.scib(train, list(keys)).iterrows():
                seconds, elbo = measured.get(keys[key], (float("nan"), float("nan")))
                row = {"data": name, "method": keys[key], "seed": seed, "seconds": seconds, "held-out ELBO": elbo}
                rows.append(row | scores.to_dict())
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby(["data", "method"], sort=False).median().drop(columns="seed").reset_index()
    peer_seconds = table["data"].map(table[table["method"] == "scvi-tools"].set_index("data")["seconds"])
    table.insert(3, "times faster", (peer_seconds / table["seconds"]).round(1))
    _common.report(table, "vs_scvi_tools", output, decimals=3)


def ours(train: _common.sc.AnnData, test: _common.sc.AnnData, seed: int) -> tuple[float, float]:
    """Train with the defaults."""
    start = time.perf_counter()
    scvip.tl.scvi_pyro(train, batch_key="batch", random_state=seed, impute=False, progress_bar=False)
    return time.perf_counter() - start, _common.our_elbo(train, test)


def peer(
    train: _common.sc.AnnData, test: _common.sc.AnnData, seed: int, key: str, **options: object
) -> tuple[float, float]:
    """Train scvi-tools with its defaults, but for the given options of its ``train``."""
    import scvi

    scvi.settings.seed = seed
    adata = train.copy()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata)
    start = time.perf_counter()
    model.train(enable_progress_bar=False, logger=False, **options)
    seconds = time.perf_counter() - start
    train.obsm[key] = model.get_latent_representation()
    return seconds, _common.peer_elbo(model, test)


def add_harmony(adata: _common.sc.AnnData) -> None:
    """Write Harmony's corrected PCA to ``obsm["X_harmony"]``."""
    import harmonypy

    corrected = harmonypy.run_harmony(adata.obsm["X_pca"], adata.obs, "batch").Z_corr
    adata.obsm["X_harmony"] = corrected if len(corrected) == adata.n_obs else corrected.T


if __name__ == "__main__":
    typer.run(main)
