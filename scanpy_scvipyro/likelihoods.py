"""Count distributions, exact in float32.

What holds for counts above zero is written as deviations from saddle points (Loader 2000, Fast and accurate computation
of binomial probabilities): sums of small terms, where the textbook formulas are differences of terms that grow with the
count. ``_log_prob.py`` puts the formulas together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from pyro.distributions import Independent, TorchDistribution
from torch.distributions import constraints

from scanpy_scvipyro._log_prob import LogProb, broadcast, delta_of_count, stirling

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from scanpy_scvipyro._log_prob import Nonzero

_SCALAR = torch.Size()
_Shape: TypeAlias = "torch.Size | list[int] | tuple[int, ...]"
_LOG_2, _LOG_2PI = math.log(2), math.log(2 * math.pi)


def _ratio(log_mean: Tensor, log_theta: Tensor) -> Tensor:
    """Compute mu / theta; exp overflows above 88, which nobody's counts reach."""
    return (log_mean - log_theta).clamp_max_(80).exp_()


def _log1p_and_share(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + mu / theta) and mu / (mu + theta)."""
    return ratio.log1p(), ratio.div_(ratio + 1)


# Beyond, all is dropout, and 1 - d underflows.
_MAX_LOGITS = 80


def _zero(log_zero: Tensor, dropout_logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of a zero under dropout, share of the zeros that come from the NB, and 1 - d."""
    share, kept = (log_zero - dropout_logits).sigmoid_(), torch.neg(dropout_logits).sigmoid_()
    larger = (share - 0.5).abs_().add_(0.5)
    return torch.maximum(log_zero, dropout_logits).add_(torch.div(kept, larger, out=larger).log_()), share, kept


def _log1p_or_log(deviation: Tensor, log_ratio: Tensor) -> Tensor:
    """log(1 + deviation): by log1p above -1/2, below it as the log ratio; each stops where the other starts."""
    log1p = deviation.clamp_min(-0.5).log1p_()
    return log1p.add_(log_ratio.clamp_max_(-_LOG_2)).add_(_LOG_2)


class _CountDistribution(TorchDistribution):
    """Univariate counts with parameters on the log scale; ``.to_event(1)`` makes the counts of a cell."""

    support = constraints.nonnegative_integer
    log_mean: Tensor

    def __init__(self, *parameters: Tensor, validate_args: bool | None = None) -> None:
        # Kept as given, not broadcast: a parameter per gene stays one row, and its gamma functions stay cheap.
        for name, parameter in zip(self.arg_constraints, parameters, strict=True):
            setattr(self, name, parameter)
        shape = broadcast(*(parameter.shape for parameter in parameters))
        super().__init__(shape, validate_args=validate_args)

    @property
    def _parameters(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.arg_constraints]

    def expand(self, batch_shape: _Shape, _instance: Any = None) -> _CountDistribution:
        """Broadcast to a larger batch shape; the parameters stay as small as they are."""
        expanded = type(self)(*self._parameters, validate_args=False)
        expanded._batch_shape = broadcast(self.batch_shape, torch.Size(batch_shape))
        return expanded

    def of_columns(self, columns: slice | NDArray[np.intp]) -> Self:
        """Take the counts of some columns; those of the others cost nothing then."""
        return type(self)(*(parameter[..., columns] for parameter in self._parameters), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of each count, in nats; counts may be a dense or a coalesced sparse COO tensor."""
        return self._log_prob(value, is_event=False)

    def to_event(self, reinterpreted_batch_ndims: int | None = None) -> TorchDistribution:
        """Make the last dimensions one event; the log-probability of a cell is then never spread over its genes."""
        if reinterpreted_batch_ndims == 1:
            return _Cells(self, 1, validate_args=False)
        return super().to_event(reinterpreted_batch_ndims)

    def _log_prob(self, counts: Tensor, *, is_event: bool) -> Tensor:
        shape = broadcast(self.batch_shape, counts.shape)
        needs_gradients = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self._parameters)
        return LogProb.apply(type(self), counts, shape, is_event, needs_gradients, *self._parameters)

    def sample(self, sample_shape: _Shape = _SCALAR) -> Tensor:
        """Draw counts of shape ``sample_shape + batch_shape``."""
        with torch.no_grad():
            return self._draw(self._extended_shape(sample_shape))

    def _draw(self, shape: torch.Size) -> Tensor:
        raise NotImplementedError


class _Cells(Independent):
    """The counts of cells: one event per row."""

    base_dist: _CountDistribution

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist._log_prob(value, is_event=True)


class Poisson(_CountDistribution):
    r"""Poisson counts.

    log Poisson(x | mu) is -mu at zero, else x log(mu / x) + x - mu - log(2 pi x) / 2 - delta(x), with delta as in
    ``_log_prob.stirling``; its gradient for log mu is x - mu.

    Parameters
    ----------
    log_mean
        Natural logarithm of the mean.
    """

    arg_constraints = {"log_mean": constraints.real}

    def __init__(self, log_mean: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(log_mean, validate_args=validate_args)

    @staticmethod
    def at_zero(log_mean: Tensor) -> Tensor:
        return log_mean.exp().neg_()

    @staticmethod
    def at_zero_with_gradients(log_mean: Tensor) -> tuple[Tensor, Tensor]:
        log_prob = Poisson.at_zero(log_mean)
        return log_prob, log_prob.clone()

    @staticmethod
    def above_zero(nonzero: Nonzero, log_mean: Tensor) -> tuple[Tensor, Tensor]:
        x, log_mean = nonzero.counts, nonzero.pick(log_mean)
        log_x, surplus = x.log(), x - log_mean.exp()
        log_ratio = _log1p_or_log(-surplus / x, log_mean - log_x)
        return x * log_ratio + surplus - 0.5 * (log_x + _LOG_2PI) - delta_of_count(x), surplus

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
    r"""Negative binomial counts, the Poisson with a Gamma-distributed rate.

    With A = (x - mu) / (mu + theta), (1 + B) x / mu = 1 + A, and delta and epsilon as in ``_log_prob.stirling``::

        log NB           theta (log1p(A) - A) + x (log1p(B) - B) + delta(x + theta) - delta(x) - delta(theta)
                         - log(2 pi x (x + theta) / theta) / 2
        d / d log mu     theta A
        d / d log theta  theta (log1p(A) - A + log theta - digamma(theta) - 1 / (2 (x + theta)) - epsilon(x + theta))

    where x > 0 (theta A = -x B cancels, which rounding would not let it). At zero A = -mu / (mu + theta), log NB =
    theta log1p(A), and the gradients are theta A and theta (log1p(A) - A).

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

    @staticmethod
    def at_zero(log_mean: Tensor, log_theta: Tensor) -> Tensor:
        return _ratio(log_mean, log_theta).log1p_() * log_theta.exp().neg_()

    @staticmethod
    def at_zero_with_gradients(log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s, r = _log1p_and_share(_ratio(log_mean, log_theta))
        minus_theta = log_theta.exp().neg_()
        log_prob, log_mean_grad = s.mul_(minus_theta), r.mul_(minus_theta)
        return log_prob, log_mean_grad, log_prob - log_mean_grad

    @staticmethod
    def above_zero(nonzero: Nonzero, log_mean: Tensor, log_theta: Tensor) -> tuple[Tensor, ...]:
        x = nonzero.counts
        # What depends on theta alone is computed once per theta, then spread: nearly free for one theta per gene.
        once = log_theta.numel() <= x.numel()
        log_theta = (log_theta if once else nonzero.pick(log_theta)).clamp(-60, 80)
        theta = log_theta.exp()
        log1p_inverse = theta.reciprocal().log1p()
        delta, epsilon = stirling(theta + 1)  # and of theta itself by the recurrences of log-gamma and digamma
        constant = 1 - (theta + 0.5) * log1p_inverse - delta + 0.5 * (log_theta - _LOG_2PI)
        slope = 1 + theta * (epsilon + 0.5 / (theta + 1) - log1p_inverse)  # theta (log theta - digamma(theta))
        per_theta = (log_theta, theta, constant, slope)
        log_theta, theta, constant, slope = map(nonzero.pick, per_theta) if once else per_theta

        log_mean, y = nonzero.pick(log_mean), x + theta
        ratio = (log_mean - log_theta).clamp_(-80, 80).exp_()
        a = x / theta
        inverse = ratio.reciprocal()
        b = a.reciprocal().sub_(inverse).div_(inverse.add_(1))
        a = a.sub_(ratio).div_(ratio.add_(1)).clamp_min_(-1 + 1e-7)
        log1p_a, log_x = a.log1p(), x.log()
        log1p_b = _log1p_or_log(b, log_mean.sub_(log_x).add_(log1p_a))
        excess_a, excess_b = log1p_a.sub_(a), log1p_b.sub_(b)
        delta, epsilon = stirling(y)
        log_prob = excess_b.mul_(x).addcmul_(theta, excess_a).add_(constant).add_(delta).sub_(delta_of_count(x))
        log_prob.sub_(log_x.add_(y.log()), alpha=0.5)
        log_theta_grad = excess_a.sub_(epsilon).sub_(y.reciprocal_(), alpha=0.5).mul_(theta).add_(slope)
        return log_prob, a.mul_(theta), log_theta_grad

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

    With dropout probability d, a zero has log-probability max(logit d, log NB(0)) + log(1 - d) - log max(w, 1 - w),
    where w = (1 - d) NB(0) / (d + (1 - d) NB(0)) is the share of zeros that come from the NB. Gradients are those of
    the NB times w, and that of logit d is 1 - d - w. Counts above zero have w = 1.

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

    @staticmethod
    def at_zero(log_mean: Tensor, log_theta: Tensor, dropout_logits: Tensor) -> Tensor:
        return _zero(NegativeBinomial.at_zero(log_mean, log_theta), dropout_logits.clamp_max(_MAX_LOGITS))[0]

    @staticmethod
    def at_zero_with_gradients(log_mean: Tensor, log_theta: Tensor, dropout_logits: Tensor) -> tuple[Tensor, ...]:
        log_zero, *gradients = NegativeBinomial.at_zero_with_gradients(log_mean, log_theta)
        log_prob, share, kept = _zero(log_zero, dropout_logits.clamp_max(_MAX_LOGITS))
        return log_prob, *(gradient.mul_(share) for gradient in gradients), kept.sub_(share)

    @staticmethod
    def above_zero(nonzero: Nonzero, log_mean: Tensor, log_theta: Tensor, dropout_logits: Tensor) -> tuple[Tensor, ...]:
        log_prob, *gradients = NegativeBinomial.above_zero(nonzero, log_mean, log_theta)
        dropout_logits = nonzero.pick(dropout_logits)
        return log_prob - F.softplus(dropout_logits), *gradients, -dropout_logits.sigmoid()

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
