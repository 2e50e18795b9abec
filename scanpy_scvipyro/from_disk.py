"""Counts in files: blocks of neighbouring cells are read into a buffer, from which minibatches are taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse
from threadpoolctl import threadpool_limits

from scanpy_scvipyro import _counts, _lazy, _progress, _select, csr
from scanpy_scvipyro.csr import CSR, Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

BLOCK = 512
"""Neighbouring cells that are read together, at least. Chunks of h5ad files hold fewer."""
TOGETHER = 8
"""Blocks that are read at once, at most, where all are needed: chunks that two of them share are decompressed once."""
BUFFER = 1 << 28
"""Bytes of counts that minibatches are taken from: 200,000 cells with counts of 160 genes each, of 400 blocks."""


class OnDisk:
    """Counts of all cells in a file, with the methods of :class:`~scanpy_scvipyro.csr.CSR`."""

    def __init__(self, matrix: Any, where: str, genes: NDArray[Any]) -> None:
        _refuse_columns(matrix, where)
        self.where = where
        self._read_all, self.bounds = _reader(matrix)
        self._n_together = 1 if _lazy.is_dask(matrix) else TOGETHER
        self._columns = _select.columns(genes, matrix.shape[1])
        self.n_cells, self.n_genes = matrix.shape[0], len(np.arange(matrix.shape[1])[genes])
        # By which buffers are measured; of a lazy array it is known only once all of it was read.
        self.n_stored = matrix.group["data"].shape[0] if isinstance(matrix, CSRDataset) else None
        self._buffer_size = BLOCK
        self._unchecked: AnnData | None = None
        self._totals: Totals | None = None
        self._summed_by: Tensor | None = None
        self._kept, self._kept_counts = torch.arange(0), CSR.of(sparse.csr_array((0, self.n_genes), dtype=np.float32))

    def check(self, adata: AnnData, batch: Tensor | None, kept: Tensor | None, *, show: bool) -> Tensor:
        """Read all counts once: refuse what is none, sum them over batches, if any, and return the sum of each cell.

        Counts of the cells ``kept`` stay in memory.
        """
        kept, kept_counts = (self._kept if kept is None else kept).unique(), []
        sums = torch.zeros(3, 0 if batch is None else int(batch.max()) + 1, self.n_genes, dtype=torch.float64)
        n_values = 0
        depth = self.check_as_read(adata)
        parts = ahead(lambda rows: (rows, self._counts(rows.start, rows.stop)), self._slices())
        for rows, counts in _progress.over_cells(parts, self.n_cells, "Checking counts", show=show):
            if batch is not None:
                csr.add_to(sums, counts, batch[rows])
            first, last = torch.searchsorted(kept, torch.tensor([rows.start, rows.stop])).tolist()
            kept_counts.append(counts[(kept[first:last] - rows.start).numpy()])
            n_values += counts.nnz
        self._refuse_empty(adata)
        self._unchecked = None
        if batch is not None:
            self._totals, self._summed_by = Totals(*sums), batch
        self._kept, self._kept_counts = kept, CSR.of(sparse.vstack(kept_counts, format="csr"))
        self._set_buffer_size(n_values)
        return depth

    def check_as_read(self, adata: AnnData) -> Tensor:
        """Refuse what is no count when it is read, and return the sum of each cell, known once it is read."""
        self._unchecked, self._depth = adata, torch.full((self.n_cells, 1), torch.nan)
        self._set_buffer_size(self.n_stored or self.n_cells * self.n_genes)
        return self._depth

    def coo(self, rows: Tensor) -> Tensor:
        """Take the given cells as a coalesced sparse COO tensor, (n_rows, n_genes)."""
        counts, position = self._read(rows)
        return counts.coo(position)

    def read(self, rows: Tensor) -> CSR:
        """Take the given cells alone, in the given order, into memory."""
        counts, position = self._read(rows)
        return counts.read(position)

    def shuffled(
        self, rows: Tensor, n_minibatches: int, n_ranks: int, generator: torch.Generator
    ) -> list[Sequence[Tensor]]:
        """Split the given cells at random into minibatches of each process, of sizes as equal as they can be.

        Blocks come in random order, then the cells of each buffer. Each process has blocks of its own.
        """
        rows = rows.sort().values
        order = torch.randperm(len(self.bounds), generator=generator)[self._block(rows)]
        parts = rows[order.argsort(stable=True)].tensor_split(n_minibatches * n_ranks)
        of_ranks = [parts[i : i + n_minibatches] for i in range(0, len(parts), n_minibatches)]
        return [self._shuffled_in_buffers(of_rank, generator) for of_rank in of_ranks]

    def _shuffled_in_buffers(self, parts: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
        shuffled: list[Tensor] = []
        for buffer in self._buffers(parts, self._buffer_size):
            cells = torch.cat(list(buffer))
            cells = cells[torch.randperm(len(cells), generator=generator)]
            shuffled += cells.split([len(part) for part in buffer])
        return shuffled

    def minibatches(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Take one minibatch after the other, as :meth:`coo` gives them, while the next buffer is read."""
        size = self._buffer_size // (8 if _is_in_order(parts) else 1)  # then there is nothing to mix
        buffers = self._buffers(parts, size)
        read = ahead(lambda buffer: self._read(torch.cat(list(buffer))), buffers)
        for buffer, (counts, position) in zip(buffers, read, strict=True):
            yield from map(counts.coo, position.split([len(part) for part in buffer]))
        if self._unchecked is not None:
            self._refuse_empty(self._unchecked)

    def blocks(self) -> Iterator[tuple[slice, CSR]]:
        """All cells, in order, a part of them at a time."""
        return ahead(lambda rows: (rows, CSR.of(self._counts(rows.start, rows.stop))), self._slices())

    def totals(self, group: Tensor) -> Totals:
        """Sum over the cells of each group; over batches, they are known."""
        if self._totals is not None and group is self._summed_by:
            return self._totals
        return csr.totals(self.blocks(), group, self.n_genes)

    def _slices(self) -> list[slice]:
        return [slice(*ends) for ends in pairwise([*self.bounds[: -1 : self._n_together], self.bounds[-1]])]

    def _block(self, rows: Tensor) -> Tensor:
        return torch.searchsorted(torch.tensor(self.bounds), rows, right=True) - 1

    def _buffers(self, parts: Sequence[Tensor], size: int) -> list[Sequence[Tensor]]:
        """Group minibatches into as many as are that many cells together."""
        n = max(1, size // max(1, len(parts[0])))
        return [parts[i : i + n] for i in range(0, len(parts), n)]

    def _counts(self, start: int, stop: int) -> sparse.csr_array:
        """Neighbouring cells."""
        if self._unchecked is None:
            return _counts.canonical(self._stored(start, stop))
        counts = _counts.checked(self._stored(start, stop), self.where, self._unchecked, start)
        self._depth[start:stop, 0] = torch.from_numpy(np.asarray(counts.sum(axis=1), dtype=np.float32))
        return counts

    def _refuse_empty(self, adata: AnnData) -> None:
        everything = isinstance(self._columns, slice)
        _counts.refuse_empty(self._depth[:, 0].numpy(), self.where, adata, everything=everything)

    def _set_buffer_size(self, n_values: int) -> None:
        self._buffer_size = max(1, BUFFER * self.n_cells // (8 * n_values))

    def _stored(self, start: int, stop: int) -> sparse.csr_array:
        """Neighbouring cells as they are in the file, without the genes that are not needed."""
        rows = self._read_all(start, stop)
        return rows if isinstance(self._columns, slice) else rows[:, self._columns]  # scipy copies also through a slice

    def _read(self, rows: Tensor) -> tuple[CSR, Tensor]:
        """Read cells in the order of the file, each once; and where the given ones stand among them."""
        cells, position = rows.cpu().unique(return_inverse=True)
        if torch.isin(cells, self._kept, assume_unique=True).all():
            return self._kept_counts, torch.searchsorted(self._kept, cells)[position]
        block = self._block(cells)
        step = block.diff()
        starts = torch.nonzero((step > 1) | ((step == 1) & (block[1:] % self._n_together == 0)))[:, 0] + 1
        parts = []
        for part in cells.tensor_split(starts):
            start, stop = int(part[0]), int(part[-1]) + 1
            counts = self._counts(start, stop)
            parts.append(counts if len(part) == stop - start else counts[(part - start).numpy()])
        return CSR.of(sparse.vstack(parts, format="csr")), position


def _is_in_order(parts: Sequence[Tensor]) -> bool:
    """Whether these are all cells in the order of the file, by their first ones and by the last."""
    return torch.equal(parts[0], torch.arange(len(parts[0]))) and int(parts[-1][-1]) + 1 == sum(map(len, parts))


def ahead(function: Callable[[T], R], arguments: Iterable[T]) -> Iterator[R]:
    """Call a function on one argument after the other in a thread, one call ahead of what is asked for."""
    with ThreadPoolExecutor(1, initializer=_without_threads_of_its_own) as thread:
        coming = None
        for argument in arguments:
            current, coming = coming, thread.submit(function, argument)
            if current is not None:
                yield current.result()
        if coming is not None:
            yield coming.result()


def _without_threads_of_its_own() -> None:
    """Let this thread compute alone.

    More threads than processors make OpenMP put them to sleep between any two operations, those of training as well.
    """
    torch.get_num_threads()  # which PyTorch sets in each thread once
    threadpool_limits(1, user_api="openmp")


def _reader(matrix: Any) -> tuple[Callable[[int, int], sparse.csr_array], list[int]]:
    """How to read neighbouring cells of a matrix, and where blocks of them start and end."""
    if isinstance(matrix, CSRDataset):
        return _reader_of_group(matrix)
    if not _lazy.is_dask(matrix):
        return lambda start, stop: sparse.csr_array(matrix[start:stop]), _bounds(matrix.shape[0], BLOCK)
    bounds = [0, *np.cumsum(matrix.chunks[0]).tolist()]
    chunks = matrix.rechunk({1: -1}).to_delayed().ravel()

    def read(start: int, stop: int) -> sparse.csr_array:
        i = int(np.searchsorted(bounds, start, side="right")) - 1
        chunk = chunks[i].compute(scheduler="sync")
        return sparse.csr_array(chunk[start - bounds[i] : stop - bounds[i]])

    return read, bounds


def _bounds(n_cells: int, block: int) -> list[int]:
    return [*range(0, n_cells, block), n_cells]


def _reader_of_group(matrix: CSRDataset) -> tuple[Callable[[int, int], sparse.csr_array], list[int]]:
    """How to read neighbouring cells of a sparse matrix, of which slices take twice as long, to look up versions.

    For each block, all chunks of the store that have a part of it are decompressed: most of zarr are larger than BLOCK.
    """
    indptr, indices, values = matrix.group["indptr"][:], matrix.group["indices"], matrix.group["data"]
    n_cells, n_genes = matrix.shape
    cells_of_chunk = (values.chunks or [0])[0] * n_cells // max(1, values.shape[0])

    def read(start: int, stop: int) -> sparse.csr_array:
        first, last = indptr[start], indptr[stop]
        parts = (values[first:last], indices[first:last], indptr[start : stop + 1] - first)
        return sparse.csr_array(parts, shape=(stop - start, n_genes))

    return read, _bounds(n_cells, max(BLOCK, cells_of_chunk // 4))


def _refuse_columns(matrix: Any, where: str) -> None:
    """Refuse what is stored gene by gene."""
    by_gene = isinstance(matrix, CSCDataset) or getattr(getattr(matrix, "_meta", None), "format", "csr") == "csc"
    if by_gene:
        name = where.replace("adata", "a")
        msg = (
            f"{where} is stored gene by gene (CSC), so that no cell can be read without reading all; convert the file "
            f"once: a = ad.read_h5ad(path); {name} = {name}.tocsr(); a.write_h5ad('by_cell.h5ad')."
        )
        raise ValueError(msg)
