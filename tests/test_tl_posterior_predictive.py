"""``tl.posterior_predictive``: moments of the likelihood, and what can be selected."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scanpy_scvipyro as scvip


def simulate(adata, **arguments):
    scvip.tl.posterior_predictive(adata, key_added="asked", progress_bar=False, **arguments)
    return adata.layers["asked"]


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
def test_mean_and_variance_are_those_of_the_model(small, train_quickly, by_hand, gene_likelihood):
    train_quickly(small, batch_key="batch", n_latent=2, gene_likelihood=gene_likelihood)
    cell = np.zeros(4000, dtype=int)
    copies = ad.AnnData(
        small.X[cell], small.obs.iloc[cell].reset_index(drop=True).set_index(np.arange(4000).astype(str))
    )
    copies.var_names = small.var_names
    copies.uns["scvi_pyro"] = small.uns["scvi_pyro"]
    counts = simulate(copies).toarray()

    hand = by_hand(copies)
    with torch.no_grad():
        z = hand.posterior().sample()
        log_rho, dropout_logits, _ = hand.model.decode(z, hand.cells)
        mean = (log_rho.exp() * hand.cells.library_size).double()
        kept = 1 - torch.sigmoid(dropout_logits).double() if dropout_logits is not None else torch.ones(())
        overdispersion = 0.0
        if gene_likelihood != "poisson":
            overdispersion = (-hand.model.log_inverse_dispersion).exp().double()
        # Second moment of the negative binomial, of which a share is kept.
        second = kept * (mean + mean**2 * (1 + overdispersion))
        first = kept * mean
    np.testing.assert_allclose(counts.mean(axis=0), first.mean(dim=0), rtol=0.15, atol=0.02)
    expected_variance = (second.mean(dim=0) - first.mean(dim=0) ** 2).numpy()
    ratio = counts.var(axis=0) / expected_variance
    assert np.median(ratio) == pytest.approx(1, abs=0.05)


def test_each_cell_has_about_its_own_depth(trained):
    depth = np.ravel(trained.X.sum(axis=1))
    simulated = np.ravel(simulate(trained).sum(axis=1))
    assert np.corrcoef(depth, simulated)[0, 1] > 0.9
    assert simulated.mean() == pytest.approx(depth.mean(), rel=0.05)


def test_counts_are_whole_numbers_in_a_sparse_matrix(trained_small):
    counts = simulate(trained_small)
    assert isinstance(counts, sparse.csr_matrix)
    assert counts.dtype == np.float32
    assert (counts.data == np.rint(counts.data)).all()
    assert (counts.data > 0).all()


def test_every_seed_gives_another_simulation(trained_small):
    first = simulate(trained_small).copy()
    assert (simulate(trained_small) != first).nnz == 0
    assert (simulate(trained_small, random_state=1) != first).nnz > 0


def test_only_the_genes_and_cells_asked_for_are_simulated(trained_small):
    genes, cells = trained_small.var_names[[30, 2]], trained_small.obs_names[[50, 7, 8]]
    counts = ad.AnnData(simulate(trained_small, genes=list(genes), cells=list(cells)), trained_small.obs).to_df()
    counts.columns = trained_small.var_names
    assert (counts.loc[cells, genes].to_numpy() > 0).any()
    assert counts.to_numpy().sum() == counts.loc[cells, genes].to_numpy().sum()


def test_cells_can_be_given_as_a_mask(trained_small):
    mask = np.arange(trained_small.n_obs) % 3 == 0
    counts = simulate(trained_small, cells=mask)
    np.testing.assert_array_equal(np.ravel(counts.sum(axis=1)) > 0, mask)


def test_genes_are_simulated_at_their_own_place(trained):
    shuffled = trained[:, np.random.default_rng(0).permutation(trained.n_vars)].copy()
    mean = np.ravel(simulate(shuffled).mean(axis=0))
    assert np.corrcoef(np.log1p(mean), np.log1p(np.ravel(shuffled.X.mean(axis=0))))[0, 1] > 0.95


def test_masks_of_series_are_aligned_by_name(trained_small):
    cells, genes = (pd.Series(False, index=names[::-1]) for names in (trained_small.obs_names, trained_small.var_names))
    cells.iloc[:7], genes.iloc[:3] = True, True
    simulated = simulate(trained_small, cells=cells, genes=genes).tocoo()
    assert simulated.row.min() >= trained_small.n_obs - 7
    assert simulated.col.min() >= trained_small.n_vars - 3


@pytest.mark.parametrize("write", [scvip.tl.posterior_predictive, scvip.tl.impute])
def test_counts_are_not_replaced_by_results(small, train_quickly, write):
    small.layers["counts"] = small.X
    train_quickly(small, layer="counts")
    with pytest.raises(ValueError, match="key_added='counts' is the layer of counts that the model reads"):
        write(small, key_added="counts")


def test_cells_are_simulated_in_another_batch(trained, by_hand):
    hand = by_hand(trained)
    batch = trained.obs["batch"].cat.categories[2]
    frequencies = hand.frequencies(hand.posterior().mean, batch=2)
    expected = (hand.cells.library_size.numpy() * frequencies).mean(axis=0)
    mean = np.ravel(simulate(trained, transform_batch=batch).mean(axis=0))
    own = (hand.cells.library_size.numpy() * hand.frequencies(hand.posterior().mean)).mean(axis=0)
    assert (
        np.square(np.log1p(mean) - np.log1p(expected)).mean() < 0.1 * np.square(np.log1p(mean) - np.log1p(own)).mean()
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": "nope"}, KeyError, "which the model was not trained on"),
        ({"cells": ["nope"]}, KeyError, "not in adata.obs_names; pass names or a mask"),
        ({"cells": [True, False]}, ValueError, "one value for each of 90 cells"),
        ({"cells": []}, ValueError, "selects no cell"),
        ({"transform_batch": "celseq"}, KeyError, "Did you mean 'celseq2_3cl'"),
        ({"transform_batch": ["10x_3cl", "celseq2_3cl"]}, TypeError, "in one batch, pass a name"),
        ({"random_state": -1}, ValueError, "random_state=-1"),
    ],
)
def test_refusals_say_what_to_do_and_change_nothing(trained_small, unchanged, arguments, error, message):
    before = trained_small.copy()
    with pytest.raises(error, match=message):
        scvip.tl.posterior_predictive(trained_small, **arguments)
    unchanged(trained_small, before)
