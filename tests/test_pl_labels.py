"""``pl.labels``, and what the report says of labels."""

import numpy as np
import pandas as pd
import pytest

import scanpy_scvipyro as scvip
from scanpy_scvipyro import checks, labels

OPTIONS = {"batch_key": "batch", "max_epochs": 15, "progress_bar": False, "impute": False}


@pytest.fixture(scope="module")
def _annotated(_mixtures):
    adata = _mixtures.copy()
    scvip.tl.scanvi_pyro(adata, labels_key="cell_type", **OPTIONS)
    return adata


@pytest.fixture
def annotated(_annotated):
    """All cells of three lines, labelled and trained on."""
    return _annotated.copy()


def report(adata, tmp_path, **arguments):
    page = tmp_path / "report.html"
    scvip.pl.report(adata, key="scanvi_pyro", path=page, max_cells=300, **arguments)
    return page.read_text()


def test_reliability_holds_cells_probability_and_accuracy_of_each_bin():
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]], dtype=np.float32)
    table = labels.reliability(probability, np.array([0, 1, 1]))
    np.testing.assert_allclose(table[[13, 10]], [[2, 0.9, 0.5], [1, 0.7, 1]], rtol=1e-6)
    assert labels.calibration_error(table) == pytest.approx((2 * 0.4 + 0.3) / 3)


def test_confusion_counts_given_labels_in_rows_and_predicted_ones_in_columns():
    np.testing.assert_array_equal(labels.confusion(np.array([0, 1, 1]), np.array([0, 0, 1]), 2), [[1, 1], [0, 1]])


def test_cells_kept_from_training_are_compared_by_default(annotated):
    axes = scvip.pl.labels(annotated, max_cells=200, show=False)
    n_held_out = annotated.uns["scanvi_pyro"]["labels"]["held_out_confusion"].sum()
    assert axes[0].get_title() == f"Reliability\n{n_held_out} labelled cells kept from training"
    assert 0.08 * annotated.n_obs < n_held_out < 0.12 * annotated.n_obs


def test_labels_of_a_column_are_compared_where_it_is_named(annotated):
    annotated.obs["other"] = (
        annotated.obs["cell_type"]
        .where(annotated.obs["batch"] == "10x_3cl")
        .cat.rename_categories({"HCC827": "a line that the model does not know"})
    )
    ax = scvip.pl.labels(annotated, labels_key="other", max_cells=200, show=False)[1]
    known = annotated.obs["other"].isin(["H1975", "H2228"]).sum()
    assert ax.get_title() == f"Given and predicted labels\n{known} cells with a label in 'other'"


def test_models_without_labels_are_refused(trained):
    with pytest.raises(ValueError, match="is a model that predicts no labels"):
        scvip.pl.labels(trained, key="scvi_pyro")


def test_columns_without_any_known_label_are_refused(annotated):
    with pytest.raises(ValueError, match="labels_key='batch' has none of the labels that the model knows"):
        scvip.pl.labels(annotated, labels_key="batch")


def test_report_has_a_section_on_labels_and_no_warning_of_good_ones(annotated, tmp_path):
    page = report(annotated, tmp_path)
    assert '<h2 id="labels">' in page
    assert "are confused" not in page
    assert "look like none of the labelled types" not in page


def test_report_of_a_model_without_labels_has_no_such_section(trained, tmp_path):
    scvip.pl.report(trained, path=tmp_path / "report.html", max_cells=200)
    assert '<h2 id="labels">' not in (tmp_path / "report.html").read_text()


def test_report_warns_of_labels_that_were_given_at_random(mixtures, tmp_path):
    swapped = mixtures.obs["cell_type"].astype(str)
    is_swapped = swapped.isin(["H1975", "H2228"]) & (np.random.default_rng(0).random(len(swapped)) < 0.5)
    mixtures.obs["given"] = swapped.mask(is_swapped, swapped.map({"H1975": "H2228", "H2228": "H1975"}))
    scvip.tl.scanvi_pyro(mixtures, labels_key="given", **OPTIONS)
    page = report(mixtures, tmp_path, labels_key="cell_type")
    assert "Labels H1975 and H2228 are confused" in page or "Labels H2228 and H1975 are confused" in page


def test_report_warns_of_a_type_that_has_no_label(annotated, mixtures, tmp_path):
    reference = mixtures[mixtures.obs["cell_type"] != "HCC827"].copy()
    scvip.tl.scanvi_pyro(reference, labels_key="cell_type", **OPTIONS)
    scvip.tl.map_query(mixtures, reference, key="scanvi_pyro", impute=False)
    assert "cells look like none of the labelled types" in report(mixtures, tmp_path)


@pytest.mark.parametrize(("share", "warns"), [(0.01, False), (0.1, True)])
def test_as_many_novel_cells_as_known_types_have_raise_no_warning(share, warns):
    novelty = pd.Series(np.linspace(0, 0.98, 1000)).where(np.arange(1000) >= 1000 * share, 1.0).to_numpy()
    found = checks.unknown_cells(novelty, np.arange(1000) % 2, ["a", "b"])
    assert [finding.title for finding in found] == ["100 cells look like none of the labelled types"] * warns
