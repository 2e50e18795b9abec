"""Genes that were not measured: what the model expects of them takes the place of their counts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from scanpy_scvipyro import posterior
from scanpy_scvipyro.csr import CSR

if TYPE_CHECKING:
    from torch import Tensor

    from scanpy_scvipyro.data import CellData, DataSpec
    from scanpy_scvipyro.model import SCVI

# Each is a decoding and encoding again, from codes of zeros for missing genes. The second brings codes of 50 % of the
# genes nearer to those of all; a third changes nothing any more (docs/recipe.md).
_N_ROUNDS = 2


@torch.no_grad()
def completed(module: SCVI, data: CellData, measured: Tensor, known: DataSpec) -> CellData:
    """Cells with expected counts of the genes that were not measured, and library sizes of all genes of the model.

    ``data`` has the measured genes alone. New batches are encoded as the first known one, and what is expected in them
    is the average over all known ones.
    """
    assert isinstance(data.counts, CSR)
    n_genes, missing = len(measured), torch.nonzero(~measured)[:, 0]
    indices = torch.nonzero(measured)[:, 0][data.counts.indices.long()]
    wide = replace(data, counts=replace(data.counts, indices=indices, n_genes=n_genes))
    n_categories = torch.tensor(known.n_categories, dtype=torch.int64)
    asked = replace(
        wide,
        batch=torch.where(wide.batch < known.n_batches, wide.batch, 0),
        categorical=torch.where(wide.categorical < n_categories, wide.categorical, 0),
    )
    parts = []
    for rows, cells in asked.chunks():
        assert cells.counts is not None
        observed = cells.counts.to_dense()
        filled = observed
        for _ in range(_N_ROUNDS):
            z = posterior.latent_posterior(module, cells._replace(counts=filled)).mean
            rate = posterior.expected(module, cells, z, 1.0)
            if (is_new := data.batch[rows, None] >= known.n_batches).any():
                rate = torch.where(is_new, posterior.expected(module, cells, z, 1.0, range(known.n_batches)), rate)
            # Depth of the measured genes on the scale of all.
            depth = observed.sum(dim=1, keepdim=True) / rate[:, measured].sum(dim=1, keepdim=True)
            filled = torch.where(measured, observed, depth * rate)
        parts.append(filled[:, missing])
    return _with_columns(wide, missing, torch.cat(parts), has_size_factor=not module.decoder.normalize)


def _with_columns(data: CellData, columns: Tensor, values: Tensor, *, has_size_factor: bool) -> CellData:
    """Add positive values of genes that have none, to each cell."""
    counts, n_columns = data.counts, len(columns)
    assert isinstance(counts, CSR)
    row = torch.cat(
        [torch.repeat_interleave(torch.diff(counts.indptr)), torch.arange(data.n_cells).repeat_interleave(n_columns)]
    )
    index = torch.cat([counts.indices.long(), columns.repeat(data.n_cells)])
    order = (row * data.n_genes + index).argsort()
    depth = data.depth + values.sum(dim=1, keepdim=True)
    completed = CSR(
        counts.indptr + torch.arange(data.n_cells + 1) * n_columns,
        index[order],
        torch.cat([counts.values, values.reshape(-1)])[order],
        data.n_genes,
    )
    return replace(
        data,
        counts=completed,
        depth=depth,
        library_size=data.library_size if has_size_factor else depth,
    )
