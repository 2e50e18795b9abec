"""The default model against each alternative of each option: held-out ELBO, mixing of batches, and CPU time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import _common
import numpy as np
import pandas as pd
import typer
from sklearn.neighbors import NearestNeighbors

import scanpy_scvipyro as scvip

ALTERNATIVES: dict[str, dict[str, object]] = {
    "default": {},
    "gene_likelihood='zinb'": {"gene_likelihood": "zinb"},
    "gene_likelihood='poisson'": {"gene_likelihood": "poisson"},
    "dispersion='gene-batch'": {"dispersion": "gene-batch"},
    "dispersion='gene-label'": {"dispersion": "gene-label", "labels_key": "cell_type"},
    "dispersion='gene-cell'": {"dispersion": "gene-cell"},
    "library='latent'": {"library": "latent"},
    "encoder_input='log_counts'": {"encoder_input": "log_counts"},
    "encode_covariates=True": {"encode_covariates": True},
    "batch_representation='embedding'": {"batch_representation": "embedding"},
    "batch_representation='one-hot'": {"batch_representation": "one-hot"},
    "batch_representation='one-hot', batch_offset=None": {"batch_representation": "one-hot", "batch_offset": None},
    "batch_offset=0.5": {"batch_offset": 0.5},
    "batch_alignment=0": {"batch_alignment": 0},
    "batch_alignment=400": {"batch_alignment": 400},
    "kl_weight=1": {"kl_weight": 1},
    "kl_weight=2": {"kl_weight": 2},
    "n_latent=5": {"n_latent": 5},
    "n_latent=30": {"n_latent": 30},
    "n_hidden=64": {"n_hidden": 64},
    "n_hidden=256": {"n_hidden": 256},
    "n_layers=2": {"n_layers": 2},
    "n_layers=2, deeply_inject_covariates=False": {"n_layers": 2, "deeply_inject_covariates": False},
    "dropout_rate=0": {"dropout_rate": 0},
    "dropout_rate=0.3": {"dropout_rate": 0.3},
    "activation='gelu'": {"activation": "gelu"},
    "activation='silu'": {"activation": "silu"},
    "activation='leaky_relu'": {"activation": "leaky_relu"},
    "activation='tanh'": {"activation": "tanh"},
    "encoder_normalization='layer'": {"encoder_normalization": "layer"},
    "encoder_normalization='none'": {"encoder_normalization": "none"},
    "decoder_normalization='layer'": {"decoder_normalization": "layer"},
    "decoder_normalization='none'": {"decoder_normalization": "none"},
    "decoder='linear'": {"decoder": "linear"},
    "prior='normal'": {"prior": "normal"},
    "n_prior_components=20": {"n_prior_components": 20},
}


def main(
    name: Annotated[str, typer.Option(help="cell_mixtures, pbmc, pbmc_unequal or plates.")] = "cell_mixtures",
    only: Annotated[list[str] | None, typer.Option(help="One of the alternatives; repeat it for more.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, each with its own held-out cells.")] = 3,
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the cells; by default those of the recipe.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Change one option at a time. Seeds are paired: same held-out cells, same order of minibatches.

    The ELBO is that of the validation cells after the last epoch, and of as many training cells, in nats per cell.
    "same batch" and "same type" are shares of the 20 nearest neighbours in the latent space; a perfect mix would have
    as many of the same batch as there are in the data.
    """
    _common.quiet()
    adata = scvip.datasets.cell_mixtures() if name == "cell_mixtures" else _common.load(name)
    print(f"{name}: {adata.n_obs} cells, {adata.n_vars} genes; same batch if mixed: {expected_share(adata):.2f}")
    models = {label: ALTERNATIVES[label] for label in ["default", *only]} if only else ALTERNATIVES
    rows = []
    for seed in range(seeds):
        for label, options in models.items():
            rows.append({"model": label, "seed": seed} | measure(adata, options, max_epochs, seed))
            print(rows[-1], flush=True)
    _common.report(summary(pd.DataFrame(rows)), f"model_options_{name}", output)


def measure(
    adata: _common.sc.AnnData, options: dict[str, object], max_epochs: int | None, seed: int
) -> dict[str, float]:
    """Train once."""
    start = time.process_time()
    trained = scvip.tl.scvi_pyro(
        adata,
        batch_key="batch",
        max_epochs=max_epochs,
        random_state=seed,
        impute=False,
        progress_bar=False,
        copy=True,
        **options,
    )
    seconds = time.process_time() - start
    last = trained.uns["scvi_pyro"]["history"].iloc[-1]
    neighbors = NearestNeighbors(n_neighbors=20).fit(trained.obsm["X_scvi_pyro"]).kneighbors(return_distance=False)
    return {
        "held-out ELBO": last["validation_elbo"],
        "training ELBO": last["train_elbo"],
        "same batch": share_of_same(trained.obs["batch"], neighbors),
        "same type": share_of_same(trained.obs["cell_type"], neighbors),
        "CPU seconds": seconds,
    }


def share_of_same(column: pd.Series, neighbors: np.ndarray) -> float:
    """Share of neighbours with the cell's own category."""
    codes = column.astype("category").cat.codes.to_numpy()
    return float((codes[neighbors] == codes[:, None]).mean())


def expected_share(adata: _common.sc.AnnData) -> float:
    """Share of the same batch among neighbours drawn at random."""
    return float((adata.obs["batch"].value_counts(normalize=True) ** 2).sum())


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, and the paired difference of the held-out ELBO from the default."""
    default = rows[rows["model"] == "default"].set_index("seed")["held-out ELBO"]
    rows.insert(3, "difference", rows["held-out ELBO"] - rows["seed"].map(default))
    groups = rows.groupby("model", sort=False)
    table = groups.mean().drop(columns="seed").reset_index()
    table.insert(3, "its sd", groups["difference"].std().to_numpy())
    return table


if __name__ == "__main__":
    typer.run(main)
