"""Statistics of differential expression, on numbers whose truth is known."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from scanpy_scvipyro import differential
from scanpy_scvipyro.differential import Comparison, Expression, Sample


def simulated_estimates(share_changed, n_genes=5000, seed=0):
    """Effects, of which most are zero, and estimates of them with errors of very different sizes."""
    rng = np.random.default_rng(seed)
    effect = np.where(rng.random(n_genes) < share_changed, rng.normal(0, 1.5, n_genes), 0)
    error = rng.uniform(0.05, 0.6, n_genes)
    return effect, effect + error * rng.normal(size=n_genes), error


def compare(estimate, error, delta):
    nothing = Expression(1, np.zeros_like(estimate), np.zeros_like(estimate))
    how = Comparison("change", delta, 0.0, None, 100, 0)
    return differential.change(Expression(1, estimate, error**2), nothing, how)


@pytest.mark.parametrize("share_changed", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("delta", [0.0, 0.5])
def test_false_discovery_rate_is_what_it_is_expected_to_be(share_changed, delta):
    effect, estimate, error = simulated_estimates(share_changed)
    result = compare(estimate, error, delta)
    called = differential.expected_false_discovery_rate(result.proba_de) < 0.05
    false = called & ((np.abs(effect) <= delta) | (np.sign(effect) != np.sign(estimate)))
    assert called.sum() > 20
    low, high = binom.interval(0.999, called.sum(), 0.05)
    assert low <= false.sum() <= high


def test_nothing_is_found_where_nothing_changed():
    _, estimate, error = simulated_estimates(0.0)
    called = differential.expected_false_discovery_rate(compare(estimate, error, 0.1).proba_de) < 0.05
    assert called.sum() == 0


def test_posterior_of_effects_is_that_of_the_normal_they_come_from():
    rng = np.random.default_rng(0)
    effect, error = rng.normal(0, 2, 4000), np.full(4000, 1.0)
    estimate = effect + error * rng.normal(size=4000)
    weight, mean, _ = differential.effect_posterior(estimate, error)
    posterior_mean = (weight * mean).sum(axis=1)
    exact = estimate * 2**2 / (2**2 + 1)
    assert np.sqrt(np.mean((posterior_mean - exact) ** 2)) < 0.1


def test_probability_is_that_of_the_posterior_for_a_wide_prior():
    # With a prior much wider than the errors, the posterior is the likelihood.
    estimate = np.linspace(-40, 40, 401)
    result = compare(estimate, np.full(401, 0.5), 1.0)
    exact = np.maximum(norm.sf(1.0, estimate, 0.5), norm.cdf(-1.0, estimate, 0.5))
    clear = np.abs(np.abs(estimate) - 1) > 1.5
    np.testing.assert_allclose(result.proba_de[clear], exact[clear], atol=0.02)


def test_larger_delta_makes_a_change_less_probable():
    _, estimate, error = simulated_estimates(0.2)
    probability = [compare(estimate, error, delta).proba_de for delta in (0.0, 0.5, 2.0)]
    assert (np.diff(probability, axis=0) <= 0).all()


def test_bayes_factor_is_the_log_odds_and_finite():
    _, estimate, error = simulated_estimates(0.5)
    result = compare(100 * estimate, error, 0.0)
    assert np.isfinite(result.bayes_factor).all()
    np.testing.assert_allclose(1 / (1 + np.exp(-result.bayes_factor)), result.proba_de)


def test_chosen_delta_lies_between_unchanged_and_changed_genes():
    rng = np.random.default_rng(0)
    unchanged = rng.normal(0, 0.1, 800)
    changed = rng.choice([-1, 1], 200) * rng.normal(2, 0.3, 200)
    assert 0.5 < differential.chosen_delta(np.concatenate([unchanged, changed]), 0) < 1.6


def test_chosen_delta_has_a_floor():
    assert differential.chosen_delta(np.random.default_rng(0).normal(0, 0.02, 500), 0) == 0.1
    assert differential.chosen_delta(np.zeros(3), 0) == 0.1


@pytest.mark.parametrize("n_cells", [1, 2, 3, 8, 100])
def test_means_of_few_cells_are_as_uncertain_as_they_are_said_to_be(n_cells):
    # Genes of one variance, as the prior assumes. Of many cells the other group tells their variance.
    rng = np.random.default_rng(n_cells)
    draws = rng.normal(0, 0.7, (n_cells, 20000))
    variance = draws.var(axis=0, ddof=1) if n_cells > 1 else np.zeros(20000)
    nothing = np.zeros(20000)
    many = Sample(1000, 1000, nothing, nothing + 0.7**2, nothing)
    few, _ = differential.expressions([Sample(n_cells, n_cells, draws.mean(axis=0), variance, nothing), many])
    z = few.mean / np.sqrt(few.squared_error)
    assert (np.abs(z) > 1.96).mean() <= 0.055
    assert z.std() > 0.5


def test_many_cells_tell_their_variance_themselves():
    groups = [Sample(1000, 1000, np.zeros(1), np.array([v]), np.array([0.1])) for v in (1.0, 4.0)]
    for group, expression in zip(groups, differential.expressions(groups)):
        assert expression.squared_error - 0.1 == pytest.approx(group.variance / 1000, rel=0.02)


def test_pooled_groups_weigh_by_their_cells():
    groups = [Expression(30, np.array([1.0]), np.array([0.4])), Expression(10, np.array([5.0]), np.array([0.8]))]
    pooled = differential.pooled(groups)
    assert pooled.n_cells == 40
    assert pooled.mean == pytest.approx([2.0])
    assert pooled.squared_error == pytest.approx([0.75**2 * 0.4 + 0.25**2 * 0.8])


def test_expected_false_discovery_rate_is_the_running_mean_of_error_probabilities():
    rate = differential.expected_false_discovery_rate(np.array([0.9, 0.99, 0.5]))
    np.testing.assert_allclose(rate, [(0.01 + 0.1) / 2, 0.01, (0.01 + 0.1 + 0.5) / 3])
