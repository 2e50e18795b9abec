from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scanpy_scvipyro import _lazy, _names, _select, _stored, _validate
from scanpy_scvipyro._public import public
from scanpy_scvipyro.pl import _figure, _umap

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@public
def labels(
    adata: AnnData,
    *,
    key: str = "scanvi_pyro",
    labels_key: str | None = None,
    max_cells: int = 5000,
    random_state: int = 0,
    show: bool | None = None,
    save: str | bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot how far predicted labels can be trusted: reliability, confusion, and novelty on a UMAP.

    The reliability diagram has accuracy over probability: on the line, of cells labelled with probability 0.8 four
    fifths are labelled correctly. The confusion matrix has, for each given label, the shares of the predicted ones.
    ``adata`` is not changed.

    Parameters
    ----------
    adata
        AnnData with labels from :func:`scanpy_scvipyro.tl.scanvi_pyro` or :func:`scanpy_scvipyro.tl.map_query`.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scanvi_pyro`.
    labels_key
        Column of ``adata.obs`` with labels to compare with, such as those of the authors of a query. By default the
        labels that were kept from training, a tenth of those given: others would be matched too well.
    max_cells
        Cells to embed, at least 20, drawn at random if there are more.
    random_state
        Seed of UMAP and the choice of cells.
    show
        Whether to show the figure, by default ``sc.settings.autoshow``.
    save
        ``True`` saves the figure in ``sc.settings.figdir``; a string is added to the file name, and its ending
        (``".svg"``, ``".pdf"``, ``".png"``) is the format.
    return_fig
        Whether to return the figure.

    Returns
    -------
    The list of axes if ``show=False``, the figure with ``return_fig=True``, else ``None``.

    Raises
    ------
    KeyError
        If there is no such model, column or result.
    ValueError
        If the model predicts no labels, or no cell has a label that it knows.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scanvi_pyro(adata, labels_key="cell_type", batch_key="batch", max_epochs=2, progress_bar=False)
    >>> axes = scvip.pl.labels(adata, max_cells=300, show=False)
    >>> [ax.get_title().split(chr(10))[0] for ax in axes]
    ['Reliability', 'Given and predicted labels', 'Novelty']
    """
    _validate.check_adata(adata, min_cells=4, on_disk=True)  # fewer have no UMAP
    _validate.check_arguments({"max_cells": max_cells, "random_state": random_state})
    agreement = agreement_of(adata, key, labels_key)
    _check_predicted(adata, key)
    rows = _select.random_cells(adata.n_obs, max_cells, random_state)
    umap = _umap.of(np.asarray(adata.obsm[f"X_{key}"])[rows], random_state)
    novelty = _lazy.column(adata.obs, f"{key}_novelty").to_numpy()[rows]
    axes = _figure.panels(3, None, n_columns=3, width=5, height=4.4)
    draw_reliability(axes[0], agreement)
    draw_confusion(axes[1], agreement)
    draw_novelty(axes[2], umap, novelty)
    for ax, title in zip(axes, ("Reliability", "Given and predicted labels", "Novelty"), strict=True):
        ax.set_title(f"{title}\n{agreement.what}" if ax is not axes[2] else title, fontsize="medium")
    return _figure.finish("labels", axes, show=show, save=save, return_fig=return_fig)


class Agreement(NamedTuple):
    """Given labels beside predicted ones."""

    reliability: NDArray[np.float64]
    """(15, 3), cells, mean probability and accuracy by bins of the probability."""
    confusion: NDArray[np.int64]
    """(n_labels, n_labels), cells by given (rows) and predicted label."""
    names: list[str]
    what: str
    """Which cells these are."""


def agreement_of(adata: AnnData, key: str, labels_key: str | None) -> Agreement:
    """Compare with the labels of a column, or with those that were kept from training."""
    from scanpy_scvipyro.labels import confusion, reliability

    stored = _stored.trained(adata, key).get("labels")
    if stored is None:
        raise ValueError(f"key={key!r} is a model that predicts no labels; train one with tl.scanvi_pyro.")
    names = [str(name) for name in stored["names"]]
    if labels_key is None:
        counts = np.asarray(stored["held_out_confusion"])
        what = f"{counts.sum()} labelled cells kept from training"
        return Agreement(np.asarray(stored["held_out_reliability"]), counts, names, what)
    _validate.check_obs_key(adata, labels_key, "labels_key")
    if f"{key}_probabilities" not in adata.obsm:
        raise KeyError(
            f"adata.obsm has no {key + '_probabilities'!r}; call tl.map_query(adata, reference, key={key!r})."
        )
    column = _names.categories(_lazy.column(adata.obs, labels_key), f"labels_key={labels_key!r}")
    label = np.array([*_names.positions(column.categories, names), -1])[column.codes]
    is_known = label >= 0
    if not is_known.any():
        found = _validate.did_you_mean(names[0], column.categories)
        raise ValueError(f"labels_key={labels_key!r} has none of the labels that the model knows, {names}. {found}")
    probability = _lazy.frame(adata.obsm[f"{key}_probabilities"]).to_numpy()[is_known]
    counts = confusion(probability.argmax(axis=1), label[is_known], len(names))
    what = f"{is_known.sum()} cells with a label in {labels_key!r}"
    return Agreement(reliability(probability, label[is_known]), counts, names, what)


def draw_reliability(ax: Axes, agreement: Agreement) -> None:
    """Accuracy over probability; larger dots stand for more cells."""
    from scanpy_scvipyro.labels import calibration_error

    n_cells, probability, accuracy = agreement.reliability.T
    ax.plot([0, 1], [0, 1], color=_figure.FADED, linewidth=1)
    ax.set(xlabel="probability of the predicted label", ylabel="accuracy", xlim=(0, 1.03), ylim=(0, 1.03))
    if n_cells.sum():
        ax.scatter(probability, accuracy, s=10 + 190 * np.sqrt(n_cells / n_cells.sum()), color=_figure.MODEL, alpha=0.8)
        error = calibration_error(agreement.reliability)
        ax.text(0.97, 0.04, f"calibration error {error:.3f}", transform=ax.transAxes, ha="right")


def draw_confusion(ax: Axes, agreement: Agreement) -> None:
    """Shares of predicted labels by given one, with numbers where there are few labels."""
    counts, names = agreement.confusion, agreement.names
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(share, cmap="Greys", vmin=0, vmax=1)
    ax.figure.colorbar(image, ax=ax, label="share of the given label", shrink=0.8)
    ax.grid(visible=False)  # which Scanpy's style draws over the numbers
    shown = range(0, len(names), -(-len(names) // 40))
    ax.set_xticks(shown, [names[i] for i in shown], rotation=90, fontsize="x-small")
    ax.set_yticks(shown, [names[i] for i in shown], fontsize="x-small")
    ax.set(xlabel="predicted", ylabel="given")
    if len(names) <= 12:
        for i, j in np.argwhere(counts > 0):
            color = "white" if share[i, j] > 0.5 else "black"
            ax.text(j, i, f"{share[i, j]:.0%}", ha="center", va="center", fontsize="x-small", color=color)


def draw_novelty(ax: Axes, umap: NDArray[np.float32], novelty: NDArray[np.float32]) -> None:
    """UMAP by novelty, the most novel cells on top, on a scale of one in ten, in a hundred, in a thousand."""
    order = np.argsort(novelty)
    rarity = -np.log10(np.maximum(1 - novelty[order], 1e-3))
    size = min(60, 120_000 / len(novelty))
    dots = ax.scatter(umap[order, 0], umap[order, 1], c=rarity, s=size, cmap="magma_r", vmin=0, vmax=3, linewidths=0)
    bar = ax.figure.colorbar(dots, ax=ax, label="novelty", shrink=0.8)
    bar.set_ticks([0, 1, 2, 3], labels=["0", "0.9", "0.99", "0.999"])
    ax.set_axis_off()


def _check_predicted(adata: AnnData, key: str) -> None:
    for field, name in (("obsm", f"X_{key}"), ("obs", f"{key}_novelty")):
        if name not in getattr(adata, field):
            raise KeyError(f"adata.{field} has no {name!r}; call tl.map_query(adata, reference, key={key!r}).")
