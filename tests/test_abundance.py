import numpy as np
import pytest
from scipy.stats import binom

from scanpy_scvipyro import abundance

DESIGN = np.column_stack([np.ones(12), np.repeat([0.0, 1.0], 6)])


def samples(rng, fold):
    """Codes on a plane and samples of 1,500 cells of three populations, of which cases have more of the first."""
    share = np.array([0.5, 4.5, 5.0])
    codes, sample = [], []
    for i in range(12):
        wanted = share * np.array([fold if i >= 6 else 1.0, 1.0, 1.0])
        counts = rng.multinomial(125, rng.dirichlet(60 * wanted / wanted.sum()))
        population = np.repeat(np.arange(3), counts)
        codes.append(rng.normal(size=(125, 2)) + 8.0 * population[:, None])
        sample.append(np.full(125, i))
    codes = np.concatenate(codes)
    return codes, np.concatenate(sample), np.rint(codes.mean(axis=1) / 8).astype(int)


def compare(codes, sample):
    found = abundance.neighbourhoods(codes, 60, np.arange(len(codes)))
    counts = abundance.cells_of_samples(found.members, sample, 12)
    result = abundance.differences(counts, np.bincount(sample).astype(float), DESIGN)
    return result, abundance.spatial_false_discovery_rate(result.p_value, found.radius)


def test_neighbourhoods_hold_the_nearest_cells():
    codes = np.arange(10.0)[:, None] ** 2
    found = abundance.neighbourhoods(codes, 3, np.array([0, 9]), np.array([[1.0], [70.0]]))
    assert [set(row) for row in found.members.tolist()] == [{0, 1, 2}, {7, 8, 9}]
    assert found.radius.tolist() == [4, 81 - 49]
    assert found.nearest.tolist() == [0, 1]


def test_cells_of_samples_are_counted():
    counts = abundance.cells_of_samples(np.array([[0, 1, 2], [1, 3, 4]]), np.array([0, 1, 1, 2, 1]), 3)
    assert counts.tolist() == [[1, 0], [2, 2], [0, 1]]


def test_nothing_is_found_where_nothing_differs():
    any_found, p_values = 0, []
    for seed in range(12):
        result, rate = compare(*samples(np.random.default_rng(seed), fold=1)[:2])
        any_found += (rate < 0.05).any()
        p_values.append((result.p_value < 0.05).mean())
    assert any_found <= binom.ppf(0.99, 12, 0.05)
    assert np.mean(p_values) < 0.08


def test_what_is_enriched_is_found_and_nothing_else():
    codes, sample, population = samples(np.random.default_rng(0), fold=4)
    result, rate = compare(codes, sample)
    called = rate < 0.05
    assert called[population == 0].mean() > 0.7
    assert (result.log_fold_change[called & (population == 0)] > 0).all()
    assert called[population != 0].mean() < 0.05
    assert np.median(result.log_fold_change[population == 0]) == pytest.approx(np.log2(4 / 1.15), abs=0.6)
    assert np.median(result.log_fold_change[population != 0]) == pytest.approx(np.log2(1 / 1.15), abs=0.15)


def test_dense_neighbourhoods_weigh_less():
    p_value = np.array([0.001, 0.001, 0.04, 0.5])
    alike = abundance.spatial_false_discovery_rate(p_value, np.ones(4))
    sparse_third = abundance.spatial_false_discovery_rate(p_value, np.array([1, 1, 0.1, 1]))
    assert alike[2] == pytest.approx(0.04 * 4 / 3)
    assert sparse_third[2] == pytest.approx(0.04 * 13 / 12)
