"""``pl.posterior_predictive``: real counts beside counts simulated from the model."""

import numpy as np
import pytest
import torch

import scanpy_scvipyro as scvip

pytestmark = pytest.mark.usefixtures("no_windows")


def points(collection):
    return np.asarray(sorted(map(tuple, np.asarray(collection.get_offsets()))))


def test_mean_and_variance_are_those_of_the_data_and_of_the_simulation(trained_small):
    scvip.tl.posterior_predictive(trained_small, random_state=3, progress_bar=False)
    ax = scvip.pl.posterior_predictive(trained_small, statistics="mean_variance", random_state=3, show=False)
    layers = (trained_small.X.toarray(), trained_small.layers["scvi_pyro_simulated"].toarray())
    for drawn, counts in zip(ax.collections, layers, strict=True):
        expected = np.stack([counts.mean(axis=0), counts.var(axis=0)], axis=1)
        np.testing.assert_allclose(points(drawn), sorted(map(tuple, expected)), rtol=1e-4)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["data", "simulation"]
    assert ax.get_xscale() == ax.get_yscale() == "log"


def test_zeros_are_shares_of_cells(trained_small):
    scvip.tl.posterior_predictive(trained_small, progress_bar=False)
    ax = scvip.pl.posterior_predictive(trained_small, statistics="zeros", show=False)
    layers = (trained_small.X, trained_small.layers["scvi_pyro_simulated"])
    expected = np.stack([(counts.toarray() == 0).mean(axis=0) for counts in layers], axis=1)
    np.testing.assert_allclose(points(ax.collections[0]), sorted(map(tuple, expected)), atol=1e-12)


def test_library_sizes_are_counted(trained_small):
    ax = scvip.pl.posterior_predictive(trained_small, statistics=["library_size"], show=False)
    bars = [patch for patch in ax.patches if hasattr(patch, "get_width")]
    assert sum(bar.get_height() for bar in bars) == trained_small.n_obs
    sizes = np.ravel(trained_small.X.sum(axis=1))
    for bar in bars:
        low, high = bar.get_x(), bar.get_x() + bar.get_width()
        assert bar.get_height() == pytest.approx(((sizes >= low) & (sizes < high)).sum(), abs=1)


def test_at_most_max_cells_are_simulated(trained_small):
    ax = scvip.pl.posterior_predictive(trained_small, statistics="library_size", max_cells=30, show=False)
    assert sum(patch.get_height() for patch in ax.patches if hasattr(patch, "get_width")) == 30


def test_the_simulation_depends_on_the_seed_alone(trained_small):
    def zeros(seed):
        ax = scvip.pl.posterior_predictive(trained_small, statistics="zeros", random_state=seed, show=False)
        return np.asarray(ax.collections[0].get_offsets())

    state = torch.get_rng_state()
    first = zeros(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    np.testing.assert_array_equal(zeros(0), first)
    assert (zeros(1) != first).any()


def test_numbers_out_of_range_are_refused(trained_small):
    with pytest.raises(ValueError, match="max_cells=0 was passed; pass a whole number of at least 20"):
        scvip.pl.posterior_predictive(trained_small, max_cells=0, show=False)
