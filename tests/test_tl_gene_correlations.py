"""``tl.gene_correlations``: against closed forms, simulated truth, and batch effects."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import spearmanr

import scanpy_scvipyro as scvip
from scanpy_scvipyro.posterior import _correlations


@pytest.fixture(scope="module")
def _fitted(_simulated):
    return scvip.tl.scvi_pyro(
        _simulated, batch_key="batch", max_epochs=120, batch_size=128, progress_bar=False, copy=True
    )


@pytest.fixture
def fitted(_fitted):
    return _fitted.copy()


def off_diagonal(square):
    return np.asarray(square)[~np.eye(len(square), dtype=bool)]


def within_batches(expression, batch):
    """Rank correlations within each batch, averaged."""
    return off_diagonal(np.mean([spearmanr(expression[batch == name]).statistic for name in batch.unique()], axis=0))


def test_pearson_correlations_are_those_of_the_posterior_predictive_rates(fitted, by_hand):
    hand = by_hand(fitted)
    fitted.uns["scvi_pyro"]["weights"]["log_inverse_dispersion"][:] = np.log(4.0)
    computed = scvip.tl.gene_correlations(fitted, transform_batch="1", method="pearson", n_samples=20)
    # Rates are independent given the code: Cov = Cov of the means, plus E[mean^2 / theta] for the variances.
    with torch.no_grad():
        draws = np.concatenate([hand.frequencies(hand.posterior().sample(), batch=1) for _ in range(20)])
    covariance = np.cov(draws, rowvar=False)
    covariance[np.diag_indices_from(covariance)] += (draws**2).mean(axis=0) / 4.0
    scale = np.sqrt(np.diag(covariance))
    error = off_diagonal(computed) - off_diagonal(covariance / np.outer(scale, scale))
    assert np.abs(error).max() < 0.06
    assert np.square(error).mean() ** 0.5 < 0.015


def test_true_correlations_are_found_and_not_diluted_by_counting_noise(fitted):
    # The data were simulated as Poisson counts of these rates.
    rates = fitted.layers["mean"] * np.random.default_rng(5).gamma(2.0, 1 / 2.0, fitted.shape)
    frequencies = [part / part.sum(axis=1)[:, None] for part in (rates, fitted.X.toarray())]
    truth, of_counts = (within_batches(part, fitted.obs["batch"]) for part in frequencies)
    ours = off_diagonal(scvip.tl.gene_correlations(fitted))
    assert np.corrcoef(ours, truth)[0, 1] > 0.9
    assert np.polyfit(truth, ours, 1)[0] == pytest.approx(1, abs=0.2)
    assert np.polyfit(truth, of_counts, 1)[0] < 0.7


def test_batch_effects_correlate_genes_only_in_their_own_batches(simulated):
    # Forty genes without any biology that are four times as high in one of the batches.
    rng = np.random.default_rng(1)
    rate = np.where(simulated.obs["batch"] == "1", 8.0, 2.0)
    counts = rng.poisson(rate[:, None], (simulated.n_obs, 40))
    simulated.X = sparse.hstack([counts, simulated.X[:, 40:]], format="csr", dtype=np.float32)
    scvip.tl.scvi_pyro(simulated, batch_key="batch", max_epochs=40, progress_bar=False)
    genes = simulated.var_names[:40].tolist()
    corrected = off_diagonal(scvip.tl.gene_correlations(simulated, genes=genes))
    uncorrected = off_diagonal(scvip.tl.gene_correlations(simulated, genes=genes, transform_batch=None))
    assert np.median(uncorrected) > 0.4
    # Not zero: as shares of a total, frequencies of these genes fall together where the other genes rise.
    assert np.median(corrected) < 0.2


def test_frame_is_labelled_symmetric_and_one_on_the_diagonal(fitted):
    genes = ["gene7", "gene3", "gene50"]
    frame = scvip.tl.gene_correlations(fitted, genes=genes)
    assert frame.index.tolist() == frame.columns.tolist() == genes
    np.testing.assert_allclose(frame, frame.T)
    np.testing.assert_allclose(np.diag(frame), 1, rtol=1e-5)


def test_correlations_of_few_genes_are_those_among_all_genes_up_to_the_simulation(fitted):
    genes = fitted.var_names[[30, 4, 77, 12, 50]]
    few, another = (scvip.tl.gene_correlations(fitted, genes=genes, n_samples=20, random_state=i) for i in range(2))
    among_all = scvip.tl.gene_correlations(fitted, n_samples=20).loc[genes, genes]
    error = off_diagonal(few) - off_diagonal(another)
    assert np.abs(off_diagonal(few) - off_diagonal(among_all)).max() < 3 * np.abs(error).max() < 0.1


def test_genes_stand_at_their_place_in_varp(trained_small):
    reordered = trained_small[:, ::-1].copy()
    asked = reordered.var_names[[9, 4]].tolist()
    frame = scvip.tl.gene_correlations(reordered, genes=asked)
    scvip.tl.gene_correlations(reordered, genes=asked, key_added="correlations")
    square = reordered.varp["correlations"]
    np.testing.assert_array_equal(square[np.ix_([9, 4], [9, 4])], frame)
    assert np.isfinite(square).sum() == 4


def test_adata_is_left_alone_when_the_frame_is_returned(trained_small, unchanged):
    before = trained_small.copy()
    scvip.tl.gene_correlations(trained_small)
    unchanged(trained_small, before)


def test_correlations_of_columns_are_those_of_numpy():
    values = np.random.default_rng(0).gamma(2, 1000, (500, 20)).astype(np.float32)
    np.testing.assert_allclose(_correlations(values.copy()), np.corrcoef(values, rowvar=False), atol=1e-5)


def test_a_constant_gene_has_no_correlations():
    values = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    values[:, 1] = 7
    assert np.isnan(_correlations(values)).tolist() == [[False, True, False], [True] * 3, [False, True, False]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "kendall"}, ValueError, "pass 'pearson' or 'spearman'"),
        ({"genes": ["nope"]}, KeyError, "which the model was not trained on"),
        ({"genes": ["gene1", "gene1"]}, ValueError, "names a gene twice"),
        ({"n_samples": 0}, ValueError, "n_samples=0"),
    ],
)
def test_refusals_say_what_to_do(fitted, arguments, error, message):
    with pytest.raises(error, match=message):
        scvip.tl.gene_correlations(fitted, **arguments)
