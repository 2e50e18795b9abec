"""UMAPs of embeddings."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from numpy.typing import NDArray


def of(embedding: NDArray[np.float32], random_state: int) -> NDArray[np.float32]:
    """Places of cells, (n_cells, 2), by Scanpy's neighbours and UMAP of an embedding."""
    import scanpy as sc
    from anndata import AnnData

    obs = pd.DataFrame(index=pd.RangeIndex(len(embedding)).astype(str))
    cells = AnnData(obs=obs, obsm={"embedding": embedding})
    sc.pp.neighbors(cells, use_rep="embedding", random_state=random_state)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_jobs value 1 overridden", UserWarning)  # umap's, on being reproducible
        sc.tl.umap(cells, random_state=random_state)
    return np.asarray(cells.obsm["X_umap"])
