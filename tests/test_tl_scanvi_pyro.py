"""``tl.scanvi_pyro``: labels of all cells, and of new ones."""

import functools

import anndata as ad
import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
from anndata.tests.helpers import assert_equal
from scipy.special import log_softmax, softmax
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import scanpy_scvipyro as scvip
from scanpy_scvipyro.scanvi import SCANVI


class LabelsByDensity(SCANVI):
    """Labels by Bayes' rule, without a network."""

    def classify(self, z):
        components = dist.Normal(self.prior_loc, self.prior_log_scale.exp()).to_event(1)
        return components.log_prob(z[..., None, :])[..., : self.n_labels]


KEYS = ["scanvi_pyro", "scanvi_pyro_probability", "scanvi_pyro_novelty"]
train = functools.partial(scvip.tl.scanvi_pyro, labels_key="known", batch_key="batch", progress_bar=False)
train_quickly = functools.partial(train, max_epochs=2, n_hidden=8)


@pytest.fixture(scope="module")
def _labelled(_mixtures):
    """Labels of the cells of one protocol, of two of the three lines."""
    adata = _mixtures.copy()
    is_known = (adata.obs["batch"] == "10x_3cl") & (adata.obs["cell_type"] != "HCC827")
    adata.obs["known"] = adata.obs["cell_type"].where(is_known | (adata.obs["cell_type"] == "H1975"))
    known = adata[adata.obs["cell_type"] != "HCC827"].copy()
    train(known, max_epochs=25)
    return known, adata[adata.obs["cell_type"] == "HCC827"].copy()


@pytest.fixture
def labelled(_labelled):
    """Two lines, all labelled in one of three protocols, one in the others; trained."""
    return _labelled[0].copy()


@pytest.fixture
def unknown_line(_labelled):
    """Cells of a third line, which the model has never seen."""
    return _labelled[1].copy()


@pytest.fixture
def small(small):
    small.obs["known"] = small.obs["cell_type"].where(np.arange(small.n_obs) % 3 > 0)
    return small


def test_labels_are_transferred_to_protocols_without_them(labelled):
    hidden = labelled.obs["known"].isna()
    assert hidden.sum() > 100
    assert (labelled.obs["scanvi_pyro"] == labelled.obs["cell_type"])[hidden].mean() > 0.97


def test_cells_of_a_type_that_was_never_seen_are_novel(labelled, unknown_line):
    scvip.tl.map_query(unknown_line, labelled, key="scanvi_pyro", impute=False)
    novelty = [unknown_line.obs["scanvi_pyro_novelty"], labelled.obs["scanvi_pyro_novelty"]]
    is_unknown = np.repeat([1, 0], [len(part) for part in novelty])
    assert roc_auc_score(is_unknown, np.concatenate(novelty)) > 0.9


def test_all_results_are_written_with_their_types(labelled):
    obs, probabilities = labelled.obs, labelled.obsm["scanvi_pyro_probabilities"]
    assert obs["scanvi_pyro"].cat.categories.tolist() == ["H1975", "H2228"]
    assert [obs[key].dtype for key in KEYS[1:]] == [np.float32, np.float32]
    assert obs["scanvi_pyro_novelty"].between(0, 1).all()
    assert probabilities.columns.tolist() == ["H1975", "H2228"]
    np.testing.assert_allclose(probabilities.max(axis=1), obs["scanvi_pyro_probability"])
    assert labelled.obsm["X_scanvi_pyro"].shape == (labelled.n_obs, 10)
    assert labelled.layers["scanvi_pyro_imputed"].shape == labelled.shape
    assert labelled.uns["scanvi_pyro"]["params"]["labels_key"] == "known"


def test_queries_need_no_labels_and_get_what_the_reference_got(labelled):
    query = labelled[::5].copy()
    expected = query.obs[KEYS].copy()
    query.obs = query.obs[["batch"]]
    scvip.tl.map_query(query, labelled, key="scanvi_pyro", impute=False)
    assert (query.obs["scanvi_pyro"] == expected["scanvi_pyro"]).all()
    np.testing.assert_allclose(query.obs["scanvi_pyro_probability"], expected["scanvi_pyro_probability"], atol=1e-4)
    novelty = query.obs["scanvi_pyro_novelty"].corr(expected["scanvi_pyro_novelty"])
    assert novelty > 0.9  # it is measured against cells that are simulated anew


@pytest.mark.parametrize("extension", ["h5ad", "zarr", "safetensors"])
def test_a_model_that_was_read_from_a_file_predicts_the_same(labelled, tmp_path, extension):
    path = tmp_path / f"model.{extension}"
    if extension == "safetensors":
        scvip.write_model(labelled, path, key="scanvi_pyro")
        reference = scvip.read_model(path)
    else:
        getattr(labelled, f"write_{extension}")(path)
        reference = getattr(ad, f"read_{extension}")(path)
    first, second = labelled[::9].copy(), labelled[::9].copy()
    scvip.tl.map_query(first, labelled, key="scanvi_pyro", impute=False)
    scvip.tl.map_query(second, reference, key="scanvi_pyro", impute=False)
    pd.testing.assert_frame_equal(first.obs[KEYS], second.obs[KEYS])


@pytest.mark.parametrize("function", ["latent", "score_cells", "posterior_predictive", "impute"])
def test_functions_for_trained_models_need_no_labels(labelled, function):
    cells = labelled[::9].copy()
    del cells.obs["known"]
    getattr(scvip.tl, function)(cells, key="scanvi_pyro")


def test_missing_values_and_the_unlabeled_category_mean_the_same(small):
    other = small.copy()
    other.obs["known"] = other.obs["known"].cat.add_categories("?").fillna("?")
    train_quickly(small)
    train_quickly(other, unlabeled_category="?")
    pd.testing.assert_frame_equal(small.obs[KEYS], other.obs[KEYS])


def test_all_cells_may_have_labels(small):
    train_quickly(small, labels_key="cell_type")
    assert small.obs["scanvi_pyro"].notna().all()


def test_a_label_may_have_a_single_cell(small):
    small.obs["known"] = small.obs["known"].astype(object)
    small.obs.iloc[0, small.obs.columns.get_loc("known")] = "rare"
    train_quickly(small, train_size=1)
    assert "rare" in small.obsm["scanvi_pyro_probabilities"]


def test_names_of_labels_may_have_what_files_do_not_store(small, tmp_path):
    small.obs["known"] = small.obs["known"].cat.rename_categories(lambda name: f"{name[:2]}/{name[2:]}")
    train_quickly(small)
    small.write_h5ad(tmp_path / "small.h5ad")
    read = ad.read_h5ad(tmp_path / "small.h5ad")
    assert read.obs["scanvi_pyro"].cat.categories.tolist() == ["H1/975", "H2/228", "HC/C827"]
    assert read.obsm["scanvi_pyro_probabilities"].columns.tolist() == ["H1|975", "H2|228", "HC|C827"]


def test_cells_above_max_novelty_are_unknown(small):
    train_quickly(small, max_novelty=0.6)
    is_unknown = small.obs["scanvi_pyro"] == "unknown"
    np.testing.assert_array_equal(is_unknown, small.obs["scanvi_pyro_novelty"] > 0.6)
    assert 0 < is_unknown.sum() < small.n_obs


def test_training_starts_from_an_unsupervised_model_with_its_options(small):
    scvip.tl.scvi_pyro(small, batch_key="batch", n_latent=3, n_hidden=8, max_epochs=2, progress_bar=False)
    train(small, batch_key=None, init_from="scvi_pyro", max_epochs=1, learning_rate=1e-8)
    assert small.uns["scanvi_pyro"]["params"]["init_from"] == "scvi_pyro"
    np.testing.assert_allclose(small.obsm["X_scanvi_pyro"], small.obsm["X_scvi_pyro"], atol=0.05)


def test_training_from_an_unsupervised_model_takes_a_third_of_the_epochs(small):
    scvip.tl.scvi_pyro(small, batch_key="batch", n_hidden=8, max_epochs=2, progress_bar=False)
    train(small, init_from="scvi_pyro")
    assert len(small.uns["scanvi_pyro"]["history"]) == 200 // 3


def test_arguments_that_contradict_the_model_to_start_from_are_refused(small):
    scvip.tl.scvi_pyro(small, batch_key="batch", n_hidden=8, max_epochs=2, progress_bar=False)
    with pytest.raises(ValueError, match="n_latent=5 contradicts the model init_from='scvi_pyro', which has 10"):
        train(small, init_from="scvi_pyro", n_latent=5)


def test_training_again_removes_the_labels_of_the_earlier_model(labelled):
    scvip.tl.scvi_pyro(labelled, max_epochs=1, n_hidden=8, impute=False, key_added="scanvi_pyro", progress_bar=False)
    assert not set(KEYS) & set(labelled.obs)
    assert "scanvi_pyro_probabilities" not in labelled.obsm


def test_the_same_seed_gives_the_same_labels(small):
    again = small.copy()
    train_quickly(small, random_state=3)
    train_quickly(again, random_state=3)
    assert_equal(small, again)


def test_a_column_that_every_cell_has_another_value_of_is_refused(small):
    small.obs["known"] = small.obs_names
    with pytest.raises(ValueError, match="has 90 labels for 90 labelled cells"):
        train_quickly(small)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"known": None}, {}, "labels_key='known' has no label; two are needed"),
        ({"known": "H1975"}, {}, "has one label, 'H1975'; two are needed"),
        ({}, {"unlabeled_category": "h1975"}, "is not in adata.obs\\['known'\\]. Did you mean 'H1975'"),
        ({}, {"labels_key": "knwon"}, "labels_key='knwon' is not in adata.obs. Did you mean 'known'"),
        ({}, {"max_novelty": 2}, "max_novelty=2 was passed; pass a number from 0 to 1"),
        ({}, {"dispersion": "gene-label"}, "needs a label of every cell"),
        ({}, {"init_from": "scvi_pyro"}, "key='scvi_pyro' is not in adata.uns"),
        ({}, {"unlabelled_category": "?"}, "has no argument 'unlabelled_category'. Did you mean 'unlabeled_category'"),
    ],
)
def test_bad_input_is_refused_before_any_work_and_changes_nothing(small, change, arguments, message):
    small.obs = small.obs.assign(**change)
    before = small.copy()
    with pytest.raises((ValueError, KeyError, TypeError), match=message):
        train_quickly(small, **arguments)
    assert_equal(small, before)


def test_a_label_named_unknown_is_refused_where_novel_cells_are_called_so(small):
    small.obs["known"] = small.obs["known"].cat.rename_categories({"H1975": "unknown"})
    with pytest.raises(ValueError, match="has the label 'unknown', which max_novelty= gives"):
        train_quickly(small, max_novelty=0.9)


def test_labels_are_predicted_in_a_batch_that_the_reference_has_not_seen(labelled):
    reference = labelled[labelled.obs["batch"] != "dropseq_3cl"].copy()
    query = labelled[labelled.obs["batch"] == "dropseq_3cl"].copy()
    train(reference, max_epochs=25, impute=False)
    scvip.tl.map_query(query, reference, key="scanvi_pyro", impute=False, progress_bar=False)
    assert (query.obs["scanvi_pyro"] == query.obs["cell_type"]).mean() > 0.95


def test_labels_follow_what_a_subclass_says(small):
    train_quickly(small, module=LabelsByDensity, impute=False)
    stored = small.uns["scanvi_pyro"]
    loc, log_scale = (stored["weights"][name][:3] for name in ("prior_loc", "prior_log_scale"))
    by_subclass = norm.logpdf(small.obsm["X_scanvi_pyro"][:, None], loc, np.exp(log_scale)).sum(axis=-1)
    difference = small.obsm["X_scanvi_pyro"][:, None] - stored["labels"]["label_mean"]
    inverse = np.linalg.inv(stored["labels"]["covariance"])
    by_mean = -0.5 * np.einsum("nld,de,nle->nl", difference, inverse, difference)
    weight = stored["labels"]["density_weight"]
    n_shown = small.obs["known"].notna().sum() - stored["labels"]["held_out_confusion"].sum()
    assert weight == pytest.approx(5 / (5 + n_shown / 3))
    expected = (1 - weight) * log_softmax(by_subclass, axis=1) + weight * by_mean
    probabilities = softmax(expected / stored["labels"]["temperature"], axis=1)
    np.testing.assert_allclose(small.obsm["scanvi_pyro_probabilities"], probabilities, atol=1e-4)
    query = small[:5].copy()
    scvip.tl.map_query(query, small, key="scanvi_pyro", module=LabelsByDensity, impute=False)
    np.testing.assert_allclose(query.obsm["scanvi_pyro_probabilities"], probabilities[:5], atol=1e-4)


def test_a_model_of_a_subclass_is_not_taken_for_another(small):
    train_quickly(small, module=LabelsByDensity, impute=False)
    with pytest.raises(ValueError, match="LabelsByDensity"):
        scvip.tl.map_query(small[:5].copy(), small, key="scanvi_pyro")
