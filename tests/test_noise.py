"""Random numbers of a cell's own: their distribution, and what they depend on."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats

from scanpy_scvipyro.model import Cells
from scanpy_scvipyro.noise import OwnNoise, new_seed


def cells_of(counts):
    counts = torch.as_tensor(counts, dtype=torch.float32)
    n = len(counts)
    nothing = torch.zeros(n, 0)
    return Cells(
        counts.to_sparse().coalesce(), counts.sum(dim=1)[:, None], torch.zeros(n, dtype=int), None, None, nothing
    )


@pytest.fixture
def cells():
    """Cells of which many differ in one count only."""
    counts = np.ones((3000, 6))
    counts[:, :3] += np.stack(np.unravel_index(np.arange(3000), (15, 20, 10)), axis=1)
    return cells_of(counts)


def drawn(cells, seed=0, n_latent=2, names=("z",)):
    """Standard Normal codes of the cells, (n_names, n_cells, n_latent)."""

    def guide():
        with pyro.plate("cells", len(cells.batch)):
            return [pyro.sample(name, dist.Normal(torch.zeros(n_latent), 1.0).to_event(1)) for name in names]

    with OwnNoise(cells, seed):
        return torch.stack(guide()).numpy()


def test_draws_are_standard_normal_and_independent(cells):
    z = drawn(cells, n_latent=5)[0]
    assert z.dtype == np.float32
    for column in z.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.07  # of cells that differ in one count
    assert np.abs(np.corrcoef(z.T) - np.eye(5)).max() < 0.07


def test_variables_and_seeds_have_draws_of_their_own(cells):
    codes, sizes = drawn(cells, names=("z", "library_size"))
    others = [sizes, drawn(cells, seed=1)[0]]
    for other in others:
        assert abs(np.corrcoef(codes.ravel(), other.ravel())[0, 1]) < 0.05


def test_draws_are_numbered():
    cells = cells_of(np.arange(1, 2001)[:, None])
    with pyro.plate("cells", 2000):
        trace = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
    noise = OwnNoise(cells, 3)
    first, second = (noise.draw(trace.nodes["z"], number) for number in (0, 1))
    assert torch.equal(first, noise.draw(trace.nodes["z"], 0))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.07


def test_a_cell_has_its_draws_in_any_company(cells):
    together = drawn(cells)[0]
    rows = np.array([2999, 5, 1700])
    alone = drawn(cells_of(cells.counts.to_dense()[rows]))[0]
    np.testing.assert_array_equal(alone, together[rows])


def test_what_all_cells_share_is_the_same_for_any_cells(cells):
    def shared(cells):
        with OwnNoise(cells, 5):
            return pyro.sample("log_theta", dist.LogNormal(torch.zeros(4), 1.0).to_event(1))

    first, second = shared(cells), shared(cells_of(np.ones((2, 6))))
    assert torch.equal(first, second)
    assert len(first.unique()) == 4


def test_plates_within_the_cell_get_numbers_of_their_own(cells):
    with OwnNoise(cells, 5), pyro.plate("cells", len(cells.batch), dim=-1), pyro.plate("layers", 3, dim=-2):
        values = pyro.sample("y", dist.Normal(0.0, 1.0))
    assert values.shape == (3, 3000)
    assert np.abs(np.corrcoef(values) - np.eye(3)).max() < 0.07


def test_distributions_without_quantiles_are_sampled_as_ever(cells):
    with torch.random.fork_rng(), OwnNoise(cells, 5), pyro.plate("cells", len(cells.batch)):
        values = pyro.sample("y", dist.Gamma(torch.tensor(4.0), 2.0))
    assert values.mean().item() == pytest.approx(2, abs=0.1)


def test_observed_values_stay(cells):
    with OwnNoise(cells, 5), pyro.plate("cells", len(cells.batch)):
        values = pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.full((3000,), 7.0))
    assert (values == 7).all()


def test_seeds_follow_from_that_of_torch():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = [new_seed(), new_seed()]
        torch.manual_seed(1)
        assert [new_seed(), new_seed()] == first
    assert first[0] != first[1]
