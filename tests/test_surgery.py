"""Batches and other categories that a reference never saw."""

import numpy as np
import pytest
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro.model import SCVI, _distance

NEW = "dropseq_3cl"
# Whatever has parameters of batches or of other categories.
OPTIONS = {
    "defaults": {},
    "encoder sees covariates": {"encode_covariates": True, "n_layers": 2},
    "injected once": {"n_layers": 2, "deeply_inject_covariates": False, "encode_covariates": True},
    "embedding": {"batch_representation": "embedding", "n_batch_embedding": 3},
    "one-hot": {"batch_representation": "one-hot"},
    "offset and covariates": {"batch_representation": "offset", "categorical_covariate_keys": "donor"},
    "dispersion by batch": {"dispersion": "gene-batch", "batch_representation": "one-hot", "batch_offset": None},
    "dispersion by cell": {"dispersion": "gene-cell", "gene_likelihood": "zinb", "prior": "mixture"},
    "latent library": {"library": "latent"},
    "size factors": {"size_factor_key": "size", "gene_likelihood": "poisson"},
    "covariates": {"categorical_covariate_keys": ["donor", "sex"], "continuous_covariate_keys": "age"},
    "linear": {"decoder": "linear", "categorical_covariate_keys": "donor", "encoder_normalization": "none"},
    "linear zinb": {"decoder": "linear", "gene_likelihood": "zinb", "batch_representation": "embedding"},
    "labels": {"dispersion": "gene-label", "labels_key": "cell_type", "decoder_normalization": "layer"},
}


class Stopped(SCVI):
    """Ctrl-C in the middle of the training of new parameters."""

    def guide(self, cells, kl_weight=1.0):
        if self.n_batches > 2:
            raise KeyboardInterrupt
        return super().guide(cells, kl_weight)


@pytest.fixture
def annotated(small):
    rng = np.random.default_rng(0)
    small.obs["donor"] = np.where(small.obs["batch"] == NEW, "new", rng.choice(["a", "b"], small.n_obs))
    small.obs["sex"] = np.where(small.obs["batch"] == NEW, "f", "m")
    small.obs["age"] = rng.normal(size=small.n_obs)
    small.obs["size"] = np.ravel(small.X.sum(axis=1)) / 100
    return small


@pytest.fixture
def query(annotated):
    return annotated[annotated.obs["batch"] == NEW].copy()


@pytest.fixture
def train(annotated, train_quickly):
    """Train a reference on the two other protocols."""

    def train(**options):
        reference = annotated[annotated.obs["batch"] != NEW].copy()
        train_quickly(reference, batch_key="batch", **options)
        return reference

    return train


def map_quickly(query, reference, **options):
    scvip.tl.map_query(query, reference, **({"max_epochs": 3, "progress_bar": False} | options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_codes_of_the_reference_stay_what_they_were_to_the_bit(query, train, options):
    reference = train(**options)
    map_quickly(query, reference)
    again = reference.copy()
    again.uns = query.uns
    scvip.tl.map_query(again, query)
    np.testing.assert_array_equal(again.obsm["X_scvi_pyro"], reference.obsm["X_scvi_pyro"])
    np.testing.assert_allclose(again.layers["scvi_pyro_imputed"], reference.layers["scvi_pyro_imputed"], rtol=1e-5)
    assert np.isfinite(query.obsm["X_scvi_pyro"]).all()
    assert np.isfinite(query.layers["scvi_pyro_imputed"]).all()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_all_that_was_there_is_frozen_and_what_is_new_is_learnt(query, train, options):
    before = scvip.get.model(reference := train(**options)).state_dict()
    map_quickly(query, reference)
    after = scvip.get.model(query).state_dict()
    assert set(before) <= set(after)
    for name, value in before.items():
        if value.shape == after[name].shape:
            assert torch.equal(value, after[name]), name
    grown = [name for name, value in before.items() if value.shape != after[name].shape]
    assert "encoder.hidden.layers.0.0.weight" in grown
    assert "offset" in grown or options["batch_offset"] is None
    map_quickly(longer := query.copy(), reference, max_epochs=6)
    longer = scvip.get.model(longer).state_dict()
    assert [name for name in after if not torch.equal(after[name], longer[name])]
    assert {name for name in after if not torch.equal(after[name], longer[name])} <= set(grown)


def test_learning_raises_the_elbo_of_the_new_cells(query, train):
    map_quickly(query, train(batch_alignment=0), max_epochs=30)
    history = query.uns["scvi_pyro"]["surgery"]["history"]
    assert len(history) == 30
    assert history["train_elbo"].iloc[-1] > history["train_elbo"].iloc[0] + 0.2


def test_new_batches_are_aligned_to_the_components_of_the_reference():
    adata = scvip.datasets.cell_mixtures()
    is_new = adata.obs["batch"] == "10x_3cl"
    reference, query = adata[~is_new].copy(), adata[is_new].copy()
    scvip.tl.scvi_pyro(reference, batch_key="batch", max_epochs=30, impute=False, progress_bar=False)
    distances = []
    for weight in (0.0, 200.0):
        reference.uns["scvi_pyro"]["model_options"]["batch_alignment"] = weight
        scvip.tl.map_query(query, reference, impute=False, progress_bar=False)
        module, z = scvip.get.model(query).requires_grad_(requires_grad=False), query.obsm["X_scvi_pyro"]
        prior = module.prior()
        module.misalignment(prior, torch.from_numpy(z), torch.zeros(len(z), dtype=torch.long))
        distance, n_cells = _distance(module.code_sums, prior.component_distribution)[0], module.code_sums[0, :, -1]
        distances.append(((distance * n_cells).sum() / n_cells.sum()).item())
    assert distances[1] < 0.9 * distances[0]


def test_offsets_start_where_expected_counts_sum_to_the_observed(query, train):
    reference = train()
    map_quickly(query, reference, max_epochs=1, learning_rate=1e-8)
    imputed = query.layers["scvi_pyro_imputed"].sum(axis=0)
    np.testing.assert_allclose(imputed, np.ravel(query.X.sum(axis=0)), rtol=0.3)


def test_categories_are_appended_and_the_history_of_the_reference_is_kept(query, train):
    reference = train(categorical_covariate_keys="donor")
    map_quickly(query, reference)
    stored = query.uns["scvi_pyro"]
    assert {key: names.tolist() for key, names in stored["categories"].items()} == {
        "batch": ["10x_3cl", "celseq2_3cl", NEW],
        "donor": ["a", "b", "new"],
    }
    assert stored["history"].equals(reference.uns["scvi_pyro"]["history"])
    assert stored["surgery"]["params"]["max_epochs"] == 3


def test_a_new_category_of_a_known_batch_is_learnt(annotated, train):
    reference = train(categorical_covariate_keys="donor")
    query = reference.copy()
    query.obs["donor"] = "c"
    map_quickly(query, reference)
    assert query.uns["scvi_pyro"]["categories"]["donor"].tolist() == ["a", "b", "c"]
    assert np.isfinite(query.obsm["X_scvi_pyro"]).all()


@pytest.mark.parametrize("representation", ["one-hot", "embedding", "offset"])
def test_a_reference_of_one_batch_takes_a_second(annotated, train_quickly, representation):
    reference = annotated[annotated.obs["batch"] == "10x_3cl"].copy()
    train_quickly(reference, batch_key="batch", batch_representation=representation)
    query = annotated[annotated.obs["batch"] == NEW].copy()
    map_quickly(query, reference)
    again = reference.copy()
    scvip.tl.map_query(again, query)
    np.testing.assert_array_equal(again.obsm["X_scvi_pyro"], reference.obsm["X_scvi_pyro"])
    weights = query.uns["scvi_pyro"]["weights"]
    if representation == "embedding":
        assert (weights["batch_embedding.weight"][0] == 0).all()
        assert (weights["batch_embedding.weight"][1] != 1).any()


def test_the_model_of_the_query_is_a_reference_for_the_next_batch(annotated, query, train, tmp_path):
    map_quickly(query, train())
    scvip.write_model(query, tmp_path / "query.safetensors")
    following = annotated[annotated.obs["batch"] == "10x_3cl"].copy()
    following.obs["batch"] = "fourth"
    map_quickly(following, scvip.read_model(tmp_path / "query.safetensors"))
    assert following.uns["scvi_pyro"]["categories"]["batch"].tolist() == ["10x_3cl", "celseq2_3cl", NEW, "fourth"]
    scvip.tl.map_query(again := query.copy(), following)
    np.testing.assert_array_equal(again.obsm["X_scvi_pyro"], query.obsm["X_scvi_pyro"])


def test_known_batches_need_no_training(annotated, train):
    reference = train()
    scvip.tl.map_query(query := reference[::2].copy(), reference)
    assert "surgery" not in query.uns["scvi_pyro"]
    np.testing.assert_array_equal(query.obsm["X_scvi_pyro"], reference.obsm["X_scvi_pyro"][::2])


def test_every_query_works_on_the_new_batch(query, train):
    map_quickly(query, train(batch_representation="embedding"))
    scvip.tl.impute(query, transform_batch="10x_3cl", key_added="as_10x")
    scvip.tl.impute(query, transform_batch=NEW, key_added="own")
    np.testing.assert_allclose(query.layers["own"], query.layers["scvi_pyro_imputed"], rtol=1e-5)
    assert not np.allclose(query.layers["as_10x"], query.layers["own"], rtol=1e-3)
    assert query.uns["scvi_pyro"]["batch_embedding"].index.tolist() == ["10x_3cl", "celseq2_3cl", NEW]


def test_the_same_seed_gives_the_same_bits(query, train):
    reference = train()
    map_quickly(first := query.copy(), reference, random_state=1)
    torch.rand(3)
    map_quickly(second := query.copy(), reference, random_state=1)
    np.testing.assert_array_equal(first.obsm["X_scvi_pyro"], second.obsm["X_scvi_pyro"])
    map_quickly(other := query.copy(), reference, random_state=2)
    assert (first.obsm["X_scvi_pyro"] != other.obsm["X_scvi_pyro"]).any()


def test_one_cell_of_a_new_batch_can_be_mapped(query, train):
    map_quickly(one := query[[0]].copy(), train())
    assert np.isfinite(one.obsm["X_scvi_pyro"]).all()


def test_ctrl_c_leaves_everything_as_before(query, train, unchanged):
    reference = train(module=Stopped)
    before, reference_before = query.copy(), reference.copy()
    with pytest.raises(KeyboardInterrupt):
        map_quickly(query, reference, module=Stopped)
    unchanged(query, before)
    unchanged(reference, reference_before)


def test_a_class_of_ones_own_is_kept(query, train):
    class Mine(SCVI):
        def guide(self, cells, kl_weight=1.0):
            return super().guide(cells, kl_weight)

    map_quickly(query, train(module=Mine), module=Mine)
    assert query.uns["scvi_pyro"]["module"] == "Mine"


def test_a_new_label_is_refused(query, train, unchanged):
    reference = train(dispersion="gene-label", labels_key="cell_type")
    query.obs["cell_type"] = "new"
    before = query.copy()
    with pytest.raises(ValueError, match=r"labels_key='cell_type' .* 'new'"):
        map_quickly(query, reference)
    unchanged(query, before)


@pytest.mark.parametrize(("name", "value"), [("max_epochs", 0), ("batch_size", 1), ("learning_rate", 0)])
def test_bad_arguments_are_refused(query, train, name, value):
    with pytest.raises(ValueError, match=rf"{name}={value} was passed"):
        map_quickly(query, train(), **{name: value})
