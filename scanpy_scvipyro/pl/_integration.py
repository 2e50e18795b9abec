from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from scanpy_scvipyro import _counts, _lazy, _names, _select, _stored, _validate
from scanpy_scvipyro._public import public
from scanpy_scvipyro.pl import _figure, _umap

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from scanpy_scvipyro.integration import Scores

BEFORE, AFTER, NOVELTY = "before", "after", "novelty"
MAX_IN_LEGEND = 40


@public
def integration(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    batch_key: str | None = None,
    labels_key: str | None = None,
    before: str | None = None,
    max_cells: int = 5000,
    random_state: int = 0,
    show: bool | None = None,
    save: str | bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot UMAPs before and after integration, coloured by batch and by label, with scores in the titles.

    The title of a batch is the share of the 20 nearest neighbours of a cell that are of its own batch, and what that
    would be if batches (where labels are given: the batches of each label) were mixed perfectly. The title of a label
    is the adjusted Rand index (ARI) of as many k-means clusters, and the mean silhouette width. Neighbours, clusters
    and silhouettes are those of the embedding itself, not of its UMAP. ``adata`` is not changed.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`; its codes are
        ``adata.obsm[f"X_{key}"]``.
    batch_key
        Column of ``adata.obs`` with the batches, by default the one the model was trained with.
    labels_key
        Column of ``adata.obs`` with labels such as cell types, by default the one the model was trained with, if any.
        Cells without a label are drawn, but not scored.
    before
        Key of the embedding in ``adata.obsm`` to compare with. By default the principal components of the log counts
        are computed, from the counts and genes of the model.
    max_cells
        Cells to embed, at least 20, drawn at random if there are more.
    random_state
        Seed of PCA, UMAP, k-means and the choice of cells.
    show
        Whether to show the figure, by default ``sc.settings.autoshow``.
    save
        ``True`` saves the figure in ``sc.settings.figdir``; a string is added to the file name, and its ending
        (``".svg"``, ``".pdf"``, ``".png"``) is the format.
    return_fig
        Whether to return the figure.

    Returns
    -------
    The list of axes if ``show=False``, the figure with ``return_fig=True``, else ``None``. Colours are those in
    ``adata.uns["<column>_colors"]``, if there are any.

    Raises
    ------
    KeyError
        If there is no such model, column or embedding.
    ValueError
        If there is neither batch nor label, or the counts do not fit the model.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> axes = scvip.pl.integration(adata, labels_key="cell_type", max_cells=300, show=False)
    >>> len(axes)
    4
    """
    _validate.check_adata(adata, min_cells=4, on_disk=True)  # fewer have no UMAP
    _validate.check_arguments({"max_cells": max_cells, "random_state": random_state})
    columns = columns_of(adata, key, batch_key, labels_key)
    if not columns.named:
        raise ValueError(
            "there is neither batch nor label to colour by; pass batch_key= or labels_key=, a column of adata.obs."
        )
    rows = _select.random_cells(adata.n_obs, max_cells, random_state)
    cells = embed(adata, key, rows, columns, before=before, random_state=random_state)
    scores = scores_of(cells, columns, random_state)
    axes = _figure.panels(2 * len(columns.named), None, n_columns=len(columns.named), width=5, height=4)
    names = {BEFORE: before or "PCA of log counts", AFTER: key}
    panels = [(embedding, column) for embedding in (BEFORE, AFTER) for column in columns.named]
    for ax, (embedding, column) in zip(axes, panels, strict=True):
        draw(ax, cells, embedding, column)
        ax.set_title(f"{names[embedding]}: {column}\n{score(columns, column, scores[embedding])}", fontsize="medium")
    return _figure.finish("integration", axes, show=show, save=save, return_fig=return_fig)


class Columns(NamedTuple):
    """Names of the columns of adata.obs with batches and labels, where there are any."""

    batch: str | None
    label: str | None

    @property
    def named(self) -> list[str]:
        return [column for column in self if column is not None]


def columns_of(adata: AnnData, key: str, batch_key: str | None, labels_key: str | None) -> Columns:
    """Take the columns that were passed, or else those that the model was trained with."""
    params = _stored.trained(adata, key)["params"]
    if labels_key is None and params.get("labels_key") in adata.obs:  # queries need not have them
        labels_key = params["labels_key"]
    columns = Columns(batch_key or params.get("batch_key"), labels_key)
    for argument, column in zip(("batch_key", "labels_key"), columns, strict=True):
        if column is not None:
            _validate.check_obs_key(adata, column, argument)
    if columns.batch is not None:
        _validate.obs_column(adata, columns.batch, "batch_key")  # without missing values
    return columns


def embed(
    adata: AnnData, key: str, rows: NDArray[np.intp], columns: Columns, *, before: str | None, random_state: int
) -> AnnData:
    """Take the given cells in both embeddings, with their UMAPs, columns and colours, as an AnnData of their own.

    Their order is random, so that no batch is drawn over the others.
    """
    from anndata import AnnData

    rows = np.random.default_rng(random_state).permutation(rows)
    latent = f"X_{key}"
    for name, what in ((latent, f"key={key!r}: {latent!r}"), (before, f"before={before!r}")):
        if name is not None and name not in adata.obsm:
            raise KeyError(f"{what} is not in adata.obsm. {_validate.did_you_mean(name, adata.obsm)}")
    embeddings = {
        BEFORE: log_pca(adata, key, rows, random_state) if before is None else np.asarray(adata.obsm[before])[rows],
        AFTER: np.asarray(adata.obsm[latent])[rows],
    }
    obs = pd.DataFrame({column: categories(adata, column)[rows] for column in columns.named})
    if f"{key}_novelty" in adata.obs:
        obs[NOVELTY] = _lazy.column(adata.obs, f"{key}_novelty").to_numpy()[rows]
    obs.index = pd.RangeIndex(len(rows)).astype(str)
    cells = AnnData(obs=obs, obsm=embeddings)
    for column in columns.named:
        if f"{column}_colors" in adata.uns:
            cells.uns[f"{column}_colors"] = list(adata.uns[f"{column}_colors"])
    for name in (BEFORE, AFTER):
        cells.obsm[f"{name}_umap"] = _umap.of(cells.obsm[name], random_state)
    return cells


def categories(adata: AnnData, column: str) -> pd.Categorical:
    """All categories of a column, also those without cells, so that colours fit them."""
    return _names.categories(_lazy.column(adata.obs, column), f"the column {column!r} of adata.obs", only_used=False)


def log_pca(adata: AnnData, key: str, rows: NDArray[np.intp], random_state: int) -> NDArray[np.float32]:
    """Principal components of the log counts of the model's genes, for the given cells."""
    import scanpy as sc
    import torch
    from anndata import AnnData

    from scanpy_scvipyro import storage
    from scanpy_scvipyro.from_disk import OnDisk

    spec = storage.spec(adata, key)
    matrix, where = _counts.find(adata, spec.layer)
    if _lazy.is_matrix_on_disk(matrix):
        counts = OnDisk(matrix, where, spec.gene_positions(adata)).read(torch.from_numpy(rows)).to_scipy()
    else:
        counts = _counts.read_counts(adata, matrix, where, spec.gene_positions(adata))[rows]
    normalized = AnnData(sparse.csr_matrix(counts))
    sc.pp.normalize_total(normalized)
    sc.pp.log1p(normalized)
    if normalized.n_vars == 1:  # its own component
        return normalized.X.toarray()
    sc.pp.pca(normalized, random_state=random_state)
    return normalized.obsm["X_pca"]


def scores_of(cells: AnnData, columns: Columns, random_state: int) -> dict[str, Scores]:
    """Score both embeddings by batch and label, as far as there are any."""
    from scanpy_scvipyro import integration

    batches, labels = (None if column is None else cells.obs[column].cat.codes.to_numpy(np.int64) for column in columns)
    return {name: integration.scores(cells.obsm[name], batches, labels, random_state) for name in (BEFORE, AFTER)}


def score(columns: Columns, column: str | None, scores: Scores) -> str:
    """Say what an embedding scores by a column."""
    if column is None:
        return ""
    if column == columns.batch and scores.same_batch is not None and scores.mixed is not None:
        return f"same-batch neighbours {scores.same_batch.mean():.2f} (mixed: {scores.mixed.mean():.2f})"
    if column == columns.label and scores.labels is not None:
        return f"k-means ARI {scores.labels.ari:.2f}, silhouette {scores.labels.silhouette:.2f}"
    return ""


def draw(ax: Axes, cells: AnnData, embedding: str, column: str | None, *, with_legend: bool = True) -> None:
    """Draw a UMAP as ``sc.pl.umap`` does."""
    import scanpy as sc

    n_categories = 0 if column is None else len(cells.obs[column].cat.categories)
    sc.pl.embedding(
        cells,
        f"{embedding}_umap",
        color=column,
        title="",
        legend_loc="right margin" if with_legend and n_categories <= MAX_IN_LEGEND else None,
        legend_fontsize="small",
        size=min(60, 120_000 / cells.n_obs),  # Scanpy's, but for few cells
        frameon=False,
        ax=ax,
        show=False,
        save=False,
    )
