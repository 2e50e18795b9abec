"""Random numbers of a cell's own: its draws do not depend on the cells beside it, nor on their order."""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch.distributions import Independent

if TYPE_CHECKING:
    from torch import Tensor

    from scanpy_scvipyro.model import Cells

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as signed integers, whose products are the same modulo 2^64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def new_seed() -> int:
    """Draw a seed of random numbers from torch's generator."""
    return int(torch.randint(2**62, ()))


class OwnNoise(Messenger):
    """In this context, latent variables of cells are drawn with random numbers that follow from the counts of the cell.

    The counts are hashed to a key, and key, seed and name of the variable to uniform numbers, of which quantiles of the
    distribution are taken. Cells with equal counts have equal draws; those of others are independent. A distribution
    whose quantiles are not known, in a guide of one's own, is sampled as ever.
    """

    def __init__(self, cells: Cells, seed: int) -> None:
        super().__init__()
        self.cells, self.seed = cells, seed

    @cached_property
    def keys(self) -> Tensor:
        """Hash of the counts of each cell, (n_cells,), in which the order of the genes of the model matters alone."""
        assert self.cells.counts is not None
        row, gene = self.cells.counts.indices()
        hashed = _mixed(_mixed(gene) + self.cells.counts.values().long())
        return torch.zeros_like(self.cells.batch).index_add_(0, row, hashed)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["value"] is None and not site_is_subsample(msg):
            msg["value"] = self.draw(msg, 0)

    def draw(self, site: dict[str, Any], number: int) -> Tensor:
        """Draw the value of a site of a trace; draws of one seed are numbered."""
        base = site["fn"]
        while isinstance(base, Independent):
            base = base.base_dist
        try:
            return base.icdf(self._uniform(site, number)).to(base.mean.dtype)
        except NotImplementedError:
            return site["fn"].sample()

    def _uniform(self, site: dict[str, Any], number: int) -> Tensor:
        """Numbers between 0 and 1 for each entry of a site, in float64."""
        shape, keys = list(site["fn"].shape()), self.keys.new_zeros(())
        for frame in site["cond_indep_stack"]:
            if frame.name == "cells":
                axis = len(shape) - site["fn"].event_dim + frame.dim
                keys, shape[axis] = self.keys.view([-1 if i == axis else 1 for i in range(len(shape))]), 1
        stream = torch.tensor([self.seed, zlib.crc32(site["name"].encode()), number], device=keys.device)
        entries = torch.arange(torch.Size(shape).numel(), device=keys.device).view(shape)
        bits = _mixed(keys + _mixed(entries + _mixed(stream).sum()))
        return ((bits >> 11 & 2**53 - 1).double() + 0.5) / 2**53


def _mixed(x: Tensor) -> Tensor:
    """Bits of int64 mixed as by SplitMix64 (Steele et al. 2014, Fast splittable pseudorandom number generators)."""
    x = x * _GOLDEN
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        x = (x ^ (x >> shift & 2 ** (64 - shift) - 1)) * factor  # without the sign, which >> repeats
    return x ^ (x >> 31 & 2**33 - 1)
