"""What all functions that ask a trained model have in common."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.util import get_rng_state

import scanpy_scvipyro as scvip
from scanpy_scvipyro.model import SCVI

QUERIES = {
    "gene_correlations": {"key_added": "correlations"},
    "impute": {"n_samples": 2, "progress_bar": False},
    "latent": {"n_samples": 2},
    "posterior_predictive": {"progress_bar": False},
    "rank_genes_groups": {"groupby": "cell_type", "n_samples": 50, "progress_bar": False},
    "score_cells": {"n_samples": 2, "progress_bar": False},
}
COPYING = sorted(set(QUERIES) - {"gene_correlations"})


def ask(adata, query, **arguments):
    return getattr(scvip.tl, query)(adata, **QUERIES[query] | arguments)


def global_random_state():
    python, numpy = get_rng_state()["random"], get_rng_state()["numpy"]
    return {"python": python, "numpy": [part.tolist() if hasattr(part, "tolist") else part for part in numpy]} | {
        "torch": torch.get_rng_state().tolist()
    }


@pytest.mark.parametrize("query", QUERIES)
def test_global_random_states_are_left_alone(trained_small, query):
    before = global_random_state()
    ask(trained_small, query)
    assert global_random_state() == before


@pytest.mark.parametrize("query", QUERIES)
def test_same_seed_gives_the_same_result(trained_small, unchanged, query):
    again = trained_small.copy()
    ask(trained_small, query)
    torch.rand(1)
    ask(again, query)
    unchanged(again, trained_small)


@pytest.fixture
def on_disk(trained_small, tmp_path):
    """Path of a file with a trained model."""
    trained_small.write_h5ad(tmp_path / "trained.h5ad")
    return tmp_path / "trained.h5ad"


@pytest.mark.parametrize("query", QUERIES)
def test_results_survive_a_file(on_disk, tmp_path, unchanged, query):
    adata = ad.read_h5ad(on_disk)
    ask(adata, query)
    adata.write_h5ad(tmp_path / "asked.h5ad")
    unchanged(ad.read_h5ad(tmp_path / "asked.h5ad"), adata)


@pytest.mark.parametrize("query", COPYING)
def test_copy_is_returned_and_the_original_left_alone(trained_small, unchanged, query):
    before = trained_small.copy()
    changed = ask(trained_small, query, copy=True)
    unchanged(trained_small, before)
    ask(trained_small, query)
    unchanged(changed, trained_small)


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "scvi_piro"}, KeyError, r"train a model first.*Did you mean 'scvi_pyro'"),
        ({"key_added": "a/b"}, ValueError, r"key_added='a/b' was passed; pass a name without '/'"),
    ],
    ids=["missing model", "name that files cannot store"],
)
def test_wrong_names_are_refused_before_any_work(trained_small, unchanged, query, arguments, error, message):
    before = trained_small.copy()
    with pytest.raises(error, match=message):
        ask(trained_small, query, **arguments)
    unchanged(trained_small, before)


@pytest.mark.parametrize("query", QUERIES)
def test_counts_that_do_not_fit_the_model_are_refused(trained_small, query):
    with pytest.raises(ValueError, match=r"1 of the 40 genes of the model are not in adata.var_names"):
        ask(trained_small[:, 1:].copy(), query)


MODELS = {
    "latent library": {"library": "latent", "batch_key": "batch"},
    "size factors": {"size_factor_key": "size"},
    "covariates": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["cell_type"],
        "continuous_covariate_keys": ["size"],
        "encode_covariates": True,
    },
    "embedded batch": {"batch_key": "batch", "batch_representation": "embedding"},
    "mixture prior": {"prior": "mixture"},
    "linear decoder": {"decoder": "linear", "batch_key": "batch"},
    "dispersion of each cell": {"gene_likelihood": "zinb", "dispersion": "gene-cell", "batch_key": "batch"},
    "dispersion of each batch": {"dispersion": "gene-batch", "batch_key": "batch"},
    "dispersion of each label": {"dispersion": "gene-label", "labels_key": "cell_type"},
    "Poisson": {"gene_likelihood": "poisson"},
}


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_every_query_gives_numbers_for_every_kind_of_model(small, train_quickly, options):
    small.obs["size"] = np.linspace(0.5, 2, small.n_obs)
    train_quickly(small, impute=False, **options)
    for query in QUERIES:
        ask(small, query)
    written = [small.layers["scvi_pyro_imputed"], small.layers["scvi_pyro_simulated"].toarray()]
    written += [small.obsm["X_scvi_pyro_samples"], small.varp["correlations"]]
    written += [small.obs[f"scvi_pyro_{name}"] for name in ("elbo", "log_likelihood", "uncertainty")]
    written += [small.uns["rank_genes_groups_scvi_pyro"][name].tolist() for name in ("scores", "logfoldchanges")]
    assert all(np.isfinite(values).all() for values in written)


class StudentPrior(SCVI):
    def prior(self):
        return dist.StudentT(4.0, torch.zeros(self.n_latent), torch.ones(self.n_latent)).to_event(1)


@pytest.mark.parametrize("query", QUERIES)
def test_a_model_of_ones_own_is_asked_by_passing_its_class(small, train_quickly, unchanged, query):
    train_quickly(small, module=StudentPrior)
    before = small.copy()
    with pytest.raises(ValueError, match=r"pass the class itself: module=StudentPrior"):
        ask(small, query)
    unchanged(small, before)
    ask(small, query, module=StudentPrior)


def test_every_query_works_in_a_process_that_only_read_the_file(on_disk, tmp_path, unchanged):
    program = f"""
import anndata, scanpy_scvipyro as scvip
adata = anndata.read_h5ad({str(on_disk)!r})
for query, arguments in {QUERIES!r}.items():
    getattr(scvip.tl, query)(adata, **arguments)
adata.write_h5ad({str(tmp_path / "asked.h5ad")!r})
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    adata = ad.read_h5ad(on_disk)
    for query in QUERIES:
        ask(adata, query)
    unchanged(ad.read_h5ad(tmp_path / "asked.h5ad"), adata)
