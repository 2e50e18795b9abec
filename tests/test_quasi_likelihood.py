import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import polygamma
from scipy.stats import binom, false_discovery_control, nbinom

from scanpy_scvipyro import quasi_likelihood

SIX_AND_SIX = np.column_stack([np.ones(12), np.repeat([0.0, 1.0], 6)])


def counts_of_samples(rng, mean, dispersion):
    """Negative binomial counts with an offset per sample, (n_samples, n_genes)."""
    offset = rng.normal(0, 0.5, (12, 1))
    mu = mean * np.exp(offset)
    size = 1 / np.broadcast_to(dispersion, mu.shape)
    return rng.negative_binomial(size, size / (size + mu)).astype(float), np.broadcast_to(offset, mu.shape)


@pytest.fixture(scope="module")
def unchanged_genes():
    """3,000 genes without a change; variances around a trend that falls with the mean."""
    rng = np.random.default_rng(0)
    mean = rng.lognormal(3, 1.5, 3000)
    dispersion = (0.03 + 0.2 / mean) * 10 / rng.chisquare(10, 3000)
    return counts_of_samples(rng, mean, dispersion)


class TestFit:
    @pytest.mark.parametrize("dispersion", [1e-8, 0.3])
    def test_coefficients_and_deviance_are_those_of_statsmodels(self, dispersion):
        rng = np.random.default_rng(1)
        design = np.column_stack([SIX_AND_SIX, rng.normal(size=12)])
        counts, offset = counts_of_samples(rng, np.array([0.7, 5.0, 200.0]), 0.3)
        fitted = quasi_likelihood.fit(counts, offset, design, dispersion)
        for gene in range(3):
            family = sm.families.NegativeBinomial(alpha=dispersion)
            theirs = sm.GLM(counts[:, gene], design, family=family, offset=offset[:, gene]).fit(tol=1e-12)
            np.testing.assert_allclose(fitted.coefficients[:, gene], theirs.params, rtol=1e-3, atol=1e-3)
            assert fitted.deviance[:, gene].sum() == pytest.approx(theirs.deviance, rel=1e-4)

    def test_genes_without_counts_on_one_side_end(self):
        counts = np.zeros((12, 1))
        counts[6:] = 5
        fitted = quasi_likelihood.fit(counts, np.zeros((12, 1)), SIX_AND_SIX, 0.1)
        assert fitted.coefficients[1, 0] > 10
        assert np.isfinite(fitted.mean).all()


@pytest.mark.parametrize(("mean", "dispersion"), [(0.05, 0.03), (1.0, 0.4), (30.0, 0.1), (2.3, 0.0)])
def test_moments_of_deviances_are_those_of_the_distribution(mean, dispersion):
    counts = np.arange(2000.0)
    probability = nbinom.pmf(counts, 1 / max(dispersion, 1e-8), 1 / (1 + max(dispersion, 1e-8) * mean))
    deviance = quasi_likelihood.unit_deviance(counts, np.full(2000, mean), dispersion)
    expected = probability @ deviance
    found = quasi_likelihood.deviance_moments(np.array(mean), np.array(dispersion))
    assert found[0] == pytest.approx(expected, rel=0.03)
    assert found[1] == pytest.approx(probability @ deviance**2 - expected**2, rel=0.06)


def inverse_trigamma(value):
    grid = np.geomspace(1e-3, 1e6, 200_001)
    return np.interp(-value, -polygamma(1, grid), grid)


class TestModeration:
    def test_the_prior_of_simulated_variances_is_found(self):
        rng = np.random.default_rng(0)
        true = 0.5 * 8 / rng.chisquare(8, 20_000)
        df = np.full(20_000, 10.0)
        found = quasi_likelihood.moderate(true * rng.chisquare(10, 20_000) / 10, df)
        assert found.prior_df == pytest.approx(8, rel=0.05)
        assert found.prior_variance == pytest.approx(0.5, rel=0.02)

    def test_it_agrees_with_the_moments_of_smyth(self):
        rng = np.random.default_rng(1)
        d = 10
        variance = 2 * 5 / rng.chisquare(5, 20_000) * rng.chisquare(d, 20_000) / d
        e = np.log(variance) - polygamma(0, d / 2) + np.log(d / 2)
        d0 = 2 * inverse_trigamma(np.var(e, ddof=1) - polygamma(1, d / 2))
        s2 = np.exp(e.mean() + polygamma(0, d0 / 2) - np.log(d0 / 2))
        found = quasi_likelihood.moderate(variance, np.full(20_000, float(d)))
        assert found.prior_df == pytest.approx(d0, rel=0.06)
        assert found.prior_variance == pytest.approx(s2, rel=0.03)
        expected = (found.prior_df * found.prior_variance + d * variance) / (found.prior_df + d)
        np.testing.assert_allclose(found.variance, expected)

    def test_four_genes_are_left_as_they_are(self):
        found = quasi_likelihood.moderate(np.array([1.0, 2.0, 3.0, 4.0]), np.full(4, 4.0))
        assert found.variance.tolist() == [1, 2, 3, 4]
        assert found.prior_df == 0


def test_the_trend_of_dispersions_is_found_beside_the_known_part():
    rng = np.random.default_rng(0)
    mean = rng.lognormal(4, 1, 2000)
    counts, offset = counts_of_samples(rng, mean, 0.1 + 0.2)
    trend = quasi_likelihood.dispersion_trend(counts, offset, SIX_AND_SIX, np.full(counts.shape, 0.1))
    np.testing.assert_allclose(trend, 0.2, rtol=0.15)


class TestDifferences:
    def test_p_values_of_unchanged_genes_are_uniform(self, unchanged_genes):
        p_value = quasi_likelihood.difference(*unchanged_genes, SIX_AND_SIX, 0.0).p_value
        for level in (0.05, 0.01, 0.001):
            low, high = binom.interval(0.99, len(p_value), level)
            assert low <= (p_value < level).sum() <= high

    def test_changes_are_found_and_measured(self):
        rng = np.random.default_rng(2)
        change = np.where(np.arange(1000) < 50, np.log(3), 0)
        mean = np.full(1000, 50.0) * np.exp(change * SIX_AND_SIX[:, 1:])
        counts, offset = counts_of_samples(rng, mean, 0.1)
        found = quasi_likelihood.difference(counts, offset, SIX_AND_SIX, 0.0)
        called = quasi_likelihood.false_discovery_rate(found.p_value) < 0.05
        assert called[:50].mean() > 0.95
        assert called[50:].sum() <= 7
        assert found.log_fold_change[:50].mean() == pytest.approx(np.log(3), abs=0.05)

    def test_pairs_cancel_what_samples_have_in_common(self):
        rng = np.random.default_rng(3)
        sample = np.tile(np.eye(6), (2, 1))
        paired = np.column_stack([sample, SIX_AND_SIX[:, 1]])
        common = np.tile(rng.normal(0, 1, (6, 500)), (2, 1))
        mean = 100 * np.exp(common + np.log(1.5) * SIX_AND_SIX[:, 1:])
        counts, offset = counts_of_samples(rng, mean, 0.02)
        found = [quasi_likelihood.difference(counts, offset, design, 0.0) for design in (paired, SIX_AND_SIX)]
        power = [(test.p_value < 0.01).mean() for test in found]
        assert power[0] > 0.9 > 0.2 > power[1]


class TestRates:
    def test_without_weights_they_are_those_of_scipy(self):
        p_value = np.random.default_rng(0).uniform(size=50) ** 2
        np.testing.assert_allclose(
            quasi_likelihood.false_discovery_rate(p_value), false_discovery_control(p_value), rtol=1e-12
        )

    def test_a_weight_of_two_is_that_of_a_test_that_stands_twice(self):
        p_value, weight = np.array([0.01, 0.02, 0.5]), np.array([1.0, 2.0, 1.0])
        weighted = quasi_likelihood.false_discovery_rate(p_value, weight)
        repeated = false_discovery_control(np.repeat(p_value, weight.astype(int)))
        np.testing.assert_allclose(weighted, repeated[[0, 1, 3]])


def test_depths_ignore_a_gene_that_changes_much():
    rng = np.random.default_rng(0)
    depth = np.array([1.0, 2.0, 0.5, 1.0])
    counts = rng.poisson(100 * depth[:, None], (4, 300)).astype(float)
    counts[3, 0] += 20_000
    found = quasi_likelihood.depths(counts)
    np.testing.assert_allclose(found / found[0], depth, rtol=0.05)
