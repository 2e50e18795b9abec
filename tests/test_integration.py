"""Scores of embeddings, against simulated cells whose mixing and labels are known."""

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from scanpy_scvipyro import integration


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_neighbors_are_the_nearest_other_cells(rng):
    places = rng.normal(size=(100, 3))
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_array_equal(integration.neighbors(places), np.argsort(distance, axis=1)[:, :20])


def test_few_cells_have_fewer_neighbors(rng):
    assert integration.neighbors(rng.normal(size=(5, 2))).shape == (5, 4)


def test_batches_apart_have_neighbours_of_their_own_batch_alone(rng):
    batch = np.repeat([0, 1], 50)
    places = rng.normal(size=(100, 3)) + 100 * batch[:, None]
    np.testing.assert_array_equal(integration.same_share(integration.neighbors(places), batch), 1)


def test_batches_mixed_at_random_have_the_share_of_perfect_mixing(rng):
    batch = (rng.random(4000) < 0.2).astype(int)
    scores = integration.scores(rng.normal(size=(4000, 2)), batch, None, 0)
    assert scores.same_batch.mean() == pytest.approx(scores.mixed.mean(), abs=0.01)
    assert scores.mixed.mean() == pytest.approx(0.8**2 + 0.2**2, abs=0.02)


def test_perfect_mixing_is_within_labels(rng):
    # A label of batch 0 alone, and one that both batches have in equal parts.
    label = np.repeat([0, 1], 1000)
    batch = np.where(label == 0, 0, rng.integers(2, size=2000))
    places = rng.normal(size=(2000, 2)) + 100 * label[:, None]
    scores = integration.scores(places, batch, label, 0)
    assert scores.mixed[label == 0].mean() == 1
    assert scores.mixed[label == 1].mean() == pytest.approx(0.5, abs=0.01)
    assert scores.same_batch.mean() == pytest.approx(scores.mixed.mean(), abs=0.02)


def test_a_single_cell_of_its_label_mixes_with_none():
    np.testing.assert_array_equal(integration.mixed_share(np.array([0, 1, 1]), np.array([0, 1, 1])), [0, 1, 1])


def test_separate_labels_score_high_and_random_ones_low(rng):
    label = rng.integers(3, size=300)
    apart = integration.scores(rng.normal(size=(300, 2)) + 100 * np.eye(3)[label][:, :2], None, label, 0)
    assert apart.labels.ari == 1
    assert apart.labels.silhouette > 0.95
    np.testing.assert_array_equal(apart.same_label, 1)
    mixed = integration.scores(rng.normal(size=(300, 2)), None, label, 0)
    assert abs(mixed.labels.ari) < 0.05
    assert mixed.labels.silhouette < 0.05
    assert mixed.same_label.mean() == pytest.approx(1 / 3, abs=0.05)


def test_cells_without_a_label_are_left_out_of_the_scores_of_labels(rng):
    label = rng.integers(-1, 3, size=300)
    places = rng.normal(size=(300, 2)) + 3 * np.eye(4)[label][:, :2]
    scores = integration.scores(places, np.zeros(300, dtype=int), label, 0)
    is_labelled = label >= 0
    assert len(scores.same_label) == is_labelled.sum()
    assert len(scores.same_batch) == 300
    assert scores.labels.silhouette == pytest.approx(silhouette_score(places[is_labelled], label[is_labelled]))


@pytest.mark.parametrize("label", [np.zeros(50, dtype=int), np.arange(50), np.full(50, -1)])
def test_labels_that_make_no_groups_have_no_scores(rng, label):
    scores = integration.scores(rng.normal(size=(50, 2)), None, label, 0)
    assert (scores.labels, scores.same_label) == (None, None)


def test_all_neighbors_are_kept_under_rotation_and_few_by_chance(rng):
    places, batch = rng.normal(size=(300, 3)), np.repeat([0, 1, 2], [199, 100, 1])
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    kept, chance = integration.kept_neighbors(places, places @ rotation + 5 * batch[:, None], batch)
    np.testing.assert_array_equal(kept, [1.0] * 299 + [0.0])
    np.testing.assert_allclose(chance, np.repeat([20 / 198, 20 / 99, 0], [199, 100, 1]))
    kept, chance = integration.kept_neighbors(places, rng.normal(size=(300, 3)), batch)
    assert kept.mean() == pytest.approx(chance.mean(), abs=0.02)
