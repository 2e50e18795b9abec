import numpy as np
import pytest
from matplotlib.colors import to_rgba

import scanpy_scvipyro as scvip
from scanpy_scvipyro.pl import _abundance

pytestmark = pytest.mark.usefixtures("no_windows")


@pytest.fixture
def compared(trained_small):
    """Results made by hand, of which those of one cell line are found."""
    is_found = (trained_small.obs["cell_type"] == "H1975").to_numpy()
    trained_small.obs["scvi_pyro_da_lfc"] = np.where(is_found, 1.5, np.linspace(-1, 1, 90))
    trained_small.obs["scvi_pyro_da_fdr"] = np.where(is_found, 0.01, 0.5)
    params = {"group": "case", "reference": "control", "key": "scvi_pyro", "groupby": "cell_type"}
    trained_small.uns["scvi_pyro_da"] = {"params": params}
    trained_small.obsm["X_umap"] = np.random.default_rng(0).normal(size=(90, 2))
    return trained_small


def test_found_cells_are_coloured_and_others_are_grey(compared):
    axes = scvip.pl.abundance(compared, show=False)
    others, found = axes[0].collections
    n_found = (compared.obs["cell_type"] == "H1975").sum()
    assert len(found.get_offsets()) == n_found
    assert len(others.get_offsets()) == 90 - n_found
    np.testing.assert_allclose(others.get_facecolors()[0], to_rgba(_abundance.NOT_FOUND))
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["H1975", "H2228", "HCC827"]


def test_without_labels_there_is_a_umap_of_the_codes(compared):
    del compared.uns["scvi_pyro_da"]["params"]["groupby"], compared.obsm["X_umap"]
    compared.obs["scvi_pyro_da_fdr"] = 1.0
    ax = scvip.pl.abundance(compared, show=False)
    assert ax.get_title() == "No difference found"
    assert "X_umap" not in compared.obsm


def test_swarms_do_not_overlap_and_stay_in_their_row():
    values = np.random.default_rng(0).normal(size=500)
    heights = _abundance.beeswarm(values, 0.1)
    assert np.abs(heights).max() <= 0.4
    assert len(set(zip(np.floor(values / 0.1), heights, strict=True))) == 500


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "scvi"}, KeyError, r"key='scvi' has no differences of abundance .* Did you mean 'scvi_pyro'"),
        ({"groupby": "type"}, KeyError, r"groupby='type' is not in adata.obs"),
        ({"max_cells": 3}, ValueError, r"max_cells=3 was passed"),
    ],
)
def test_refusals(compared, arguments, error, message):
    with pytest.raises(error, match=message):
        scvip.pl.abundance(compared, **arguments, show=False)
