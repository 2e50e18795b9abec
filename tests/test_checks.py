"""Warnings of the report: each fires on numbers that are bad on purpose, and is silent on good ones."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scanpy_scvipyro import checks

EPOCHS = np.arange(1, 61)
GOOD = -500 - 300 * np.exp(-EPOCHS / 6)


def history(validation=GOOD, train=None, **columns):
    train = validation + 30 if train is None else train
    frame = pd.DataFrame({"train_elbo": train, "validation_elbo": validation, "kl_weight": 1.0} | columns)
    return frame.set_index(pd.RangeIndex(1, len(frame) + 1))


def titles(findings):
    return [finding.title for finding in findings]


def converged(frame, *, default_epochs=60, early_stopping=False):
    return titles(checks.convergence(frame, default_epochs=default_epochs, early_stopping=early_stopping))


class TestTraining:
    def test_a_curve_that_levels_off_is_good(self):
        assert converged(history()) == checks.overfitting(history()) == []

    def test_noise_of_a_flat_curve_is_no_rise_and_no_fall(self):
        noisy = GOOD + np.random.default_rng(0).normal(0, 1, 60)
        assert converged(history(noisy)) == checks.overfitting(history(noisy)) == []

    def test_a_curve_that_rises_to_the_end_has_not_converged(self):
        (finding,) = checks.convergence(history(-800 + 5.0 * EPOCHS), default_epochs=60, early_stopping=False)
        assert finding.title == "Training has not converged"
        assert "by 30.0 nats per cell over the last 6 of 60 epochs" in finding.found

    def test_without_validation_the_training_curve_is_judged(self):
        rising = history(GOOD, train=-800 + 5.0 * EPOCHS).drop(columns="validation_elbo")
        assert converged(rising) == ["Training has not converged"]
        assert checks.overfitting(rising) == []

    def test_few_epochs_are_named_though_the_curve_is_flat(self):
        assert converged(history(GOOD[-20:])) == ["Training was short"]
        assert converged(history(GOOD[-20:]), early_stopping=True) == []

    def test_a_kl_divergence_without_its_full_weight_is_named(self):
        weight = np.linspace(0, 0.4, 60)
        assert converged(history(kl_weight=weight)) == ["The KL divergence never had its full weight"]

    def test_a_validation_curve_that_falls_is_overfitting(self):
        (finding,) = checks.overfitting(history(GOOD - np.maximum(0, EPOCHS - 30), train=GOOD + EPOCHS))
        assert finding.title == "The model overfits"
        assert "best near epoch 3" in finding.found
        assert "early_stopping=True" in finding.advice

    def test_epochs_without_validation_are_passed_over(self):
        sparse_validation = np.where(EPOCHS % 10 == 0, GOOD, np.nan)
        assert converged(history(sparse_validation, train=GOOD)) == []
        assert checks.overfitting(history(sparse_validation, train=GOOD)) == []


class TestMixing:
    codes = np.repeat([0, 1, 2], 100)
    names = ["a", "b", "c"]

    def found(self, same, *, mixed=1 / 3, has_labels=True):
        same = np.repeat(np.asarray(same, dtype=float), 100)
        return checks.mixing(same, np.full(300, mixed), self.codes, self.names, has_labels=has_labels)

    def test_mixed_batches_are_good(self):
        assert self.found([0.4, 0.45, 0.5]) == []

    def test_batches_apart_are_named_the_furthest_first(self):
        (finding,) = self.found([0.9, 0.5, 1.0])
        assert finding.title == "Batches are not mixed"
        assert "Furthest apart: c, a." in finding.found
        assert "80% of a cell's nearest neighbours" in finding.found

    def test_one_batch_apart_is_named_among_others_that_mix(self):
        (finding,) = self.found([0.35, 0.35, 0.97])
        assert finding.title == "A batch is not mixed with the others"
        assert "Furthest apart: c." in finding.found

    def test_without_labels_it_says_that_batches_may_be_right_to_differ(self):
        assert "pass labels_key=" in self.found([1, 1, 1], has_labels=False)[0].found
        assert "pass labels_key=" not in self.found([1, 1, 1])[0].found

    def test_batches_that_share_no_label_are_not_judged(self):
        assert self.found([1, 1, 1], mixed=1) == []


class TestOverCorrection:
    labels = np.repeat([0, 1, 2], [100, 100, 5])

    def found(self, *after):
        before = np.repeat([1.0, 0.9, 1.0], [100, 100, 5])
        return checks.over_correction(before, np.repeat(after, [100, 100, 5]), self.labels, ["B", "T", "few"])

    def test_labels_that_stay_apart_are_good(self):
        assert self.found(0.98, 0.85, 1.0) == []

    def test_lost_labels_are_named_with_their_shares(self):
        (finding,) = self.found(0.6, 0.88, 1.0)
        assert finding.title == "Over-correction suspected"
        assert "B (from 100% to 60%)" in finding.found
        assert "T (" not in finding.found

    def test_labels_of_few_cells_are_not_judged(self):
        assert self.found(1.0, 0.9, 0.0) == []

    def test_codes_that_keep_no_neighbours_are_named(self):
        codes, names = np.repeat([0, 1], 100), ["a", "b"]
        kept, chance = np.repeat([0.5, 0.21], 100), np.full(200, 0.2)
        (finding,) = checks.lost_structure(kept, chance, codes, names)
        assert finding.title == "The latent codes tell cells hardly apart"
        assert "b (1%)" in finding.found
        assert "a (" not in finding.found
        assert checks.lost_structure(np.full(200, 0.4), chance, codes, names) == []


class TestGenes:
    @pytest.fixture
    def counts(self):
        """Two independent draws of 2000 cells from the same gamma-Poisson distribution, 50 genes."""
        rng = np.random.default_rng(0)
        mean = rng.gamma(2.0, 0.5, (2000, 50)) * rng.uniform(0.05, 5, 50)
        return rng.poisson(mean).astype(np.float32), rng.poisson(mean).astype(np.float32)

    def found(self, real, simulated):
        statistics = [checks.count_statistics(sparse.csr_array(counts)) for counts in (real, simulated)]
        return checks.genes(*statistics, [f"gene{i}" for i in range(real.shape[1])])

    def test_statistics_are_those_of_numpy(self, counts):
        statistics = checks.count_statistics(sparse.csr_array(counts[0]))
        np.testing.assert_allclose(statistics.mean, counts[0].mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(statistics.variance, counts[0].var(axis=0), rtol=1e-4)
        np.testing.assert_allclose(statistics.zeros, (counts[0] == 0).mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(statistics.library_size, counts[0].sum(axis=1))

    def test_counts_of_one_distribution_are_good(self, counts):
        assert self.found(*counts) == []

    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            (lambda column, rng: np.where(rng.random(len(column)) < 0.7, 0, 3 * column.mean()), "share of zeros"),
            (lambda column, rng: 4 * column, "mean"),
            (lambda column, rng: np.full_like(column, 3), "variance 0, expected"),
        ],
    )
    def test_a_bad_gene_is_named_with_what_differs(self, counts, bad, words):
        real, simulated = counts
        gene = int(simulated.mean(axis=0).argmax())
        real[:, gene] = np.round(bad(simulated[:, gene], np.random.default_rng(1)))
        simulated[:, gene] = np.random.default_rng(2).poisson(np.random.default_rng(3).gamma(1, 3, 2000))
        (finding,) = self.found(real, simulated)
        assert finding.title == "A gene is fitted badly"
        assert f"gene{gene} (" in finding.found
        assert words in finding.found

    def test_the_worst_of_many_are_named_and_the_others_counted(self, counts):
        real, simulated = counts
        real[:, :8] = simulated[:, :8] * (2 + np.arange(8))
        (finding,) = self.found(real, simulated)
        assert finding.title == "8 of 50 genes are fitted badly"
        assert "Worst: gene7 (" in finding.found
        assert finding.found.endswith("and 3 more.")

    def test_rare_genes_are_not_judged_by_a_few_counts(self, counts):
        real, simulated = counts
        real[:, 0], simulated[:, 0] = 0, 0
        real[:5, 0] = 1
        assert self.found(real, simulated) == []


class TestBatches:
    codes, names = np.repeat([0, 1, 2], [100, 100, 5]), ["a", "b", "few"]

    def found(self, *excess):
        return checks.batches(
            np.stack([np.repeat(excess, [100, 100, 5]), np.full(205, 1000)], axis=1), self.codes, self.names
        )

    def test_counts_as_likely_as_simulated_ones_are_good(self):
        assert self.found(-40, 5, 0) == []

    def test_a_batch_less_likely_than_its_simulation_is_named(self):
        (finding,) = self.found(-40, 60, 0)
        assert finding.title == "A batch is fitted badly"
        assert finding.found.endswith("for the same cells: b (+6.0%).")

    def test_several_batches_are_counted_and_the_worst_comes_first(self):
        (finding,) = self.found(30, 60, 0)
        assert finding.title == "2 of 3 batches are fitted badly"
        assert finding.found.endswith("b (+6.0%), a (+3.0%).")

    def test_batches_of_few_cells_are_not_judged(self):
        assert self.found(0, 0, 500) == []
