"""Components of a mixture of Normals, evaluated at many points at once."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import Tensor


class Normals(dist.Independent):
    r"""Normals with diagonal covariance: ``Normals(Normal(loc, scale), 1)`` of (n_components, n_dimensions).

    The density of each at each of many points is one matrix product, from
    :math:`(z - \mu)^2 / \sigma^2 = (z^2 - 2 \mu z + \mu^2) / \sigma^2`, where the difference of each point to each
    component would be a tensor of (points x components x dimensions), and take as long as half of the likelihood of
    2,000 counts. What cancels costs float32 a thousandth of a nat, for components 0.3 wide and codes up to 10.
    """

    base_dist: dist.Normal

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of each component at points (..., 1, n_dimensions), as of any component distribution."""
        loc, scale = (_without_repeats(parameter) for parameter in (self.base_dist.loc, self.base_dist.scale))
        if loc.ndim != 2 or value.shape[-2] != 1:
            return super().log_prob(value)
        precision = scale.pow(-2)
        constant = -0.5 * (precision * loc.square() + math.log(2 * math.pi)).sum(dim=-1) - scale.log().sum(dim=-1)
        value = value.squeeze(-2)
        powers, factors = [value.square(), value], [-0.5 * precision, precision * loc]
        return F.linear(torch.cat(powers, dim=-1), torch.cat(factors, dim=-1), constant)


def _without_repeats(parameter: Tensor) -> Tensor:
    """Undo an expansion over points."""
    while parameter.ndim > 2 and parameter.stride(0) == 0:
        parameter = parameter[0]
    return parameter
