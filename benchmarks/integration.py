"""Latent codes beside those of scvi-tools and Harmony, on real and made batch effects, with errors over seeds."""

from __future__ import annotations

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Annotated

import _common
import _sets
import numpy as np
import pandas as pd
import torch
import typer

import scanpy_scvipyro as scvip

OURS = "scanpy_scvipyro"
PEERS = ("scvi-tools", "scvi-tools, atlas settings")
WITHOUT_SEED = ("PCA", "Harmony")
ALL_SETS = ",".join((*_sets.REAL, *_sets.MADE))
ATLAS = {"n_layers": 2, "n_latent": 30, "gene_likelihood": "nb"}
"""Settings of scvi-tools' own tutorial on atlases."""

app = typer.Typer(add_completion=False, help=__doc__)
Sets = Annotated[str, typer.Option(help="Data sets, separated by commas.")]
Store = Annotated[Path, typer.Option(help="Folder of codes and scores: SET/METHOD/SEED.npz and .json.")]
DEFAULT_STORE = Path(__file__).parent / "results" / "integration"


@app.command()
def train(
    methods: Annotated[str, typer.Option(help="Methods, separated by semicolons.")] = ";".join(
        (*WITHOUT_SEED, OURS, *PEERS)
    ),
    sets: Sets = ALL_SETS,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2,3,4",
    options: Annotated[
        str, typer.Option(help="Arguments of tl.scvi_pyro, as JSON, for methods of other names.")
    ] = "{}",
    store: Store = DEFAULT_STORE,
) -> None:
    """Train what is not in the store yet, on nine tenths of the cells, and store codes, held-out ELBO and time.

    A name that is none of the known methods is a recipe of tl.scvi_pyro with the given options.
    """
    _common.quiet()
    for seed in map(int, seeds.split(",")):
        for name in sets.split(","):
            split: tuple[_common.ad.AnnData, _common.ad.AnnData] | None = None
            for method in methods.split(";"):
                path = store / name / method / f"{seed}.npz"
                if path.exists() or (method in WITHOUT_SEED and seed):
                    continue
                split = split or _common.hold_out(_sets.load(name))
                codes, elbo, seconds = run(method, *split, seed, json.loads(options))
                save(path, codes, elbo, seconds)
                print(f"{name}; {method}; {seed}: {elbo:.1f} nats, {seconds:.1f} s", flush=True)


def run(
    method: str, train: _common.ad.AnnData, test: _common.ad.AnnData, seed: int, options: dict[str, object]
) -> tuple[np.ndarray, float, float]:
    """Codes of the training cells, ELBO of the test cells and seconds that one method takes."""
    train = train.copy()
    start = time.perf_counter()
    if method in WITHOUT_SEED:
        _common.add_pca(train)
        if method == "Harmony":
            _common.add_harmony(train)
        key = {"PCA": "X_pca", "Harmony": "X_harmony"}[method]
        return train.obsm[key], float("nan"), time.perf_counter() - start
    if method in PEERS:
        seconds, elbo = _common.train_peer(train, test, seed, "X", ATLAS if method == PEERS[1] else {})
        return train.obsm["X"], elbo, seconds
    scvip.tl.scvi_pyro(train, batch_key="batch", impute=False, progress_bar=False, random_state=seed, **options)
    seconds = time.perf_counter() - start
    return train.obsm["X_scvi_pyro"], _common.our_elbo(train, test), seconds


def save(path: Path, codes: np.ndarray, elbo: float, seconds: float) -> None:
    """Write codes, in half precision, and what was measured on the way."""
    packages = ("scvi-tools", "harmonypy", "torch", "scanpy")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = {"elbo": elbo, "seconds": seconds, "threads": torch.get_num_threads(), "versions": versions}
    np.savez_compressed(path, codes=codes.astype(np.float16), **measured)


@app.command()
def score(
    sets: Annotated[str, typer.Option(help="Data sets, separated by commas.")] = "", store: Store = DEFAULT_STORE
) -> None:
    """Score the codes that have no scores yet, or scores of an earlier version."""
    import _scores

    _common.quiet()
    for folder in [store / name for name in sets.split(",") if name] or sorted(store.iterdir()):
        before = None
        for path in sorted(folder.glob("*/*.npz")):
            scored = path.with_suffix(".json")
            if scored.exists() and json.loads(scored.read_text())["version"] == _scores.VERSION:
                continue
            if before is None:
                cells = _common.hold_out(_sets.load(folder.name))[0]
                _common.add_pca(cells)
                before = cells.obsm["X_pca"]
            with np.load(path) as stored:
                row = _scores.scores(stored["codes"].astype(np.float32), before, cells.obs)
                row |= {"ELBO": stored["elbo"].item(), "seconds": stored["seconds"].item(), "version": _scores.VERSION}
            scored.write_text(json.dumps(row, indent=1) + "\n")


@app.command()
def chance(sets: Sets = ALL_SETS, store: Store = DEFAULT_STORE) -> None:
    """Print BRAS of the stored codes beside what it would be if nothing but chance told batches of a type apart.

    For that, the batches are dealt out anew among the cells of each type. Seed 0 of each method that is in the store.
    """
    from scib_metrics import bras

    _common.quiet()
    rows = []
    for name in sets.split(","):
        obs = _common.hold_out(_sets.load(name))[0].obs
        batch, label = (obs[key].astype(str).to_numpy() for key in ("batch", "cell_type"))
        dealt = pd.Series(batch).groupby(label).transform(np.random.default_rng(0).permutation).to_numpy()
        for path in sorted((store / name).glob("*/0.npz")):
            codes = np.load(path)["codes"].astype(np.float32)
            row = {"data": name, "method": path.parent.name, "BRAS": float(bras(codes, label, batch))}
            rows.append(row | {"by chance": float(bras(codes, label, dealt))})
            print(rows[-1], flush=True)
    _common.report(pd.DataFrame(rows), "BRAS and chance", None, decimals=3)


def stored_scores(store: Path) -> pd.DataFrame:
    """All scores, one row each, with columns ``data``, ``method`` and ``seed``."""
    rows = []
    for path in sorted(store.glob("*/*/*.json")):
        name, method, seed = path.parts[-3:]
        rows.append({"data": name, "method": method, "seed": int(Path(seed).stem)} | json.loads(path.read_text()))
    return pd.DataFrame(rows)


COLUMNS = ["total", "bio", "batch", "iLISI", "KBET", "cLISI", "silhouette", "BRAS", "k-means NMI", "Leiden NMI"]


@app.command()
def table(
    store: Store = DEFAULT_STORE,
    baseline: Annotated[str, typer.Option(help="Method that the others are compared with.")] = OURS,
    output: Annotated[Path | None, typer.Option(help="Folder for the tables as Markdown and JSON.")] = None,
) -> None:
    """Print medians over seeds on each set, and differences to one method over all sets with their standard errors."""
    scores = stored_scores(store)
    columns = ["ELBO", *COLUMNS, "lowest same type", "seconds"]
    scores["lowest same type"] = lowest_same_type(scores)
    medians = scores.groupby(["data", "method"])[columns].median().reset_index()
    medians.insert(2, "seeds", scores.groupby(["data", "method"])["seed"].nunique().to_numpy())
    _common.report(medians, "integration", output, decimals=3)
    _common.report(
        differences(scores, baseline, ["ELBO", *COLUMNS]), f"integration, differences to {baseline}", output, 3
    )


def lowest_same_type(scores: pd.DataFrame) -> pd.Series:
    """Share of same-type neighbours, above the lower one of PCA and Harmony, of the type that lost most."""
    types = scores.filter(like="same type: ")
    reference = types[scores["method"].isin(WITHOUT_SEED)].groupby(scores["data"]).min()
    return (types - reference.reindex(scores["data"]).to_numpy()).min(axis=1)


def differences(scores: pd.DataFrame, baseline: str, columns: list[str]) -> pd.DataFrame:
    """Differences to one method: mean over sets of the mean over paired seeds, and its standard error over sets.

    A method without seeds is compared with each.
    """
    rows = []
    base = scores[scores["method"] == baseline].set_index(["data", "seed"])[columns]
    for method, other in scores[scores["method"] != baseline].groupby("method"):
        values = other.set_index(["data", "seed"])[columns]
        if method in WITHOUT_SEED:
            here = base[base.index.get_level_values("data").isin(values.index.get_level_values("data"))]
            values = values.xs(0, level="seed").reindex(here.index.get_level_values("data")).set_axis(here.index)
        pairs = (values - base).dropna(how="all")
        by_set = pairs.groupby("data").mean()
        row: dict[str, object] = {"method": method, "sets": len(by_set), "pairs": len(pairs)}
        mean, error = by_set.mean(), by_set.sem()
        rows.append(row | {name: f"{mean[name]:+.3f} ± {error[name]:.3f}" for name in columns if pd.notna(mean[name])})
    return pd.DataFrame(rows).fillna("")


if __name__ == "__main__":
    app()
