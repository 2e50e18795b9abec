"""Counts in memory, as a sparse matrix of tensors: minibatches, blocks and sums of them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import Tensor

_BLOCK = 1 << 20
"""Counts at a time, so that sums over all of them need little memory."""
_MAX_VIEW = np.iinfo(np.int32).max
"""Of more counts, a matrix would be a copy: scipy has indices and where rows start as integers of one size."""


@dataclass(frozen=True)
class CSR:
    """Counts above zero of all cells, one cell after the other, on one device."""

    indptr: Tensor
    """(n_cells + 1,), where each cell starts."""
    indices: Tensor
    """(n_counts,), genes."""
    values: Tensor
    """(n_counts,), float32."""
    n_genes: int
    host_indptr: Tensor | None = None
    """``indptr`` on the host where the counts were sent from: on a GPU, sizes would have to be waited for."""

    @classmethod
    def of(cls, matrix: sparse.csr_array) -> CSR:
        """Take the arrays of a canonical float32 matrix, as views where they can be, never written to."""
        # torch warns of read-only arrays.
        indices, values = (np.require(part, requirements="W") for part in (matrix.indices, matrix.data))
        indptr = torch.from_numpy(matrix.indptr.astype(np.int64))
        return cls(indptr, torch.from_numpy(indices), torch.from_numpy(values), matrix.shape[1])

    def to_scipy(self) -> sparse.csr_array:
        """View as a matrix."""
        parts = (self.values.numpy(), self.indices.numpy(), self.indptr.numpy())
        return sparse.csr_array(parts, shape=(self.n_cells, self.n_genes))

    @property
    def n_cells(self) -> int:
        return len(self.indptr) - 1

    @property
    def nbytes(self) -> int:
        return self.indptr.nbytes + self.indices.nbytes + self.values.nbytes

    def to(self, device: torch.device) -> CSR:
        indptr, indices, values = (part.to(device) for part in (self.indptr, self.indices, self.values))
        return CSR(indptr, indices, values, self.n_genes, host_indptr=self.indptr)

    def coo(self, rows: Tensor) -> Tensor:
        """Take the given cells as a coalesced sparse COO tensor, (n_rows, n_genes)."""
        of_rows = self.read(rows)
        row = torch.repeat_interleave(of_rows.indptr.diff(), output_size=len(of_rows.values))
        return torch.sparse_coo_tensor(
            torch.stack([row, of_rows.indices.long()]),
            of_rows.values,
            (len(rows), self.n_genes),
            check_invariants=False,
            is_coalesced=True,
        )

    def read(self, rows: Tensor) -> CSR:
        """Take the given cells alone, in the given order."""
        if self._matrix is not None:
            return CSR.of(self._matrix[rows.numpy()])
        n_in_all = None
        if self.host_indptr is not None:
            n_in_all = int((self.host_indptr[rows + 1] - self.host_indptr[rows]).sum())
            rows = sent(rows, self.indptr.device)
        start = self.indptr[rows]
        n_values = self.indptr[rows + 1] - start
        indptr = torch.cat([n_values.new_zeros(1), n_values.cumsum(0)])
        shift = torch.repeat_interleave(start - indptr[:-1], n_values, output_size=n_in_all)
        position = torch.arange(len(shift), device=shift.device).add_(shift)
        return CSR(indptr, self.indices[position], self.values[position], self.n_genes)

    @cached_property
    def _matrix(self) -> sparse.csr_array | None:
        """View as a matrix, which on a host copies rows as they lie, in half the time."""
        is_sent = self.host_indptr is not None or self.values.device.type != "cpu"
        return None if is_sent or len(self.values) > _MAX_VIEW else self.to_scipy()

    def shuffled(
        self, rows: Tensor, n_minibatches: int, n_ranks: int, generator: torch.Generator
    ) -> list[Sequence[Tensor]]:
        """Split the given cells at random into minibatches of each process, of sizes as equal as they can be."""
        parts = rows[torch.randperm(len(rows), generator=generator)].tensor_split(n_minibatches * n_ranks)
        return [parts[rank::n_ranks] for rank in range(n_ranks)]

    def minibatches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Take one minibatch after the other, as :meth:`coo` gives them."""
        return (self.coo(rows) for rows in parts)

    def totals(self, group: Tensor) -> Totals:
        """Sum over the cells of each group."""
        return totals(self.blocks(), group, self.n_genes)

    def blocks(self) -> Iterator[tuple[slice, CSR]]:
        """All cells, in order, a part of them at a time, as views."""
        starts = torch.searchsorted(self.indptr, torch.arange(0, len(self.values), _BLOCK))
        bounds = sorted({0, *starts.tolist(), self.n_cells})
        for start, stop in itertools.pairwise(bounds):
            first, last = self.indptr[start], self.indptr[stop]
            part = CSR(
                self.indptr[start : stop + 1] - first, self.indices[first:last], self.values[first:last], self.n_genes
            )
            yield slice(start, stop), part


def sent(rows: Tensor, device: torch.device) -> Tensor:
    """Send rows to a device; the host need not wait until they are read from pinned memory."""
    if device.type == "cuda" and rows.device.type == "cpu":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)


class Counts(Protocol):
    """Counts of all cells, wherever they are, as the methods of :class:`CSR` give them."""

    @property
    def n_genes(self) -> int: ...

    def read(self, rows: Tensor) -> CSR: ...

    def shuffled(
        self, rows: Tensor, n_minibatches: int, n_ranks: int, generator: torch.Generator
    ) -> list[Sequence[Tensor]]: ...

    def minibatches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]: ...

    def blocks(self) -> Iterator[tuple[slice, CSR]]: ...

    def totals(self, group: Tensor) -> Totals: ...


class Totals(NamedTuple):
    """Sums over groups of cells, (n_groups, n_genes) each, in float64."""

    frequency: Tensor
    """Counts in shares of those of their cell."""
    counts: Tensor
    n_detected: Tensor
    """Cells with any count of the gene."""


def totals(blocks: Iterable[tuple[slice, CSR]], group: Tensor, n_genes: int) -> Totals:
    """Sum over the cells of each group, from 0; ``group`` is (n_cells,)."""
    sums = torch.zeros(3, int(group.max()) + 1, n_genes, dtype=torch.float64)
    for rows, block in blocks:
        add_to(sums, block.to_scipy(), group[rows])
    return Totals(*sums)


def add_to(sums: Tensor, counts: sparse.csr_array, group: Tensor) -> None:
    """Add cells to the sums of their groups, (3, n_groups, n_genes), in the order of :class:`Totals`."""
    shape, cells = (sums.shape[1], counts.shape[0]), (group.numpy(), np.arange(len(group)))
    counts = counts.astype(np.float64)
    detected = sparse.csr_array((np.ones_like(counts.data), counts.indices, counts.indptr), shape=counts.shape)
    share, one = 1 / np.maximum(counts.sum(axis=1), 1), np.ones(len(group))
    for total, weight, of_cells in zip(sums.numpy(), (share, one, one), (counts, counts, detected), strict=True):
        of_groups = (sparse.csr_array((weight, cells), shape=shape) @ of_cells).tocoo()
        total[of_groups.row, of_groups.col] += of_groups.data
