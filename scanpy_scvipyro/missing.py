"""Genes that were not measured: what the model expects of them takes the place of their counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import sparse

from scanpy_scvipyro import csr, posterior
from scanpy_scvipyro.csr import CSR

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from scanpy_scvipyro.csr import Counts, Totals
    from scanpy_scvipyro.data import CellData, DataSpec
    from scanpy_scvipyro.model import SCVI, Cells

# Each is a decoding and encoding again, from codes of zeros for missing genes. The second brings codes of 50 % of the
# genes nearer to those of all; a third changes nothing any more (docs/recipe.md).
_N_ROUNDS = 2


def completed(module: SCVI, data: CellData, measured: Tensor, known: DataSpec) -> CellData:
    """Cells with expected counts of the genes that were not measured, and library sizes of all genes of the model.

    ``data`` has the measured genes alone, in memory or in a file.
    """
    counts: Counts = Completed(module, data, measured, known)
    if isinstance(data.counts, CSR):
        counts = counts.read(torch.arange(data.n_cells))
    depth = torch.from_numpy(np.concatenate([block.to_scipy().sum(axis=1) for _, block in counts.blocks()]))[:, None]
    has_size_factor = not module.decoder.normalize
    return replace(data, counts=counts, depth=depth, library_size=data.library_size if has_size_factor else depth)


class Completed:
    """Counts of all genes of a model, with the methods of :class:`~scanpy_scvipyro.csr.CSR`.

    What is expected is computed whenever cells are read. It takes 8 bytes for each cell and missing gene: too many to
    keep where counts are in a file.
    """

    def __init__(self, module: SCVI, data: CellData, measured: Tensor, known: DataSpec) -> None:
        self.module, self.measured, self.n_genes = module, measured, len(measured)
        self.known_batches, self.is_new = range(known.n_batches), data.batch >= known.n_batches
        # New categories of other columns are encoded as the first known ones.
        n_categories = torch.tensor(known.n_categories, dtype=torch.int64)
        self.data = replace(
            data,
            batch=torch.where(self.is_new, 0, data.batch),
            categorical=torch.where(data.categorical < n_categories, data.categorical, 0),
        )

    def minibatches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Take one minibatch after the other, as coalesced sparse COO tensors, (n_rows, n_genes)."""
        for rows, cells in zip(parts, self.data.minibatches(parts), strict=True):
            yield self._filled(cells, self.is_new[rows]).to_sparse()

    def read(self, rows: Tensor) -> CSR:
        """Take the given cells alone, in the given order, into memory."""
        parts = self.minibatches(rows.split(1024))
        return CSR.of(sparse.vstack([sparse.csr_array(part.to_dense().numpy()) for part in parts], format="csr"))

    def shuffled(
        self, rows: Tensor, n_minibatches: int, n_ranks: int, generator: torch.Generator
    ) -> list[Sequence[Tensor]]:
        """Split the given cells at random into minibatches of each process, of sizes as equal as they can be."""
        return self.data.counts.shuffled(rows, n_minibatches, n_ranks, generator)

    def blocks(self) -> Iterator[tuple[slice, CSR]]:
        """All cells, in order, a part of them at a time."""
        for rows in torch.arange(self.data.n_cells).split(1024):
            yield slice(int(rows[0]), int(rows[-1]) + 1), self.read(rows)

    def totals(self, group: Tensor) -> Totals:
        """Sum over the cells of each group."""
        return csr.totals(self.blocks(), group, self.n_genes)

    @torch.no_grad()
    def _filled(self, cells: Cells, is_new: Tensor) -> Tensor:
        """Add what is expected of missing genes to the counts: in new batches, the average over known ones."""
        assert cells.counts is not None
        observed = torch.zeros(len(is_new), self.n_genes)
        observed[:, self.measured] = cells.counts.to_dense()
        filled = observed
        for _ in range(_N_ROUNDS):
            cells = cells._replace(counts=filled)
            rate = self._expected(cells)  # cells of new batches are in the first known one
            if is_new.any():
                others = (torch.full_like(cells.batch, code) for code in self.known_batches[1:])
                total = rate + sum(self._expected(cells._replace(batch=batch)) for batch in others)
                rate = torch.where(is_new[:, None], total / len(self.known_batches), rate)
            # Depth of the measured genes on the scale of all.
            depth = observed.sum(dim=1, keepdim=True) / rate[:, self.measured].sum(dim=1, keepdim=True)
            filled = torch.where(self.measured, observed, depth * rate)
        return filled

    def _expected(self, cells: Cells) -> Tensor:
        """Frequencies of all genes, encoded and decoded in the batch of each cell."""
        z = posterior.latent_posterior(self.module, cells).mean
        return posterior.expected(self.module, cells, z, 1.0)
