"""Ranked genes in the structure of Scanpy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.differential import Differences

    Positions = NDArray[np.intp]


def fields(results: dict[str, Differences], genes: NDArray[np.str_], n_genes: int | None) -> dict[str, Any]:
    """Record arrays with one field per group, as Scanpy writes them."""
    from scanpy_scvipyro import differential

    tables = {
        name: pd.DataFrame(
            {
                "names": genes,
                "scores": result.score,
                "logfoldchanges": result.log_fold_change,
                "pvals": 1 - result.proba_de if result.p_value is None else result.p_value,
                "pvals_adj": differential.expected_false_discovery_rate(result.proba_de)
                if result.adjusted is None
                else result.adjusted,
                "bayes_factor": result.bayes_factor,
                "proba_de": result.proba_de,
            }
        )
        .sort_values(["scores", "logfoldchanges"], ascending=False)
        .head(n_genes or len(genes))
        for name, result in results.items()
    }
    dtypes = {"names": "O", "scores": "float32", "logfoldchanges": "float32", "bayes_factor": "float32"}
    names = next(iter(tables.values())).columns.astype(str)
    return {
        field: pd.DataFrame({name: table[field].to_numpy() for name, table in tables.items()}).to_records(
            index=False, column_dtypes=dtypes.get(field, "float64")
        )
        for field in names
    }


def shares(
    cell_data: CellData,
    parts: list[tuple[dict[str, Positions], Positions]],
    genes: NDArray[np.str_],
    *,
    with_others: bool,
) -> dict[str, pd.DataFrame]:
    """Share of the cells of each group that have counts of a gene, (n_genes, n_groups), and of all others of its part.

    A part is groups and the rest of the cells that they are compared with.
    """
    import torch

    from scanpy_scvipyro import csr

    code = np.zeros(cell_data.n_cells, dtype=np.int64)  # 0 is in no group
    starts = np.cumsum([1] + [len(groups) + 1 for groups, _ in parts])
    for start, (groups, rest) in zip(starts, parts, strict=False):
        for i, cells in enumerate([rest, *groups.values()], start=start):
            code[cells] = i
    detected = csr.totals(cell_data.counts.blocks(), torch.from_numpy(code), cell_data.n_genes).n_detected.numpy()
    n_cells = np.bincount(code, minlength=starts[-1])[:, None]
    detected = np.concatenate([detected, np.zeros((starts[-1] - len(detected), cell_data.n_genes))])
    tables: dict[str, list[pd.DataFrame]] = {"pts": [], "pts_rest": []} if with_others else {"pts": []}
    for start, stop, (groups, _) in zip(starts, starts[1:], parts, strict=False):
        ours, n_ours = detected[start + 1 : stop], n_cells[start + 1 : stop]
        found = {"pts": ours / n_ours}
        if with_others:
            theirs, n_theirs = detected[start:stop].sum(axis=0) - ours, n_cells[start:stop].sum() - n_ours
            found["pts_rest"] = theirs / n_theirs
        for name, table in found.items():
            tables[name].append(pd.DataFrame(table.T, index=genes, columns=list(groups)))
    return {name: pd.concat(frames, axis=1) for name, frames in tables.items()}
