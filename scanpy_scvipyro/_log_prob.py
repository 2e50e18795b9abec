"""Log-probabilities of counts, paid for by the counts above zero.

Single-cell counts are mostly zeros, and at a zero the log-probability needs no gamma function. So a distribution gives
one cheap formula for all entries, and one for the entries above zero, each with its gradients.

Counts may be dense tensors, or coalesced sparse COO tensors without stored zeros; the latter save the search for the
non-zero entries.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import EllipsisType

    from torch import Tensor

# Entries per thread, for a few buffers of half a megabyte each.
_BLOCK_SIZE = 131_072


def broadcast(*shapes: torch.Size) -> torch.Size:
    """Do what ``torch.broadcast_shapes`` does, at once where the others are the last dimensions of the largest."""
    largest = max(shapes, key=len)
    if all(largest[len(largest) - len(shape) :] == shape for shape in shapes):
        return largest
    return torch.broadcast_shapes(*shapes)


class Nonzero(NamedTuple):
    """The counts above zero, and where they stand."""

    counts: Tensor
    position: Tensor  # among all counts, flattened
    column: Tensor
    shape: torch.Size

    def pick(self, parameter: Tensor) -> Tensor:
        """Values of a broadcastable parameter at the non-zero counts."""
        if parameter.numel() == parameter.shape[-1:].numel() == self.shape[-1:].numel():
            return parameter.flatten().index_select(0, self.column)
        return parameter.expand(self.shape).flatten().index_select(0, self.position)


def _nonzero(counts: Tensor, shape: torch.Size, dtype: torch.dtype) -> Nonzero:
    if counts.is_sparse and counts.shape == shape:
        row, column = counts.indices()
        return Nonzero(counts.values().to(dtype), (row * shape[-1]).add_(column), column, shape)
    counts = counts.to_dense().expand(shape).flatten()
    position = counts.nonzero().squeeze(1)
    return Nonzero(counts[position].to(dtype), position, position % shape[-1:].numel(), shape)


class _Block(NamedTuple):
    """Some rows of the counts."""

    rows: slice | EllipsisType
    shape: torch.Size
    nonzero: slice
    first_position: int

    def of(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        """Take these rows of a tensor, or all of it where it has no rows of its own."""
        return tensor[self.rows] if tensor.ndim == len(shape) and tensor.shape[:1] == shape[:1] else tensor

    def complete(self, at_zero: Tensor, position: Tensor, above_zero: Tensor) -> Tensor:
        """Overwrite what is true at zero where counts are above zero."""
        entries = at_zero.expand(self.shape).contiguous()
        entries.view(-1).index_copy_(0, position[self.nonzero] - self.first_position, above_zero[self.nonzero])
        return entries


def _blocks(shape: torch.Size, position: Tensor) -> Iterator[_Block]:
    """Parts whose buffers stay in the cache of a CPU core, since memory outside it costs more than the arithmetic.

    A GPU has all at once.
    """
    if len(shape) < 2 or position.device.type != "cpu":
        yield _Block(..., shape, slice(None), 0)
        return
    row_size = shape[1:].numel()
    n_rows = max(1, _BLOCK_SIZE * torch.get_num_threads() // max(1, row_size))
    bounds = [*range(0, shape[0], n_rows), shape[0]]
    nonzero = torch.searchsorted(position, torch.tensor(bounds) * row_size).tolist()
    for i in range(len(bounds) - 1):
        rows, block_shape = slice(bounds[i], bounds[i + 1]), torch.Size([bounds[i + 1] - bounds[i], *shape[1:]])
        yield _Block(rows, block_shape, slice(nonzero[i], nonzero[i + 1]), bounds[i] * row_size)


class Formulas(Protocol):
    """What a distribution tells of its log-probability."""

    @staticmethod
    def at_zero(*parameters: Tensor) -> Tensor:
        """Log-probability of a zero."""

    @staticmethod
    def at_zero_with_gradients(*parameters: Tensor) -> tuple[Tensor, ...]:
        """Log-probability of a zero, and its gradient for each parameter."""

    @staticmethod
    def above_zero(nonzero: Nonzero, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Log-probability of the counts above zero, and its gradients."""


class LogProb(torch.autograd.Function):
    """Log-probability of each count, or of all counts of a cell, by the formulas of a distribution.

    Gradients come with it in one pass where they are asked for: exponentials and logarithms are computed once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        formulas: type[Formulas],
        counts: Tensor,
        shape: torch.Size,
        is_event: bool,  # noqa: FBT001
        needs_gradients: bool,  # noqa: FBT001  which autograd does not tell in forward
        *parameters: Tensor,
    ) -> Tensor:
        nonzero = _nonzero(counts, shape, parameters[0].dtype)
        above_zero = formulas.above_zero(nonzero, *parameters)
        log_prob = parameters[0].new_empty(shape[:-1] if is_event else shape)
        gradients: list[Tensor] = []
        for block in _blocks(shape, nonzero.position):
            own = [block.of(parameter, shape) for parameter in parameters]
            at_zero = formulas.at_zero_with_gradients(*own) if needs_gradients else (formulas.at_zero(*own),)
            entries, *of_parameters = (
                block.complete(zero, nonzero.position, above) for zero, above in zip(at_zero, above_zero, strict=False)
            )
            log_prob[block.rows] = entries.sum(dim=-1) if is_event else entries
            gradients += of_parameters
        ctx.is_event, ctx.shape, ctx.shapes = is_event, shape, [parameter.shape for parameter in parameters]
        ctx.save_for_backward(nonzero.position, *gradients)
        return log_prob

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        position, *saved = ctx.saved_tensors
        grad = grad.unsqueeze(-1) if ctx.is_event else grad
        gradients = [grad.new_empty(s) if s == ctx.shape else grad.new_zeros(s) for s in ctx.shapes]
        n = len(gradients)
        for i, block in enumerate(_blocks(ctx.shape, position)):
            for gradient, entries in zip(gradients, saved[i * n : (i + 1) * n], strict=True):
                weight, out = grad[block.rows], block.of(gradient, ctx.shape)
                if out.shape == block.shape:
                    torch.mul(entries, weight, out=out)
                elif ctx.is_event and out.ndim == 1:
                    out += weight.flatten() @ entries.flatten(end_dim=-2)
                else:
                    out += (entries * weight).sum_to_size(out.shape)
        return None, None, None, None, None, *gradients


def stirling(y: Tensor) -> tuple[Tensor, Tensor]:
    r"""Compute what Stirling's formulas leave of log-gamma and digamma, for y >= 1.

    log gamma(y) = (y - 1/2) log y - y + log(2 pi) / 2 + delta and digamma(y) = log y - 1 / (2 y) - epsilon. Rational
    functions of 1 / y^2, fitted for the least greatest error: 2e-8 in y delta, 1e-7 in y^2 epsilon.
    """
    r = y.reciprocal()
    w = r * r
    delta = (w * 0.005979484733).add_(0.077611190468).mul_(w).add_(1 / 12).mul_(r)
    delta.div_((w * 0.094571110792).add_(0.964656003308).mul_(w).add_(1))
    epsilon = (w * 0.009429567251).add_(0.098901796800).mul_(w).add_(1 / 12).mul_(w)
    epsilon.div_((w * 0.195444932668).add_(1.286751471855).mul_(w).add_(1))
    return delta, epsilon


# By count. Beyond the table its last value serves, 2e-5.
_DELTA_OF_COUNT = F.pad(stirling(torch.arange(1, 4096, dtype=torch.float64))[0], (1, 0))


@functools.cache  # a copy in each step would hold up a GPU
def _delta_of_count(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):
        return _DELTA_OF_COUNT.to(device, dtype)


def delta_of_count(x: Tensor) -> Tensor:
    table = _delta_of_count(x.device, x.dtype)
    return table.index_select(0, x.clamp_max(len(table) - 1).to(torch.int32))
