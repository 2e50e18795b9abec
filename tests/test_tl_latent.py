"""``tl.latent``: posterior mean, variance, samples, and what uncertainty means."""

import numpy as np
import pytest

import scanpy_scvipyro as scvip
from scanpy_scvipyro.data import CellData


def test_mean_is_what_training_wrote(trained):
    written = trained.obsm.pop("X_scvi_pyro")
    scvip.tl.latent(trained)
    np.testing.assert_array_equal(trained.obsm["X_scvi_pyro"], written)


def test_variance_is_that_of_the_guide(trained_small, by_hand):
    scvip.tl.latent(trained_small, key_added="again")
    variance = by_hand(trained_small).posterior().variance.detach().numpy()
    np.testing.assert_allclose(trained_small.obsm["X_again_var"], variance, rtol=1e-5)


def test_samples_have_the_posterior_mean_and_variance(trained_small):
    n_samples = 2000
    scvip.tl.latent(trained_small, n_samples=n_samples)
    samples = trained_small.obsm["X_scvi_pyro_samples"]
    mean, variance = trained_small.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro_var"]
    assert np.abs((samples.mean(axis=1) - mean) / np.sqrt(variance / n_samples)).max() < 5
    np.testing.assert_allclose(samples.var(axis=1), variance, rtol=6 * np.sqrt(2 / n_samples))


def test_samples_of_a_cell_do_not_depend_on_the_cells_beside_it(trained_small):
    some = trained_small[[60, 3]].copy()
    for adata in (trained_small, some):
        scvip.tl.latent(adata, n_samples=4)
    expected = trained_small.obsm["X_scvi_pyro_samples"][[60, 3]]
    np.testing.assert_allclose(some.obsm["X_scvi_pyro_samples"], expected, rtol=1e-4, atol=1e-6)


def test_cells_of_many_chunks_have_codes_of_their_own(trained_small, monkeypatch):
    scvip.tl.latent(trained_small, n_samples=2, key_added="at_once")
    chunks = CellData.chunks
    monkeypatch.setattr(CellData, "chunks", lambda data: chunks(data, n_draws=10**6))  # of a cell each
    scvip.tl.latent(trained_small, n_samples=2, key_added="apart")
    for name in ("", "_var", "_samples"):
        apart, at_once = (trained_small.obsm[f"X_{key}{name}"] for key in ("apart", "at_once"))
        np.testing.assert_allclose(apart, at_once, rtol=1e-4, atol=1e-6)


def test_samples_are_written_only_when_asked_for(trained_small):
    scvip.tl.latent(trained_small)
    assert "X_scvi_pyro_samples" not in trained_small.obsm


def test_uncertainty_is_higher_where_counts_were_lost(mixtures):
    rng = np.random.default_rng(0)
    has_lost = rng.random(mixtures.n_obs) < 0.5
    share = np.repeat(np.where(has_lost, 0.1, 1.0), np.diff(mixtures.X.indptr))
    mixtures.X.data = rng.binomial(mixtures.X.data.astype(int), share).astype(np.float32)
    mixtures.X.eliminate_zeros()
    scvip.tl.scvi_pyro(mixtures, batch_key="batch", max_epochs=30, impute=False, progress_bar=False)
    scvip.tl.latent(mixtures)
    uncertainty = mixtures.obs["scvi_pyro_uncertainty"].to_numpy()
    assert uncertainty[has_lost].mean() > 1.15 * uncertainty[~has_lost].mean()


def test_uncertainty_is_one_for_a_posterior_as_wide_as_the_prior(trained_small):
    weights = trained_small.uns["scvi_pyro"]["weights"]
    for name in ("encoder.log_variance.weight", "encoder.log_variance.bias"):
        weights[name] = np.zeros_like(weights[name])
    scvip.tl.latent(trained_small)
    np.testing.assert_allclose(trained_small.obs["scvi_pyro_uncertainty"], 1, atol=1e-4)


def test_a_single_cell_gets_its_code(trained_small):
    one = trained_small[[3]].copy()
    scvip.tl.latent(one)
    np.testing.assert_allclose(one.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"][[3]], atol=1e-5)


def test_no_samples_are_refused(trained_small):
    with pytest.raises(ValueError, match="n_samples=0 was passed; pass a whole number of at least 1"):
        scvip.tl.latent(trained_small, n_samples=0)
