"""``tl.score_cells``: against Pyro's ELBO, closed forms, brute-force integration, and cells that do not belong."""

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy import sparse
from sklearn.metrics import roc_auc_score

import scanpy_scvipyro as scvip
from scanpy_scvipyro.data import CellData


def test_elbo_is_that_of_pyro(trained_small, by_hand):
    hand = by_hand(trained_small)
    scvip.tl.score_cells(trained_small, n_samples=200)
    pyros = [-TraceMeanField_ELBO().loss(hand.model.model, hand.model.guide, hand.cells) for _ in range(200)]
    error = np.std(pyros) * np.sqrt(2 / 200)
    assert abs(trained_small.obs["scvi_pyro_elbo"].sum() - np.mean(pyros)) < 5 * error


def test_elbo_is_reconstruction_less_kl_divergence(trained_small):
    scvip.tl.score_cells(trained_small)
    obs = trained_small.obs
    np.testing.assert_allclose(obs["scvi_pyro_elbo"], obs["scvi_pyro_reconstruction"] - obs["scvi_pyro_kl"])


def test_kl_divergence_is_the_closed_form(small, train_quickly, by_hand):
    train_quickly(small, batch_key="batch", prior="normal")
    posterior = by_hand(small).posterior()
    mean, variance = posterior.mean.detach().numpy(), posterior.variance.detach().numpy()
    scvip.tl.score_cells(small)
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(axis=1)
    np.testing.assert_allclose(small.obs["scvi_pyro_kl"], kl, rtol=1e-4)


@pytest.mark.parametrize("gene_likelihood", ["nb", "zinb"])
def test_log_likelihood_is_the_integral_over_a_one_dimensional_code(small, train_quickly, by_hand, gene_likelihood):
    train_quickly(small, batch_key="batch", n_latent=1, prior="normal", gene_likelihood=gene_likelihood)
    hand = by_hand(small)
    grid = torch.linspace(-6, 6, 401)
    with torch.no_grad():
        log_joint = torch.stack(
            [
                hand.model.likelihood(z.expand(small.n_obs, 1), hand.cells.library_size, hand.cells)
                .log_prob(hand.cells.counts)
                .sum(dim=1)
                + torch.distributions.Normal(0, 1).log_prob(z)
                for z in grid
            ]
        )
        integral = log_joint.double().logsumexp(dim=0) + torch.log(grid[1] - grid[0])
    scvip.tl.score_cells(small, n_samples=500)
    np.testing.assert_allclose(small.obs["scvi_pyro_log_likelihood"], integral, atol=0.3)
    assert abs(small.obs["scvi_pyro_log_likelihood"].mean() - integral.mean()) < 0.02


@pytest.mark.parametrize("n_samples", [None, 1, 4])
@pytest.mark.parametrize(
    "options", [{}, {"library": "latent"}, {"gene_likelihood": "zinb", "dispersion": "gene-cell", "prior": "mixture"}]
)
def test_a_cell_has_one_score_whatever_cells_stand_beside_it(small, train_quickly, options, n_samples):
    train_quickly(small, batch_key="batch", impute=False, **options)
    rows = np.random.default_rng(0).permutation(small.n_obs)[:30]
    some, one = small[rows].copy()[:, ::-1].copy(), small[rows[:1]].copy()
    for adata in (small, some, one):
        scvip.tl.score_cells(adata, n_samples=n_samples)
    names = ["elbo", "reconstruction", "kl"] + ["log_likelihood"] * (n_samples is not None)
    for name in (f"scvi_pyro_{name}" for name in names):
        np.testing.assert_allclose(some.obs[name], small.obs[name].iloc[rows], rtol=1e-5)
        np.testing.assert_allclose(one.obs[name], small.obs[name].iloc[rows[:1]], rtol=1e-5)


def test_cells_of_many_chunks_have_scores_of_their_own(trained_small, monkeypatch):
    scvip.tl.score_cells(trained_small, n_samples=3, key_added="at_once")
    chunks = CellData.chunks
    monkeypatch.setattr(CellData, "chunks", lambda data: chunks(data, n_draws=10**6))  # of a cell each
    scvip.tl.score_cells(trained_small, n_samples=3, key_added="apart")
    for name in ("elbo", "reconstruction", "kl", "log_likelihood"):
        apart, at_once = (trained_small.obs[f"{key}_{name}"] for key in ("apart", "at_once"))
        np.testing.assert_allclose(apart, at_once, rtol=1e-4)


def test_noise_of_scores_averages_out_over_cells_and_seeds(trained):
    def reconstruction(seed):
        scvip.tl.score_cells(trained, random_state=seed)
        return trained.obs["scvi_pyro_reconstruction"].to_numpy()

    draws = np.stack([reconstruction(seed) for seed in range(8)])
    noise = draws - draws.mean(axis=0)
    spread = noise.std(axis=0, ddof=1).mean()
    assert spread > 0.5  # one sample per cell, as documented
    # Cells do not share their noise: their mean is known as many times better as the root of their number.
    assert noise.mean(axis=1).std(ddof=1) < 4 * spread / np.sqrt(trained.n_obs)


def test_log_likelihood_is_above_the_elbo(trained):
    scvip.tl.score_cells(trained, n_samples=20)
    gain = trained.obs["scvi_pyro_log_likelihood"] - trained.obs["scvi_pyro_elbo"]
    assert gain.mean() > 0.5
    assert (gain > 0).mean() > 0.95


def test_log_likelihood_rises_with_samples(trained):
    scvip.tl.score_cells(trained, n_samples=1)
    few = trained.obs["scvi_pyro_log_likelihood"].mean()
    scvip.tl.score_cells(trained, n_samples=20)
    assert trained.obs["scvi_pyro_log_likelihood"].mean() > few + 0.5


def test_log_likelihood_is_written_only_when_asked_for(trained_small):
    scvip.tl.score_cells(trained_small, key_added="score")
    written = trained_small.obs.columns[trained_small.obs.columns.str.startswith("score")]
    assert written.tolist() == ["score_elbo", "score_reconstruction", "score_kl"]


@pytest.mark.parametrize("score", ["elbo", "log_likelihood"])
def test_cells_with_shuffled_genes_score_low(trained, score):
    # The same counts, so that sequencing depth and zeros tell nothing.
    rng = np.random.default_rng(0)
    shuffled = trained.copy()
    shuffled.X = sparse.csr_matrix(rng.permuted(shuffled.X.toarray(), axis=1))
    for adata in (trained, shuffled):
        scvip.tl.score_cells(adata, n_samples=5)
    scores = np.concatenate([trained.obs[f"scvi_pyro_{score}"], shuffled.obs[f"scvi_pyro_{score}"]])
    belongs = np.repeat([True, False], trained.n_obs)
    assert roc_auc_score(belongs, scores) > 0.95


def test_doublets_of_cell_lines_score_lower_than_their_parts(trained):
    # Two cells of different lines, thinned to the depth of one.
    rng = np.random.default_rng(0)
    lines = [np.flatnonzero(trained.obs["cell_type"] == name)[:100] for name in ("H1975", "H2228")]
    single, other = trained[lines[0]].copy(), trained[lines[1]].copy()
    doublet = single.copy()
    doublet.X = sparse.csr_matrix(rng.binomial((single.X + other.X).toarray().astype(int), 0.5).astype(np.float32))
    for adata in (single, doublet):
        scvip.tl.score_cells(adata, n_samples=5)
    per_count = [adata.obs["scvi_pyro_elbo"] / np.ravel(adata.X.sum(axis=1)) for adata in (single, doublet)]
    assert per_count[1].mean() < per_count[0].mean()
