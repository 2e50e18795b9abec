"""Default against default: time, held-out ELBO and integration scores beside scvi-tools, Harmony and PCA."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import _common
import numpy as np
import pandas as pd
import torch
import typer
from pytorch_lightning import Callback, LightningModule, Trainer

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, posterior


def main(
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = "pbmc,pbmc_unequal,plates",
    seeds: Annotated[int, typer.Option(help="Number of seeds; medians are reported.")] = 3,
    peer_with_our_schedule: Annotated[
        bool, typer.Option(help="Also train the peer for our number of epochs, with KL warm-up over all of them.")
    ] = True,
    peer_results: Annotated[
        Path | None,
        typer.Option(help="JSON of an earlier run on the same machine, whose scvi-tools is not trained again."),
    ] = None,
    options: Annotated[
        str, typer.Option(help="Arguments of tl.scvi_pyro other than the defaults, as JSON, to compare recipes.")
    ] = "{}",
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Train both on the same cells, one after the other in one process, and score them on the same held-out cells.

    A tenth of the cells is held out from both. Times are wall-clock times of the training call alone: for scvi-tools
    SCVI.train(), for scanpy_scvipyro the whole of tl.scvi_pyro but the imputed layer, so including checks and codes.
    "Seconds to peer" is of a second training with the same seed: when its held-out ELBO, looked at after each epoch off
    the clock, first reached the final one of scvi-tools. Both have trained for an epoch before the clock starts, which
    imports what they need.
    """
    _common.quiet()
    warm_up = _common.load("plates")
    ours(warm_up, warm_up[:100].copy(), 0, max_epochs=1)
    earlier = pd.DataFrame()
    if peer_results is None:
        _common.train_peer(warm_up, warm_up[:100].copy(), 0, "X_peer", {}, max_epochs=1)
    else:
        earlier = pd.DataFrame(json.loads(peer_results.read_text())["rows"])
        earlier = earlier[earlier["method"].str.startswith("scvi-tools")]
    rows = []
    for name in sets.split(","):
        train, test = _common.hold_out(_common.load(name))
        _common.add_pca(train)
        _common.add_harmony(train)
        keys = {"X_pca": "PCA", "X_harmony": "Harmony"}
        for seed in range(seeds):
            *measured_ours, curve = ours(train, test, seed, **json.loads(options))
            n_epochs = len(curve)
            measured = {"scanpy_scvipyro": measured_ours}
            keys |= {"X_scvi_pyro": "scanpy_scvipyro"}
            if peer_results is None:
                measured["scvi-tools"] = _common.train_peer(train, test, seed, "X_peer", {})
                keys |= {"X_peer": "scvi-tools"}
                to_reach = measured["scvi-tools"][1]
            else:
                same = (earlier["data"] == name) & (earlier["method"] == "scvi-tools")
                to_reach = earlier.loc[same, "held-out ELBO"].item()
            reached = [seconds for seconds, elbo in curve if elbo >= to_reach]
            if peer_with_our_schedule and peer_results is None:
                method = f"scvi-tools, {n_epochs} epochs"
                plan = {"n_epochs_kl_warmup": n_epochs}
                measured[method] = _common.train_peer(
                    train, test, seed, "X_short", {}, max_epochs=n_epochs, plan_kwargs=plan
                )
                keys["X_short"] = method
            for key, scores in _common.scib(train, list(keys)).iterrows():
                seconds, elbo = measured.get(keys[key], (float("nan"), float("nan")))
                row = {"data": name, "method": keys[key], "seed": seed, "seconds": seconds}
                row["seconds to peer"] = min(reached, default=np.nan) if keys[key] == "scanpy_scvipyro" else np.nan
                rows.append(row | {"held-out ELBO": elbo} | scores.to_dict())
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby(["data", "method"], sort=False).median().drop(columns="seed").reset_index()
    table = pd.concat([table, earlier]).sort_values("data", kind="stable", ignore_index=True)
    table = table.drop(columns="times faster", errors="ignore")
    peer_seconds = table["data"].map(table[table["method"] == "scvi-tools"].set_index("data")["seconds"])
    table.insert(3, "times faster", (peer_seconds / table["seconds"]).round(1))
    _common.report(table, "vs_scvi_tools", output, decimals=3)


class HeldOut(Callback):
    """Held-out ELBO after each epoch, one sample per cell, by the time that training has taken without it."""

    def __init__(self, train: _common.sc.AnnData, test: _common.sc.AnnData) -> None:
        spec = data.describe(train, data.DataSpec(batch_key="batch"), np.ones(train.n_vars, dtype=bool))
        self.cells = data.load(test, spec)
        self.curve: list[tuple[float, float]] = []
        self.off_the_clock, self.start = 0.0, time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = time.perf_counter()
        pl_module.module.eval()
        with torch.random.fork_rng(), torch.inference_mode():
            terms = [posterior.elbo_terms(pl_module.module, cells) for _, cells in self.cells.chunks()]
        pl_module.module.train()
        elbo = torch.cat([reconstruction - kl for reconstruction, kl in terms]).mean().item()
        self.curve.append((now - self.start - self.off_the_clock, elbo))
        self.off_the_clock += time.perf_counter() - now


def ours(
    train: _common.sc.AnnData, test: _common.sc.AnnData, seed: int, **options: Any
) -> tuple[float, float, list[tuple[float, float]]]:
    """Train with the defaults."""
    fixed: dict[str, Any] = {"batch_key": "batch", "random_state": seed, "impute": False, "progress_bar": False}
    start = time.perf_counter()
    scvip.tl.scvi_pyro(train, **fixed, **options)
    seconds = time.perf_counter() - start
    held_out = HeldOut(train, test)
    scvip.tl.scvi_pyro(train.copy(), **fixed, callbacks=[held_out], **options)
    return seconds, _common.our_elbo(train, test), held_out.curve


if __name__ == "__main__":
    typer.run(main)
