"""Count distributions: exact in float32, and paid for by the non-zero counts.

Single-cell counts are mostly zeros. At a zero, the log-probability needs neither ``lgamma`` nor ``digamma``, so each
distribution has a cheap formula for all entries and a costly one, in float64, for the entries above zero.

Counts may be dense tensors or coalesced sparse COO tensors; the latter save the search for the non-zero entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

if TYPE_CHECKING:
    from torch import Tensor


_SCALAR = torch.Size()
_Shape: TypeAlias = "torch.Size | list[int] | tuple[int, ...]"
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_LOG_FACTORIAL = torch.lgamma(torch.arange(1, 1025, dtype=torch.float64))


def _broadcast(*shapes: torch.Size) -> torch.Size:
    """Do what ``torch.broadcast_shapes`` does, at once where the others are the last dimensions of the largest."""
    largest = max(shapes, key=len)
    if all(largest[len(largest) - len(shape) :] == shape for shape in shapes):
        return largest
    return torch.broadcast_shapes(*shapes)


@dataclass(frozen=True)
class _Nonzero:
    """The counts above zero, in the widest float type of the device, and where they stand."""

    count: Tensor
    position: Tensor  # in the flattened counts
    column: Tensor
    shape: torch.Size

    def pick(self, parameter: Tensor) -> Tensor:
        """Values of a broadcastable parameter at the non-zero counts."""
        if parameter.numel() == parameter.shape[-1:].numel() == self.shape[-1:].numel():
            return parameter.flatten().index_select(0, self.column).to(self.count.dtype)
        return parameter.expand(self.shape).flatten().take(self.position).to(self.count.dtype)


def _nonzero(counts: Tensor, shape: torch.Size) -> _Nonzero:
    # Counts of 1e6 have log-probabilities that are differences of terms near 1e7: float32 would leave an error near 1.
    # Apple's GPUs have no float64.
    wide = torch.float32 if counts.device.type == "mps" else torch.float64
    if counts.is_sparse and counts.shape == shape:
        row, column = counts.indices()
        return _Nonzero(counts.values().to(wide), row * shape[-1] + column, column, shape)
    counts = counts.to_dense().expand(shape).flatten()
    position = counts.nonzero().squeeze(1)
    return _Nonzero(counts[position].to(wide), position, position % shape[-1:].numel(), shape)


def _lgamma_digamma(y: Tensor) -> tuple[Tensor, Tensor]:
    """Log-gamma and digamma for y >= 1, to 1e-8: a third of the time of torch's two functions on a CPU.

    Four steps of the recurrences, then the asymptotic series (Abramowitz & Stegun 6.1.41 and 6.3.18).
    """
    p = (y + 3).mul_(y)  # y (y + 3), and p + 2 = (y + 1) (y + 2)
    q = (p + 2).mul_(p)
    z = y + 4
    log_z, r = z.log(), z.reciprocal()
    s = r * r
    lgamma = (s * (1 / 1260)).sub_(1 / 360).mul_(s).add_(1 / 12).mul_(r)
    lgamma.add_(z, alpha=-1).add_(_HALF_LOG_2PI).addcmul_(z.sub_(0.5), log_z)
    digamma = (s * (1 / 252)).sub_(1 / 120).mul_(s).add_(1 / 12).mul_(s)
    digamma = log_z.sub_(digamma).sub_(r, alpha=0.5)
    digamma.sub_((2 * y).add_(3).mul_(p.mul_(2).add_(2)).div_(q))
    return lgamma.sub_(q.log_()), digamma


def _log_factorial(x: Tensor) -> Tensor:
    """Log-gamma of whole numbers x + 1: from a table while they are small, as counts mostly are."""
    if x.device.type == "cpu" and x.numel() and x.max() < len(_LOG_FACTORIAL):
        return _LOG_FACTORIAL.to(x.dtype).index_select(0, x.to(torch.int32))
    return torch.lgamma(x + 1)


class _NegativeBinomialLogProb(torch.autograd.Function):
    r"""log NB(x | mu, theta), or log ZINB where dropout logits are given, with their gradients.

    With s = log(1 + mu / theta), r = mu / (mu + theta) and dropout probability d::

        x = 0, NB    -theta s
        x = 0, ZINB  log(d + (1 - d) exp(-theta s))
        x > 0, NB    -theta s + x (log mu - log theta - s) + lgamma(x + theta) - lgamma(theta) - lgamma(x + 1)
        x > 0, ZINB  log(1 - d) + NB

    The gradients share one weight w, the posterior probability that a count came from the NB component
    (1 where x > 0, and everywhere for the NB)::

        d / d log mu     -w theta r       + [x > 0]  x (1 - r)
        d / d log theta   w theta (r - s) + [x > 0] (theta (digamma(x + theta) - digamma(theta)) - x (1 - r))
        d / d logit d     (1 - d) - w

    Buffers are reused in place: fresh (cells x genes) buffers cost more than the arithmetic done in them.
    """

    @staticmethod
    def forward(ctx: Any, log_mean: Tensor, log_theta: Tensor, dropout_logits: Tensor | None, counts: Tensor) -> Tensor:
        inputs = [log_mean, log_theta] if dropout_logits is None else [log_mean, log_theta, dropout_logits]
        ctx.shapes = [parameter.shape for parameter in inputs]
        nonzero = _nonzero(counts, _broadcast(*ctx.shapes, counts.shape))
        theta = log_theta.exp()

        # exp overflows above 88; s is then within 1e-38 of log(mu / theta), which nobody's counts reach.
        ratio = (log_mean.expand(nonzero.shape) - log_theta).clamp_max_(80).exp_()
        s = torch.log1p(ratio)
        log_prob = ratio + 1
        r = ratio.div_(log_prob)
        torch.mul(s, -theta, out=log_prob)
        log_prob_x, success_x, log_theta_grad_x = _negative_binomial_above_zero(nonzero, log_mean, log_theta)

        weight = dropout_grad = None
        if dropout_logits is not None:
            weight = (log_prob - dropout_logits).sigmoid_().expand(nonzero.shape).contiguous()
            weight.view(-1)[nonzero.position] = 1.0
            kept = (-dropout_logits).sigmoid_()
            dropout_grad = kept - weight
            log_prob = _log_zero_inflated(log_prob, kept, dropout_logits)
            log_prob_x -= F.softplus(nonzero.pick(dropout_logits))
        log_prob.view(-1)[nonzero.position] = log_prob_x.to(log_prob.dtype)
        ctx.save_for_backward(s, r, theta, weight, dropout_grad, nonzero.position, success_x, log_theta_grad_x)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        s, r, theta, weight, dropout_grad, position, success_x, log_theta_grad_x = ctx.saved_tensors
        weight = theta if weight is None else weight * theta

        def finish(dense: Tensor, at_nonzero: Tensor, shape: torch.Size) -> Tensor:
            dense.view(-1).scatter_add_(0, position, at_nonzero.to(dense.dtype))
            return dense.mul_(grad).sum_to_size(shape)

        log_theta_grad = finish((r - s).mul_(weight), log_theta_grad_x, ctx.shapes[1])
        log_mean_grad = finish((r * weight).neg_(), success_x, ctx.shapes[0])
        if dropout_grad is not None:
            dropout_grad = (dropout_grad * grad).sum_to_size(ctx.shapes[2])
        return log_mean_grad, log_theta_grad, dropout_grad, None


def _negative_binomial_above_zero(
    nonzero: _Nonzero, log_mean: Tensor, log_theta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of the counts above zero, and what they add to the gradients of log mu and log theta."""
    x = nonzero.count
    # What depends on theta alone is computed once per theta, then spread: nearly free for one theta per gene.
    once = log_theta.numel() <= x.numel()
    log_theta = log_theta.to(x.dtype) if once else nonzero.pick(log_theta)
    theta = log_theta.exp()
    lgamma_theta, digamma_theta = _lgamma_digamma(theta + 1)
    per_theta = (log_theta, theta, lgamma_theta - log_theta, digamma_theta - 1 / theta)
    log_theta, theta, lgamma_theta, digamma_theta = map(nonzero.pick, per_theta) if once else per_theta

    lgamma_sum, digamma_sum = _lgamma_digamma(x + theta)
    log_ratio = (nonzero.pick(log_mean) - log_theta).clamp_max_(80)
    ratio = log_ratio.exp()
    s = torch.log1p(ratio)
    log_prob = lgamma_sum.sub_(lgamma_theta).sub_(_log_factorial(x)).addcmul_(x, log_ratio.sub_(s))
    log_prob.addcmul_(theta, s, value=-1)
    success = x / ratio.add_(1)
    return log_prob, success, digamma_sum.sub_(digamma_theta).mul_(theta).sub_(success)


def _log_zero_inflated(log_zero: Tensor, kept: Tensor, dropout_logits: Tensor) -> Tensor:
    """log(d + (1 - d) p) from log p, in place, to full relative precision near probability 0 and near probability 1."""
    near_one = torch.expm1(log_zero).mul_(kept)
    direct = log_zero.exp_().mul_(kept).add_(torch.sigmoid(dropout_logits))
    # Either is clamped to one half where the other is exact, so their product over one half is right everywhere, and
    # costs a quarter of torch.where.
    direct = direct.clamp_(torch.finfo(direct.dtype).tiny, 0.5).mul_(2).log_()
    return near_one.clamp_min_(-0.5).log1p_().add_(direct)


class _PoissonLogProb(torch.autograd.Function):
    """log Poisson(x | mu) = x log mu - mu - lgamma(x + 1), with gradient x - mu for log mu."""

    @staticmethod
    def forward(ctx: Any, log_mean: Tensor, counts: Tensor) -> Tensor:
        nonzero = _nonzero(counts, _broadcast(log_mean.shape, counts.shape))
        minus_mean = log_mean.exp().neg_()
        x, log_mean_x = nonzero.count, nonzero.pick(log_mean)
        log_prob = minus_mean.expand(nonzero.shape).clone()
        log_prob_x = x * log_mean_x - log_mean_x.exp() - _log_factorial(x)
        log_prob.view(-1)[nonzero.position] = log_prob_x.to(log_prob.dtype)
        ctx.save_for_backward(minus_mean, x, nonzero.position)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        minus_mean, x, position = ctx.saved_tensors
        log_mean_grad = minus_mean.expand(grad.shape).clone()
        log_mean_grad.view(-1).scatter_add_(0, position, x.to(grad.dtype))
        return log_mean_grad.mul_(grad).sum_to_size(minus_mean.shape), None


class _CountDistribution(TorchDistribution):
    """Univariate counts with parameters on the log scale; ``.to_event(1)`` makes the counts of a cell."""

    support = constraints.nonnegative_integer
    log_mean: Tensor

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        # Kept as given, not broadcast: a parameter per gene stays one row, and its gamma functions stay cheap.
        for name, parameter in zip(self.arg_constraints, parameters, strict=True):
            setattr(self, name, parameter)
        shape = _broadcast(*(parameter.shape for parameter in parameters))
        super().__init__(shape, validate_args=validate_args)

    @property
    def _parameters(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.arg_constraints]

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> _CountDistribution:
        """Broadcast to a larger batch shape; the parameters stay as small as they are."""
        expanded = type(self)(*self._parameters, validate_args=False)
        expanded._batch_shape = _broadcast(self.batch_shape, torch.Size(batch_shape))
        return expanded

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count, in nats; counts may be a dense or a coalesced sparse COO tensor."""
        log_prob = self._log_prob(value)
        return log_prob.expand(_broadcast(log_prob.shape, self.batch_shape))

    def sample(self, sample_shape: _Shape = _SCALAR) -> Tensor:
        """Draw counts of shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            return self._draw(self._extended_shape(sample_shape))

    def _log_prob(self, counts: Tensor) -> Tensor:
        raise NotImplementedError

    def _draw(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError


class Poisson(_CountDistribution):
    """Poisson counts.

    Parameters
    ----------
    log_mean
        Natural logarithm of the mean.
    """

    arg_constraints = {"log_mean": constraints.real}

    def __init__(self, log_mean: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(log_mean, validate_args=validate_args)

    def _log_prob(self, counts: Tensor) -> Tensor:
        return _PoissonLogProb.apply(self.log_mean, counts)

    @property
    def mean(self) -> Tensor:
        """Expected count."""
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of the count: the mean."""
        return self.mean

    def sample_rate(self) -> Tensor:
        """Draw the rate of the counts, which is the mean; counts are Poisson given their rates."""
        return self.mean

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.poisson(self.mean.expand(shape))


class NegativeBinomial(_CountDistribution):
    """Negative binomial counts, the Poisson with a Gamma-distributed rate.

    Parameters
    ----------
    log_mean
        Natural logarithm of the mean mu.
    log_inverse_dispersion
        Natural logarithm of theta; the variance is mu + mu^2 / theta.
    """

    arg_constraints = {"log_mean": constraints.real, "log_inverse_dispersion": constraints.real}
    log_inverse_dispersion: Tensor

    def __init__(self, log_mean: Tensor, log_inverse_dispersion: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(log_mean, log_inverse_dispersion, validate_args=validate_args)

    def _log_prob(self, counts: Tensor) -> Tensor:
        return _NegativeBinomialLogProb.apply(self.log_mean, self.log_inverse_dispersion, None, counts)

    @property
    def mean(self) -> Tensor:
        """Expected count."""
        return self.log_mean.exp().expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of the count."""
        return self.mean + self.mean.square() / self.log_inverse_dispersion.exp()

    def sample_rate(self) -> Tensor:
        """Draw the Gamma-distributed rates of the counts, which are Poisson given their rates; without dropout."""
        return self._draw_rate(self.batch_shape)

    def _draw_rate(self, shape: torch.Size) -> Tensor:
        theta = self.log_inverse_dispersion.exp().expand(shape)
        # Gamma(theta) / theta has mean 1; theta below 1e-4 may underflow to a rate of 0, and the count then is 0.
        return self.log_mean.exp() * torch._standard_gamma(theta) / theta

    def _draw(self, shape: torch.Size) -> Tensor:
        return torch.poisson(self._draw_rate(shape))


class ZeroInflatedNegativeBinomial(_CountDistribution):
    """Negative binomial counts of which a share is lost (dropout) and seen as zero.

    Log-probabilities are exact while the dropout logits stay above -87 in float32.

    Parameters
    ----------
    log_mean
        Natural logarithm of the mean mu of the negative binomial.
    log_inverse_dispersion
        Natural logarithm of theta.
    dropout_logits
        Log-odds of dropout.
    """

    arg_constraints = {
        "log_mean": constraints.real,
        "log_inverse_dispersion": constraints.real,
        "dropout_logits": constraints.real,
    }
    log_inverse_dispersion: Tensor
    dropout_logits: Tensor

    def __init__(
        self,
        log_mean: Tensor,
        log_inverse_dispersion: Tensor,
        dropout_logits: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(log_mean, log_inverse_dispersion, dropout_logits, validate_args=validate_args)

    def _log_prob(self, counts: Tensor) -> Tensor:
        return _NegativeBinomialLogProb.apply(self.log_mean, self.log_inverse_dispersion, self.dropout_logits, counts)

    @property
    def mean(self) -> Tensor:
        """Expected count, dropout included."""
        return (self.log_mean.exp() * torch.sigmoid(-self.dropout_logits)).expand(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of the count, dropout included."""
        dropout = torch.sigmoid(self.dropout_logits)
        return self.mean * (1 + self.log_mean.exp() * (dropout + (-self.log_inverse_dispersion).exp()))

    def sample_rate(self) -> Tensor:
        """Draw the Gamma-distributed rates of the counts before dropout."""
        return NegativeBinomial(self.log_mean, self.log_inverse_dispersion).sample_rate()

    def _draw(self, shape: torch.Size) -> Tensor:
        kept = torch.bernoulli(torch.sigmoid(-self.dropout_logits).expand(shape))
        return kept * NegativeBinomial(self.log_mean, self.log_inverse_dispersion)._draw(shape)
