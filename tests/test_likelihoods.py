"""Count distributions against mpmath (50 digits), scipy, and autograd."""

import itertools
import math

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy import stats

from scanpy_scvipyro.likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

COUNTS = (0.0, 1.0, 2.0, 7.0, 100.0, 1023.0, 1024.0, 1e4, 1e6)
MEANS = (1e-8, 1e-4, 0.03, 1.0, 10.0, 1e3, 1e6)
THETAS = (1e-4, 0.01, 0.5, 1.0, 30.0, 1e4, 1e6)
DROPOUT_LOGITS = (-30.0, -8.0, -1.0, 0.0, 2.0, 30.0)


def exact_log_nb(x, log_mean, log_theta):
    mean, theta = mp.exp(log_mean), mp.exp(log_theta)
    return (
        mp.loggamma(x + theta)
        - mp.loggamma(theta)
        - mp.loggamma(x + 1)
        - theta * mp.log1p(mean / theta)
        + x * (log_mean - mp.log(mean + theta))
    )


def exact_log_zinb(x, log_mean, log_theta, dropout_logit):
    dropout = 1 / (1 + mp.exp(-dropout_logit))
    nb = mp.exp(exact_log_nb(x, log_mean, log_theta))
    return mp.log(dropout * (x == 0) + (1 - dropout) * nb)


def exact_log_poisson(x, log_mean):
    return x * log_mean - mp.exp(log_mean) - mp.loggamma(x + 1)


def grid(*axes):
    """Every combination, as float32 tensors: the rounded values are what mpmath is asked about."""
    columns = zip(*itertools.product(*axes))
    return [torch.tensor(column, dtype=torch.float32) for column in columns]


NB_GRID = grid(COUNTS, map(math.log, MEANS), map(math.log, THETAS))
ZINB_GRID = grid(COUNTS, map(math.log, MEANS), map(math.log, THETAS), DROPOUT_LOGITS)
POISSON_GRID = grid(COUNTS, map(math.log, MEANS))
EXACT = {
    NegativeBinomial: (exact_log_nb, NB_GRID),
    ZeroInflatedNegativeBinomial: (exact_log_zinb, ZINB_GRID),
    Poisson: (exact_log_poisson, POISSON_GRID),
}
each_distribution = pytest.mark.parametrize("distribution", EXACT, ids=lambda d: d.__name__)


def exactly(function, columns):
    """The function at each row in 50 digits."""
    with mp.workdps(50):
        rows = zip(*([mp.mpf(v) for v in column.tolist()] for column in columns))
        return [function(*row) for row in rows]


def slope_of(function, i):
    """Derivative for argument i."""
    return lambda *row: mp.diff(lambda value: function(*row[:i], value, *row[i + 1 :]), row[i])


def parameters_like(distribution, generator, *, rows=3, genes=4, dtype=torch.float64):
    shapes = {"log_mean": (rows, genes), "log_inverse_dispersion": (genes,), "dropout_logits": (rows, genes)}
    return [
        torch.randn(shapes[name], generator=generator, dtype=dtype).requires_grad_()
        for name in distribution.arg_constraints
    ]


@each_distribution
def test_float32_log_prob_is_exact_over_extremes(distribution):
    function, (counts, *parameters) = EXACT[distribution]
    found = distribution(*parameters).log_prob(counts).double().numpy()
    exact = np.array([float(value) for value in exactly(function, (counts, *parameters))])
    # Seven digits of the count, of the mean, and of the log-odds of dropout (30).
    rounding = 1e-7 * (counts + parameters[0].exp() + 30).double().numpy()
    assert (np.abs(found - exact) <= 2e-6 * np.abs(exact) + rounding).all()


@each_distribution
def test_gradients_are_finite_and_exact_over_extremes(distribution):
    function, (counts, *parameters) = EXACT[distribution]
    parameters = [p.clone().requires_grad_() for p in parameters]
    gradients = torch.autograd.grad(distribution(*parameters).log_prob(counts).sum(), parameters)
    # A gradient is a difference of terms as large as the count and the mean (for dropout: as one), of which float32
    # keeps 7 digits.
    counts_and_mean = (counts + parameters[0].detach().exp()).double().numpy()
    scales = [counts_and_mean, counts_and_mean, np.ones(len(counts))]
    subset = slice(None, None, 1 if len(counts) < 500 else 23)
    for i, (gradient, scale) in enumerate(zip(gradients, scales)):
        assert gradient.isfinite().all()
        columns = [column.detach()[subset] for column in (counts, *parameters)]
        exact = np.array([float(value) for value in exactly(slope_of(function, i + 1), columns)])
        error = np.abs(gradient[subset].double().numpy() - exact)
        assert (error <= 1e-4 * np.abs(exact) + 2e-6 * scale[subset]).all()


@pytest.mark.parametrize("distribution", [NegativeBinomial, ZeroInflatedNegativeBinomial])
def test_parameters_beyond_the_range_of_exp_stay_finite(distribution):
    log_mean, log_theta = (torch.tensor([a, b]).requires_grad_() for a, b in ((60.0, 40.0), (-80.0, -60.0)))
    parameters = [log_mean, log_theta, torch.zeros(2, requires_grad=True)][: len(distribution.arg_constraints)]
    for counts in (torch.zeros(2), torch.tensor([5.0, 1e6])):
        log_prob = distribution(*parameters).log_prob(counts)
        assert log_prob.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(log_prob.sum(), parameters))


def test_nb_log_prob_equals_scipy():
    x = np.arange(40.0)
    mean, theta = 5.5, 1.7
    found = NegativeBinomial(*torch.tensor([mean, theta], dtype=torch.float64).log())
    expected = stats.nbinom.logpmf(x, theta, theta / (theta + mean))
    np.testing.assert_allclose(found.log_prob(torch.from_numpy(x)), expected, atol=1e-7)


def test_poisson_log_prob_equals_scipy():
    x = np.arange(40.0)
    found = Poisson(torch.tensor(5.5).double().log()).log_prob(torch.from_numpy(x))
    np.testing.assert_allclose(found, stats.poisson.logpmf(x, 5.5), atol=1e-7)


def test_zinb_probabilities_sum_to_one_and_inflate_zero():
    parameters = torch.tensor([math.log(3.0), math.log(0.8), -0.4], dtype=torch.float64)
    x = torch.arange(2000.0).double()
    probabilities = ZeroInflatedNegativeBinomial(*parameters).log_prob(x).exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-9)
    kept = 1 / (1 + math.exp(-0.4))
    expected = 1 - kept + kept * stats.nbinom.pmf(0, 0.8, 0.8 / 3.8)
    assert probabilities[0].item() == pytest.approx(expected, rel=1e-9)


@each_distribution
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "sparse"])
def test_gradients_pass_gradcheck(distribution, is_sparse):
    parameters = parameters_like(distribution, torch.Generator().manual_seed(0))
    counts = torch.tensor([[0, 3, 1, 0], [12, 0, 0, 2], [0, 0, 0, 1]]).double()
    counts = counts.to_sparse().coalesce() if is_sparse else counts
    assert torch.autograd.gradcheck(lambda *p: distribution(*p).log_prob(counts), parameters)


def test_float64_gradients_are_those_of_autograd_through_lgamma():
    log_mean, log_theta, counts = (axis.double() for axis in grid((-3.0, 0.0, 4.0), (-3.0, 0.0, 3.0), (0, 1, 2, 5, 90)))
    parameters = [log_mean.requires_grad_(), log_theta.requires_grad_()]
    found = torch.autograd.grad(NegativeBinomial(*parameters).log_prob(counts).sum(), parameters)
    reference = torch.distributions.NegativeBinomial(log_theta.exp(), logits=log_mean - log_theta).log_prob(counts)
    for gradient, expected in zip(found, torch.autograd.grad(reference.sum(), parameters)):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)


@each_distribution
def test_sparse_counts_give_the_same_log_prob_and_gradients(distribution):
    generator = torch.Generator().manual_seed(1)
    parameters = parameters_like(distribution, generator, rows=20, genes=30, dtype=torch.float32)
    counts = torch.poisson(torch.full((20, 30), 0.3), generator=generator)
    dense = distribution(*parameters).log_prob(counts)
    sparse = distribution(*parameters).log_prob(counts.to_sparse().coalesce())
    torch.testing.assert_close(sparse, dense, rtol=0, atol=0)
    weight = torch.rand(dense.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((sparse * weight).sum(), parameters),
        torch.autograd.grad((dense * weight).sum(), parameters),
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@each_distribution
def test_parameters_and_counts_broadcast(distribution):
    generator = torch.Generator().manual_seed(2)
    cell, gene = torch.randn(5, 1, generator=generator), torch.randn(3, generator=generator)
    parameters = [cell, gene, gene][: len(distribution.arg_constraints)]
    counts = torch.tensor([0.0, 2.0, 5.0])
    full = [p.expand(5, 3).contiguous() for p in parameters]
    found = distribution(*parameters).log_prob(counts).expand(5, 3)
    torch.testing.assert_close(found, distribution(*full).log_prob(counts.expand(5, 3)), rtol=1e-6, atol=1e-6)


@each_distribution
def test_scalar_parameters_take_any_counts(distribution):
    parameters = [torch.tensor(0.3)] * len(distribution.arg_constraints)
    counts = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    each = torch.stack([distribution(*parameters).log_prob(c) for c in counts.flatten()]).view(2, 2)
    torch.testing.assert_close(distribution(*parameters).log_prob(counts), each)


@each_distribution
def test_expand_repeats_log_prob_and_widens_samples(distribution):
    parameters = parameters_like(distribution, torch.Generator().manual_seed(3), rows=1)
    expanded = distribution(*parameters).expand((2, 3, 4))
    counts = torch.tensor([0.0, 1.0, 0.0, 9.0]).double()
    assert expanded.batch_shape == (2, 3, 4)
    assert expanded.sample((5,)).shape == (5, 2, 3, 4)
    assert expanded.mean.shape == expanded.variance.shape == (2, 3, 4)
    assert expanded.expand((6, 2, 3, 4)).log_prob(counts).shape == (6, 2, 3, 4)
    torch.testing.assert_close(
        expanded.log_prob(counts), distribution(*parameters).log_prob(counts).expand(2, 3, 4), rtol=0, atol=0
    )


@pytest.mark.parametrize("columns", [slice(None), np.array([4, 0])])
@each_distribution
def test_some_columns_have_the_log_prob_and_moments_they_have_among_all(distribution, columns):
    generator = torch.Generator().manual_seed(8)
    *first, last = torch.randn(len(distribution.arg_constraints), 3, 5, generator=generator)
    among_all = distribution(*first, last[0])  # a parameter of rows and columns, and one of columns alone
    counts = torch.poisson(torch.full((3, 5), 2.0), generator=generator)
    some = among_all.of_columns(columns)
    assert torch.equal(some.log_prob(counts[:, columns]), among_all.log_prob(counts)[:, columns])
    assert torch.equal(some.variance, among_all.variance[..., columns])
    assert some.sample_rate().shape == some.batch_shape == among_all.variance[..., columns].shape


@each_distribution
def test_genes_become_one_event(distribution):
    parameters = parameters_like(distribution, torch.Generator().manual_seed(4))
    counts = torch.tensor([0.0, 1.0, 0.0, 9.0]).double().expand(3, 4)
    cells = distribution(*parameters).to_event(1)
    assert (cells.batch_shape, cells.event_shape) == ((3,), (4,))
    torch.testing.assert_close(cells.log_prob(counts), distribution(*parameters).log_prob(counts).sum(-1))


@each_distribution
def test_large_minibatches_taken_in_parts_are_taken_whole(distribution):
    generator = torch.Generator().manual_seed(6)
    n_cells = 3 * 131_072 * torch.get_num_threads() // 1000 + 7
    parameters = parameters_like(distribution, generator, rows=n_cells, genes=1000, dtype=torch.float32)
    counts = torch.poisson(torch.full((n_cells, 1000), 0.05), generator=generator)
    weight = torch.rand(n_cells, generator=generator)
    cells = distribution(*parameters).to_event(1).log_prob(counts.to_sparse().coalesce())
    gradients = torch.autograd.grad((cells * weight).sum(), parameters)
    some = torch.arange(0, n_cells, 61)
    rows = [p.detach()[some] if p.ndim == 2 else p.detach() for p in parameters]
    torch.testing.assert_close(cells[some], distribution(*rows).log_prob(counts[some]).sum(-1))
    # Fifty rows at a time; the gradient of what all rows share is the sum over them.
    parts = []
    for start in range(0, n_cells, 50):
        part = slice(start, start + 50)
        few = [(p.detach()[part] if p.ndim == 2 else p.detach()).requires_grad_() for p in parameters]
        few_cells = distribution(*few).log_prob(counts[part]).sum(-1)
        parts.append(torch.autograd.grad((few_cells * weight[part]).sum(), few))
    for gradient, *few in zip(gradients, *parts):
        expected = torch.cat(few) if gradient.ndim == 2 else torch.stack(few).sum(0)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@each_distribution
@pytest.mark.parametrize("theta", [0.3, 20.0])
def test_samples_have_the_stated_mean_and_variance(distribution, theta):
    parameters = [torch.tensor(v) for v in (math.log(4.0), math.log(theta), -0.5)][: len(distribution.arg_constraints)]
    counts_of = distribution(*parameters)
    n = 400_000
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        samples = counts_of.sample((n,)).double()
    assert torch.equal(samples, samples.round())
    mean, variance = counts_of.mean.item(), counts_of.variance.item()
    # Five standard errors; that of the variance from the fourth moment of the sample.
    fourth = (samples - samples.mean()).pow(4).mean().item()
    assert abs(samples.mean().item() - mean) < 5 * math.sqrt(variance / n)
    assert abs(samples.var().item() - variance) < 5 * math.sqrt((fourth - variance**2) / n)


def test_samples_do_not_carry_gradients():
    log_mean = torch.zeros(3, requires_grad=True)
    assert not NegativeBinomial(log_mean, torch.zeros(3)).sample().requires_grad
