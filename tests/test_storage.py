"""A trained model as plain arrays, and back."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, posterior, storage
from scanpy_scvipyro.model import SCVI


class Renamed(SCVI):
    pass


OPTIONS = [
    {},
    {"gene_likelihood": "zinb", "dispersion": "gene-cell", "n_layers": 2},
    {"library": "latent", "dispersion": "gene-batch", "prior": "mixture", "n_prior_components": 3},
    {"batch_representation": "embedding", "batch_offset": None, "encode_covariates": True},
    {"decoder": "linear", "encoder_normalization": "none", "mask_var": "chosen"},
    {
        "categorical_covariate_keys": ["donor", "cell_type"],
        "continuous_covariate_keys": "age",
        "labels_key": "cell_type",
        "dispersion": "gene-label",
        "size_factor_key": "factor",
        "layer": "counts",
    },
]


@pytest.fixture(params=OPTIONS, ids=range(len(OPTIONS)))
def options(request):
    return request.param


@pytest.fixture
def annotated(small):
    rng = np.random.default_rng(0)
    small.obs["donor"] = rng.choice(["x", "y"], small.n_obs)
    small.obs["age"] = rng.normal(size=small.n_obs)
    small.obs["factor"] = rng.uniform(0.5, 2, small.n_obs)
    small.var["chosen"] = np.arange(small.n_vars) % 3 > 0
    small.layers["counts"] = small.X.copy()
    return small


def assert_plain(value):
    """Nothing that a file format would have to pickle."""
    if isinstance(value, dict):
        for name, part in value.items():
            assert type(name) is str
            assert_plain(part)
    elif isinstance(value, pd.DataFrame):
        assert all(dtype.kind in "iuf" for dtype in value.dtypes)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        assert all(type(part) is str for part in value)
    else:
        assert type(value) in (str, bool, int, float) or isinstance(value, np.ndarray | np.generic)


def test_what_is_stored_is_plain(annotated, train_quickly, options):
    train_quickly(annotated, batch_key="batch", **options)
    assert_plain(annotated.uns["scvi_pyro"])


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_a_model_comes_back_from_a_file(annotated, train_quickly, options, file_format, tmp_path):
    train_quickly(annotated, batch_key="batch", **options)
    path = tmp_path / f"trained.{file_format}"
    getattr(annotated, f"write_{file_format}")(path)
    read = getattr(ad, f"read_{file_format}")(path)

    before, after = scvip.get.model(annotated), scvip.get.model(read)
    assert before.state_dict().keys() == after.state_dict().keys()
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name
        assert value.dtype == after.state_dict()[name].dtype
    pd.testing.assert_frame_equal(
        read.uns["scvi_pyro"]["history"], annotated.uns["scvi_pyro"]["history"], check_index_type=False
    )

    # Latent codes and imputed counts, recomputed from what the file holds, are those written after training.
    module, spec = storage.from_uns(read, "scvi_pyro")
    cell_data = data.load(read, spec)
    latent = posterior.latent_codes(module, cell_data)[0]
    np.testing.assert_array_equal(latent, annotated.obsm["X_scvi_pyro"])
    imputed = posterior.expected_counts(module, cell_data, latent, spec.gene_positions(read), read.n_vars)
    np.testing.assert_array_equal(imputed, annotated.layers["scvi_pyro_imputed"])


def test_the_spec_comes_back(annotated, train_quickly):
    train_quickly(annotated, batch_key="batch", mask_var="chosen", **OPTIONS[-1])
    spec = storage.from_uns(annotated, "scvi_pyro")[1]
    assert (spec.layer, spec.batch_key, spec.labels_key) == ("counts", "batch", "cell_type")
    assert spec.size_factor_key == "factor"
    assert list(spec.categorical_covariate_keys) == ["donor", "cell_type"]
    assert list(spec.continuous_covariate_keys) == ["age"]
    assert spec.genes.tolist() == annotated.var_names[annotated.var["chosen"]].tolist()
    assert spec.categories["batch"].tolist() == sorted(annotated.obs["batch"].unique())
    assert (spec.n_batches, spec.n_labels, spec.n_categories) == (3, 3, (2, 3))
    age = annotated.obs["age"]
    np.testing.assert_allclose(spec.standardization, [[age.mean()], [age.std(ddof=0)]])


def test_models_stored_without_scales_of_covariates_take_them_as_they_are(annotated, train_quickly):
    train_quickly(annotated, continuous_covariate_keys=["age"], impute=False)
    del annotated.uns["scvi_pyro"]["standardization"]
    spec = storage.spec(annotated, "scvi_pyro")
    np.testing.assert_allclose(data.load(annotated, spec).continuous[:, 0], annotated.obs["age"], rtol=1e-6)


def test_the_model_is_ready_for_use(trained_small):
    module = scvip.get.model(trained_small)
    assert type(module) is SCVI
    assert not module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_changing_the_model_does_not_change_adata(trained_small):
    before = trained_small.uns["scvi_pyro"]["weights"]["decoder.rate.bias"].copy()
    with torch.no_grad():
        scvip.get.model(trained_small).decoder.rate.bias.add_(1)
    np.testing.assert_array_equal(trained_small.uns["scvi_pyro"]["weights"]["decoder.rate.bias"], before)


def test_getting_a_model_leaves_the_random_state_alone(trained_small):
    before = torch.get_rng_state()
    scvip.get.model(trained_small)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_models_live_in_one_anndata(trained_small, train_quickly):
    train_quickly(trained_small, n_latent=3, key_added="other")
    assert scvip.get.model(trained_small, key="other").n_latent == 3
    assert scvip.get.model(trained_small).n_latent == 10


def test_a_missing_model_is_refused_with_the_nearest(trained_small):
    trained_small.uns["neighbors"] = {"params": {}}
    message = (
        r"key='scvipyro' is not in adata\.uns; train a model first.*Did you mean 'scvi_pyro'\? There is: 'scvi_pyro'\."
    )
    with pytest.raises(KeyError, match=message):
        scvip.get.model(trained_small, key="scvipyro")


def test_a_model_of_another_class_is_refused(small, train_quickly):
    train_quickly(small, module=Renamed)
    assert type(scvip.get.model(small, module=Renamed)) is Renamed
    with pytest.raises(
        ValueError, match=r"holds the weights of a Renamed, not of SCVI; pass the class itself: module=Ren"
    ):
        scvip.get.model(small)


def test_offsets_among_the_weights_of_the_decoder_are_found_there(small, train_quickly):
    train_quickly(small, batch_key="batch", batch_representation="one-hot")
    expected = scvip.tl.latent(small, copy=True).obsm["X_scvi_pyro"]
    before = scvip.get.model(small)
    weights = small.uns["scvi_pyro"]["weights"]
    del small.uns["scvi_pyro"]["entries"]
    offset = weights.pop("offset")
    assert np.abs(offset).min(axis=1).max() > 0
    weights["decoder.rate.weight"] = np.hstack([weights["decoder.rate.weight"], offset.T])
    after = scvip.get.model(small).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.state_dict().items())
    np.testing.assert_array_equal(scvip.tl.latent(small, copy=True).obsm["X_scvi_pyro"], expected)


def test_a_model_without_the_newer_options_is_the_one_that_it_was(small, train_quickly):
    published = {"encoder_input": "log_counts", "prior": "normal", "batch_representation": "one-hot"}
    published |= {"batch_alignment": 0}
    train_quickly(small, batch_key="batch", **published)
    del small.uns["scvi_pyro"]["entries"]
    for name in ("encoder_input", "batch_alignment"):
        del small.uns["scvi_pyro"]["model_options"][name], small.uns["scvi_pyro"]["params"][name]
    query = small.copy()
    scvip.tl.map_query(query, small)
    np.testing.assert_array_equal(query.obsm["X_scvi_pyro"], small.obsm["X_scvi_pyro"])
