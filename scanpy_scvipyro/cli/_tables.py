"""Results as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

_OF_SCANPY = {"names", "scores", "logfoldchanges", "pvals", "pvals_adj"}
_PLAIN = np.dtype(float)


def ranked(adata: AnnData, key: str) -> pd.DataFrame:
    """Ranked genes of all groups, as Scanpy names them, with the probabilities beside them."""
    import scanpy as sc

    stored = adata.uns[key]
    further = [name for name in stored if name not in _OF_SCANPY and getattr(stored[name], "dtype", _PLAIN).names]
    tables = []
    for group in stored["names"].dtype.names:
        table = sc.get.rank_genes_groups_df(adata, group, key=key)
        table.insert(0, "group", group)
        tables.append(table.assign(**{name: stored[name][group] for name in further}))
    return pd.concat(tables, ignore_index=True)


def compared(adata: AnnData, key: str) -> pd.DataFrame:
    """Abundance of labels where they were compared, else of the neighbourhoods of cells."""
    stored = adata.uns[f"{key}_da"]
    if "labels" in stored:
        return stored["labels"].rename_axis("label").reset_index()
    columns = [stored["params"]["condition_key"], stored["params"]["sample_key"], f"{key}_da_lfc", f"{key}_da_fdr"]
    return adata.obs[columns].rename_axis("cell").reset_index()


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table in the format that the suffix names."""
    table.to_csv(path, sep="\t" if path.suffix == ".tsv" else ",", index=False)
