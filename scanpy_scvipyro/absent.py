"""Genes that a whole batch lacks, of which a model knows nothing there: of the Y chromosome in women, for example."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scanpy_scvipyro.checks import MIN_CELLS, Finding, named

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData


def absent_genes(data: CellData) -> NDArray[np.int64]:
    """Codes of batch and gene, (n_pairs, 2), where a batch has no count, and would have many if it were as the others.

    Many are twenty counts, in twenty cells: a rare type of cell that a batch happens to lack takes few genes with it.
    """
    totals = data.totals
    depth, n_cells = totals.counts.sum(dim=1), torch.bincount(data.batch).double()
    is_expected = torch.ones(totals.counts.shape, dtype=torch.bool)
    for found, size in ((totals.counts, depth), (totals.n_detected, n_cells)):
        of_batch = size[:, None]
        elsewhere = (found.sum(dim=0) - found) / (of_batch.sum() - of_batch)  # NaN for a single batch
        is_expected &= elsewhere * of_batch >= MIN_CELLS
    return torch.nonzero(is_expected & (totals.counts == 0)).numpy()


def entry(data: CellData) -> dict[str, Any]:
    """Entry of a stored model, if there are such genes."""
    pairs = absent_genes(data)
    return {"absent_genes": pairs} if len(pairs) else {}


def listed(stored: dict[str, Any], selected: NDArray[np.intp] | None = None) -> list[str]:
    """Genes of a stored model that batches lack, or those of a selection: each with its batches in brackets."""
    pairs = np.asarray(stored.get("absent_genes", np.empty((0, 2), dtype=int)))
    if not len(pairs):
        return []
    batches = [str(name) for name in stored["categories"][stored["params"]["batch_key"]]]
    lacking: dict[int, list[str]] = {}
    for batch, gene in pairs:
        if selected is None or gene in selected:
            lacking.setdefault(int(gene), []).append(batches[batch])
    return [f"{stored['genes'][gene]} ({named(names)})" for gene, names in sorted(lacking.items())]


def lacking(stored: dict[str, Any]) -> list[Finding]:
    """Warn of a stored model with genes that a batch lacks."""
    genes = listed(stored)
    if not genes:
        return []
    return [
        Finding(
            "A batch lacks a gene" if len(genes) == 1 else f"{len(genes)} genes are missing from a whole batch",
            f"Not one count, where the other batches would make one expect many: {named(genes)}.",
            "What transform_batch= gives of these genes was not measured: cells of such a batch get the expression of "
            "others, and in this batch others get none. Leave them out of what you compare between batches (genes of "
            "the Y chromosome and XIST where donors differ in sex, genes that an annotation lacks), or leave "
            "transform_batch= out.",
        )
    ]


def warning(stored: dict[str, Any], selected: NDArray[np.intp]) -> str | None:
    """Say in one line which of the selected genes, moved to other batches, are made up."""
    genes = listed(stored, selected)
    if not genes:
        return None
    return (
        f"{len(genes)} of {len(selected)} genes have no count in a whole batch: {named(genes)}. What transform_batch= "
        "gives of them is not measured there; leave them out of genes=, or transform_batch= out."
    )
