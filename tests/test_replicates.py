import numpy as np
import pytest

from scanpy_scvipyro import data, replicates, storage


def parts(*rows):
    """Parts of samples by (group, sample)."""
    group, sample = np.array(rows).T
    return np.flatnonzero(group == 1), np.flatnonzero(group == 0), sample


class TestPlans:
    def test_samples_of_one_group_each_are_compared_with_the_others(self):
        plan = replicates.plan(*parts((1, 0), (1, 1), (0, 2), (0, 3), (0, 4)), None)
        assert not plan.is_paired
        assert plan.design.tolist() == [[1, 1], [1, 1], [1, 0], [1, 0], [1, 0]]
        assert (plan.pool == np.eye(5)).all()

    def test_samples_of_both_groups_are_compared_with_themselves(self):
        plan = replicates.plan(*parts((1, 0), (1, 1), (0, 0), (0, 1), (0, 2)), None)
        assert plan.is_paired
        assert plan.design.tolist() == [[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 0]]
        assert not plan.pool[:, 4].any()  # of a sample without a pair

    def test_other_groups_of_a_sample_are_one_row(self):
        ours, theirs = np.array([0, 1]), np.array([2, 3, 4])
        plan = replicates.plan(ours, theirs, np.array([0, 1, 0, 0, 1]), None)
        assert plan.pool[2:].tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]

    @pytest.mark.parametrize(
        "rows", [[(1, 0), (0, 1), (0, 2)], [(1, 0), (0, 1)], [(1, 0), (1, 1), (0, 0), (0, 2)], [(1, 0), (1, 1)]]
    )
    def test_too_few_samples_are_refused(self, rows):
        with pytest.raises(replicates.Unanswerable, match=r"too few samples: .* Two or more on each side are needed"):
            replicates.plan(*parts(*rows), None)

    def test_batches_of_several_samples_are_terms(self):
        batches = np.array([[5, 0], [0, 5], [4, 0], [2, 2], [0, 3]])
        plan = replicates.plan(*parts((1, 0), (1, 1), (0, 2), (0, 3), (0, 4)), batches)
        assert plan.design[:, 1].tolist() == [1, 0, 1, 0.5, 0]

    def test_batches_of_one_sample_each_are_not(self):
        plan = replicates.plan(*parts((1, 0), (1, 1), (0, 2), (0, 3)), np.eye(4))
        assert plan.design.shape == (4, 2)

    def test_batches_that_differ_as_the_groups_do_are_refused(self):
        batches = np.array([[5, 0], [5, 0], [0, 5], [0, 5]])
        with pytest.raises(replicates.Unanswerable, match=r"cannot be told apart; pass transform_batch=None"):
            replicates.plan(*parts((1, 0), (1, 1), (0, 2), (0, 3)), batches)

    def test_as_many_terms_as_samples_are_refused(self):
        batches = np.array([[5, 0, 0], [0, 5, 0], [5, 0, 0], [0, 0, 5]])
        with pytest.raises(replicates.Unanswerable, match=r"4 samples for 4 effects"):
            replicates.plan(*parts((1, 0), (1, 1), (0, 2), (0, 3)), batches)


class TestSums:
    @pytest.fixture
    def by_part(self, trained_small):
        module, spec = storage.from_uns(trained_small, "scvi_pyro")
        members = np.arange(0, 90, 2)
        part = np.arange(45) % 3
        return members, part, replicates.sums(module, data.load(trained_small, spec), members, part, 3)

    def test_they_are_those_of_the_cells(self, by_part, trained_small, by_hand):
        members, part, sums = by_part
        hand = by_hand(trained_small)
        counts = trained_small.X.toarray()[members]
        expected = hand.frequencies(hand.posterior().mean)[members] * counts.sum(axis=1, keepdims=True)
        theta = hand.model.log_inverse_dispersion.exp().detach().double().numpy()
        for i in range(3):
            np.testing.assert_array_equal(sums.counts[i], counts[part == i].sum(axis=0))
            np.testing.assert_allclose(sums.mean[i], expected[part == i].sum(axis=0), rtol=1e-4)
            spread = (expected[part == i] ** 2 * (1 + 1 / theta)).sum(axis=0)
            np.testing.assert_allclose(sums.spread[i], spread, rtol=1e-3)

    def test_the_known_dispersion_is_that_of_cells(self, by_part, trained_small, by_hand):
        members, part, sums = by_part
        hand = by_hand(trained_small)
        depth = trained_small.X.toarray()[members].sum(axis=1, keepdims=True)
        mean = hand.frequencies(hand.posterior().mean)[members] * depth
        theta = hand.model.log_inverse_dispersion.exp().detach().double().numpy()
        of_part = part == 1
        typical = mean[of_part].sum(axis=0) / depth[of_part].sum() * depth[of_part]
        variance = (mean[of_part] ** 2 / theta + (mean[of_part] - typical) ** 2).sum(axis=0)
        expected = variance / mean[of_part].sum(axis=0) ** 2
        np.testing.assert_allclose(replicates.known_dispersion(sums)[1], expected, rtol=1e-3)
