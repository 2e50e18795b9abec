"""Answers of a trained model are those of scvi-tools on the same weights. Needs the extra 'bench'."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, differential, storage, training

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("scvi") is None, reason="needs scvi-tools: pip install -e '.[bench]'"),
    pytest.mark.filterwarnings("ignore"),  # scvi-tools' own
]


@pytest.fixture(scope="module", params=["nb", "zinb"])
def pair(request):
    """A model of scvi-tools, and the AnnData with the converted model."""
    import scvi

    scvi.settings.seed = 0
    adata = scvip.datasets.cell_mixtures()
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    peer = scvi.model.SCVI(adata, gene_likelihood=request.param)
    peer.train(max_epochs=30, accelerator="cpu", enable_progress_bar=False)
    scvip.get.from_scvi_tools(peer, adata, impute=False)
    return peer, adata


@pytest.mark.parametrize("batches", [None, ["dropseq_3cl"], ["10x_3cl", "dropseq_3cl"]])
def test_normalized_expression(pair, monkeypatch, batches):
    peer, adata = pair
    # scvi-tools has no other way to decode the posterior mean than to take it for a sample.
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda q, shape=(): q.loc.expand(q._extended_shape(shape))
    )
    theirs = peer.get_normalized_expression(transform_batch=batches, library_size=1e4, return_numpy=True)
    scvip.tl.impute(adata, transform_batch=batches, library_size=1e4, progress_bar=False)
    np.testing.assert_allclose(adata.layers["scvi_pyro_imputed"], theirs, rtol=1e-4)


@pytest.mark.parametrize("reference", ["rest", "H2228"])
def test_fold_changes(pair, reference):
    peer, adata = pair
    n = 10_000
    theirs = peer.differential_expression(
        groupby="cell_type",
        group1="H1975",
        group2=None if reference == "rest" else reference,
        mode="change",
        delta=0.25,
        batch_correction=True,
        pseudocounts=1e-3,  # of which a thousandth is added for the reported fold changes
        n_samples_overall=n,
        silent=True,
    )
    scvip.tl.rank_genes_groups(
        adata, "cell_type", reference=reference, pseudocounts=1e-6, delta=0.25, n_samples=n, progress_bar=False
    )
    stored = adata.uns["rank_genes_groups_scvi_pyro"]
    ours = pd.Series(stored["logfoldchanges"]["H1975"], stored["names"]["H1975"])
    error = theirs["lfc_std"] * np.sqrt(2 / n)
    deviation = (ours.reindex(theirs.index) - theirs["lfc_mean"]) / error
    assert deviation.abs().max() < 5
    assert np.sqrt((deviation**2).mean()) < 1.5


def test_vanilla_probabilities(pair):
    peer, adata = pair
    n = 10_000
    theirs = peer.differential_expression(
        groupby="cell_type",
        group1="HCC827",
        mode="vanilla",
        batch_correction=True,
        n_samples_overall=n,
        silent=True,
    )
    module, spec = storage.from_uns(adata, "scvi_pyro")
    groups = [np.flatnonzero((adata.obs["cell_type"] == "HCC827") == is_ours) for is_ours in (True, False)]
    how = differential.Comparison("vanilla", None, 0.0, [0, 1, 2], n, 0)
    no_error = np.full(adata.n_vars, 1e-9)  # which scvi-tools does not know of
    with training.isolated_random_state(0), torch.inference_mode():
        ours = differential.probability_higher(module, data.load(adata, spec), *groups, no_error, how)
    # Of 701 genes, the largest deviation is below 5 standard errors of two estimates.
    probability = theirs["proba_m1"].reindex(adata.var_names)
    np.testing.assert_allclose(ours, probability, atol=5 * np.sqrt(2 * 0.25 / n))


def test_log_likelihood(pair):
    peer, adata = pair
    cells = adata[::3].copy()
    theirs = np.asarray(peer.get_marginal_ll(cells, n_mc_samples=20, return_mean=False))
    scvip.tl.score_cells(cells, n_samples=20, progress_bar=False)
    difference = cells.obs["scvi_pyro_log_likelihood"].to_numpy() - theirs
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(cells.n_obs)
    assert difference.std() < 0.02 * theirs.std()


def test_gene_correlations(pair):
    peer, adata = pair
    theirs = peer.get_feature_correlation_matrix(transform_batch=["10x_3cl", "celseq2_3cl"], n_samples=2)
    ours = scvip.tl.gene_correlations(adata, transform_batch=["10x_3cl", "celseq2_3cl"], n_samples=2)
    above = np.triu_indices(adata.n_vars, 1)
    assert np.sqrt(np.mean((ours.to_numpy()[above] - theirs.to_numpy()[above]) ** 2)) < 0.03
