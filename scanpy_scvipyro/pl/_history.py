from __future__ import annotations

from typing import TYPE_CHECKING

from scanpy_scvipyro import _stored
from scanpy_scvipyro._public import public
from scanpy_scvipyro.pl import _figure

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = {
    "elbo": "ELBO (nats per cell)",
    "reconstruction": "reconstruction (nats per cell)",
    "kl": "KL divergence (nats per cell)",
    "kl_weight": "weight of the KL divergence",
    "learning_rate": "learning rate",
}
_SHOWN = ("elbo", "kl", "learning_rate")


@public
def history(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    metrics: Iterable[str] | str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot how training went, epoch by epoch.

    The evidence lower bound (ELBO) of training cells and of held-out validation cells should rise and level off. If
    that of the validation cells falls while the other still rises, the model overfits. The axis leaves out the first
    epochs where they would flatten the rest.

    Parameters
    ----------
    adata
        AnnData with a trained model.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    metrics
        What to plot, one panel each: ``"elbo"``, its parts ``"reconstruction"`` and ``"kl"``, ``"kl_weight"``,
        ``"learning_rate"``. By default ELBO, KL divergence and learning rate, as far as they were recorded.
    ax
        Axes to draw on, with one of ``metrics``.
    show
        Whether to show the figure, by default ``sc.settings.autoshow``.
    save
        ``True`` saves the figure in ``sc.settings.figdir``; a string is added to the file name, and its ending
        (``".svg"``, ``".pdf"``, ``".png"``) is the format.
    return_fig
        Whether to return the figure.

    Returns
    -------
    The axes (one, or a list) if ``show=False``, the figure with ``return_fig=True``, else ``None``.

    Raises
    ------
    KeyError
        If there is no such model.
    ValueError
        If a metric was not recorded, or ``ax`` is passed for several.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> ax = scvip.pl.history(adata, metrics="elbo", show=False)
    >>> [line.get_label() for line in ax.lines]
    ['training', 'validation']
    """
    recorded = _stored.trained(adata, key)["history"]
    known = recorded_metrics(recorded)
    asked = [name for name in _SHOWN if name in known] or known if metrics is None else metrics
    names = _figure.choices(asked, known, "metrics")
    axes = _figure.panels(len(names), ax)
    for panel, name in zip(axes, names, strict=True):
        draw(panel, recorded, name)
    return _figure.finish("history", axes, show=show, save=save, return_fig=return_fig)


def recorded_metrics(recorded: pd.DataFrame) -> list[str]:
    """Return the metrics that there are."""
    return [name for name in _LABELS if _columns(recorded, name)]


def _columns(recorded: pd.DataFrame, name: str) -> dict[str, str]:
    """Columns of a metric, and what to call their lines."""
    columns = {f"train_{name}": "training", f"validation_{name}": "validation", name: name}
    return {column: label for column, label in columns.items() if column in recorded}


def draw(ax: Axes, recorded: pd.DataFrame, name: str) -> None:
    """Draw the lines of one metric."""
    from matplotlib.ticker import MaxNLocator

    columns = _columns(recorded, name)
    for column, label in columns.items():
        is_validation = label == "validation"
        # Epochs without validation, as scvi-tools has them, leave no gaps.
        values = recorded[column].dropna()
        ax.plot(
            values.index,
            values,
            label=label,
            color=_figure.MODEL if is_validation else _figure.DATA,
            marker="o" if len(values) == 1 else None,
        )
    ax.set(xlabel="epoch", title=_LABELS[name])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(columns) > 1:
        ax.legend(frameon=False)
    if name in {"elbo", "reconstruction"} and len(recorded) > 10:
        _cut_first_epochs(ax, recorded[list(columns)])


def _cut_first_epochs(ax: Axes, curves: pd.DataFrame) -> None:
    """Begin the axis at the lowest value after a tenth of the epochs."""
    low, high = curves.iloc[len(curves) // 10 :].min().min(), curves.max().max()
    margin = 0.05 * (high - low)
    if margin > 0:
        ax.set_ylim(low - margin, high + margin)
