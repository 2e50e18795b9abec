"""Calibration of labels, on readings that are made by hand."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from scanpy_scvipyro import labels
from scanpy_scvipyro.labels import Given, Readings

N_LABELS = 3


def given(codes):
    return Given("cell_type", np.array(["a", "b", "c"]), np.asarray(codes))


def readings(label, rng, *, surprise=0.0, shift=0.0):
    """Codes around a corner per label, clear logits, and a surprise that grows with depth."""
    n = len(label)
    log_depth = rng.normal(8, 0.5, n)
    return Readings(
        logits=8 * np.eye(N_LABELS)[label] + rng.normal(size=(n, N_LABELS)),
        codes=5 * np.eye(N_LABELS)[label] + rng.normal(size=(n, N_LABELS)) + shift,
        surprise=log_depth + log_depth * (rng.normal(size=n) + surprise),
        log_depth=log_depth,
    )


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def fitted(rng):
    label = rng.integers(N_LABELS, size=3000)
    return labels.calibration(readings(label, rng), label + 1, np.arange(3000) < 1000)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_temperature_is_the_factor_by_which_logits_are_too_large(rng, truth):
    logits = rng.normal(scale=2, size=(20_000, N_LABELS))
    label = np.array([rng.choice(N_LABELS, p=p) for p in softmax(logits, axis=1)])
    assert labels.temperature(logits * truth, label) == pytest.approx(truth, rel=0.05)


def test_temperature_stays_near_what_is_usual_where_no_label_is_held_out():
    assert labels.temperature(np.empty((0, N_LABELS)), np.empty(0, dtype=int)) == pytest.approx(1.5, rel=1e-3)


def test_probabilities_of_a_cell_sum_to_one(rng, fitted):
    probabilities = labels.probabilities(readings(rng.integers(N_LABELS, size=50), rng), fitted)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)


def lda(cells, of, label):
    """Log-probabilities of labels by Normal densities of codes with one covariance, by scikit-learn."""
    model = LinearDiscriminantAnalysis(priors=np.full(N_LABELS, 1 / N_LABELS)).fit(of.codes, label)
    return model.predict_log_proba(cells.codes)


@pytest.mark.parametrize(("n_cells", "weight"), [(15, 0.5), (27_000, 0.0)])
def test_few_labels_are_told_by_densities_and_many_by_the_network(rng, n_cells, weight):
    label = np.arange(n_cells) % N_LABELS
    known, asked = (readings(of, rng)._replace(logits=rng.normal(size=(len(of), N_LABELS))) for of in (label, label))
    fitted = labels.calibration(known, label + 1, np.zeros(n_cells, dtype=bool))
    mixed = (1 - weight) * log_softmax(asked.logits, axis=1) + weight * lda(asked, known, label)
    expected = softmax(mixed / fitted["temperature"], axis=1)
    np.testing.assert_allclose(labels.probabilities(asked, fitted), expected, atol=0.05)


def test_densities_that_calibrate_do_not_know_the_cells_held_out(rng):
    label, held_out = np.arange(30) % N_LABELS, np.arange(30) >= 15
    known = readings(label, rng)
    moved = known._replace(codes=known.codes + 100 * held_out[:, None] * np.eye(N_LABELS)[(label + 1) % 3])
    assert labels.calibration(moved, label + 1, held_out)["temperature"] > 4


def test_novelty_is_the_share_of_known_cells_that_are_less_unlike(rng, fitted):
    novelty = labels.novelty(readings(rng.integers(N_LABELS, size=5000), rng), fitted)
    for share in (0.25, 0.5, 0.9, 0.99):
        assert (novelty <= share).mean() == pytest.approx(share, abs=0.03)


def test_novelty_is_high_for_codes_far_from_all_labels(rng, fitted):
    assert labels.novelty(readings(np.zeros(50, dtype=int), rng, shift=10), fitted).min() > 0.99


def test_novelty_is_high_for_counts_that_the_model_cannot_explain(rng, fitted):
    assert labels.novelty(readings(np.zeros(50, dtype=int), rng, surprise=20), fitted).min() > 0.99


def test_novelty_rises_between_two_labels(rng, fitted):
    torn = readings(np.zeros(500, dtype=int), rng)
    clear = labels.novelty(torn, fitted).mean()
    assert labels.novelty(torn._replace(logits=torn.logits * 0), fitted).mean() > clear + 0.2


def test_novelty_is_finite_for_two_labels_of_one_cell_each(rng):
    few = readings(np.array([0, 1, 2]), rng)
    few = few._replace(logits=few.logits[:, :2])
    fitted = labels.calibration(few, np.array([1, 2, 0]), np.zeros(3, dtype=bool))
    assert np.isfinite(labels.novelty(few, fitted)).all()


def test_a_tenth_of_each_label_is_held_out_and_one_at_least():
    codes = np.repeat([0, 1, 2, 3], [50, 100, 40, 8])
    held_out = given(codes).hold_out(np.array([], dtype=int), random_state=0)
    assert np.bincount(codes[held_out], minlength=4).tolist() == [0, 10, 4, 1]


def test_cells_that_training_does_not_see_are_those_held_out():
    codes = np.repeat([1, 2, 3], 20)
    unseen = np.array([0, 1, 20, 21, 40, 41])
    np.testing.assert_array_equal(np.flatnonzero(given(codes).hold_out(unseen, random_state=0)), unseen)


@pytest.mark.parametrize("n_cells", [1, 2, 4])
def test_rare_labels_keep_their_cells_for_training(n_cells):
    codes = np.repeat([1, 2, 3], [20, 20, n_cells])
    held_out = given(codes).hold_out(np.array([], dtype=int), random_state=0)
    assert not held_out[codes == 3].any()


def test_a_label_that_training_does_not_see_calibrates_nothing():
    codes, unseen = np.repeat([1, 2, 3], [20, 20, 2]), np.array([40, 41])
    assert not given(codes).hold_out(unseen, random_state=0)[codes == 3].any()
    assert given(codes).unlearnt(unseen) == ["c"]
