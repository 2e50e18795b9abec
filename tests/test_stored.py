"""Models that are whole, lost, or parts and mixtures of several."""

import anndata as ad
import numpy as np
import pytest

import scanpy_scvipyro as scvip


@pytest.fixture
def two(small, train_quickly):
    """Two halves of the cells, each with a model of its own under the same key, of the same shape."""
    one, other = small[::2].copy(), small[1::2].copy()
    train_quickly(one, batch_key="batch")
    train_quickly(other, batch_key="batch", random_state=1)
    return one, other


def test_a_concatenation_without_uns_says_that_it_has_lost_the_model(two):
    both = ad.concat(two)
    with pytest.raises(
        KeyError, match=r"adata\.obsm has 'X_scvi_pyro', but .* no model .* ad\.concat keeps .*map_query"
    ):
        scvip.tl.latent(both)


@pytest.mark.parametrize("uns_merge", ["same", "unique"])
@pytest.mark.parametrize("ask", [scvip.get.model, scvip.tl.latent, scvip.pl.history, scvip.tl.impute])
def test_what_two_models_have_in_common_is_refused_as_a_part(two, uns_merge, ask):
    both = ad.concat(two, uns_merge=uns_merge)
    assert "weights" in both.uns["scvi_pyro"]
    with pytest.raises(KeyError, match=r"uns\['scvi_pyro'\] is not one model any more, it has no '.*map_query"):
        ask(both)


@pytest.mark.parametrize(
    "options",
    [{"layer": "counts"}, {"batch_key": "batch"}, {"n_layers": 2}, {"size_factor_key": "size"}],
    ids=lambda options: next(iter(options)),
)
def test_mixtures_of_two_models_are_refused(small, train_quickly, options):
    small.layers["counts"] = small.X
    small.obs["size"] = 1.0
    one, other = small[::2].copy(), small[1::2].copy()
    train_quickly(one)
    train_quickly(other, **options)
    mixed = ad.concat([one, other], uns_merge="first")
    with pytest.raises(KeyError, match=r"is not one model any more, it has '.*' of another model"):
        scvip.get.model(mixed)


def test_the_first_model_of_two_of_the_same_kind_is_that_model(two):
    both = ad.concat(two, uns_merge="first")
    for name, weight in scvip.get.model(two[0]).state_dict().items():
        np.testing.assert_array_equal(scvip.get.model(both).state_dict()[name], weight)


@pytest.mark.parametrize("batch_key", ["batch", None])
def test_a_model_that_all_share_survives_a_concatenation(small, train_quickly, batch_key):
    train_quickly(small, batch_key=batch_key)
    both = ad.concat([small[::2], small[1::2]], uns_merge="same")
    before = small[both.obs_names].obsm["X_scvi_pyro"]
    scvip.tl.latent(both)
    np.testing.assert_allclose(both.obsm["X_scvi_pyro"], before, atol=1e-5)


def test_a_concatenation_gets_a_model_back_by_mapping(two):
    both = ad.concat(two)
    scvip.tl.map_query(both, two[0])
    codes = both[two[0].obs_names].obsm["X_scvi_pyro"]
    np.testing.assert_allclose(codes, two[0].obsm["X_scvi_pyro"], atol=1e-5)


def test_models_that_do_not_list_their_entries_are_read(trained_small):
    del trained_small.uns["scvi_pyro"]["entries"]
    assert scvip.get.model(trained_small).n_genes == trained_small.n_vars


def test_something_else_under_the_key_is_no_model(trained_small):
    trained_small.uns["pca"] = {"params": {}, "variance": np.ones(3)}
    with pytest.raises(KeyError, match=r"key='pca' is in adata\.uns, but is no trained model; train a model first"):
        scvip.get.model(trained_small, key="pca")


def test_weights_that_do_not_fit_the_options_are_refused_in_one_line(trained_small):
    trained_small.uns["scvi_pyro"]["model_options"]["n_latent"] = 7
    with pytest.raises(ValueError, match=r"holds weights that do not fit a SCVI .*'decoder\.") as caught:
        scvip.get.model(trained_small)
    assert "\n" not in str(caught.value)
