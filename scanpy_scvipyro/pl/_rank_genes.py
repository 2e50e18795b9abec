from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scanpy_scvipyro import _validate
from scanpy_scvipyro._public import public
from scanpy_scvipyro.pl import _figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from scanpy_scvipyro._names import Names

_LABELS = {"bayes_factor": "log Bayes factor", "proba_de": "probability of a change"}


@public
def rank_genes(
    adata: AnnData,
    *,
    groups: Names | None = None,
    key: str = "scvi_pyro",
    y: str = "bayes_factor",
    n_genes: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot differential expression as a volcano: how much each gene changes, and how sure that is.

    Genes with an expected false discovery rate below 5 % are coloured, and those with the highest scores up and down
    are named.

    Parameters
    ----------
    adata
        AnnData with results of :func:`scanpy_scvipyro.tl.rank_genes_groups`.
    groups
        Groups to plot, one panel each; by default all that were ranked.
    key
        Name of the model, or the ``key_added`` of :func:`scanpy_scvipyro.tl.rank_genes_groups`.
    y
        ``"bayes_factor"``, the natural logarithm of the odds that the gene changes, or ``"proba_de"``, that
        probability.
    n_genes
        Genes to name in each panel, half of them up and half down as far as there are.
    ax
        Axes to draw on, with one group.
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
        If there are no such results.
    ValueError
        If a group was not ranked, or ``y`` is another word.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> scvip.tl.rank_genes_groups(adata, "cell_type", n_samples=500, progress_bar=False)
    >>> ax = scvip.pl.rank_genes(adata, groups="H1975", show=False)
    >>> ax.get_ylabel()
    'log Bayes factor'
    """
    ranked = _ranked(adata, key)
    if y not in _LABELS:
        raise ValueError(f"y={y!r} is not a choice. {_validate.did_you_mean(y, _LABELS)}")
    _validate.check_arguments({"n_genes": n_genes})
    names = _figure.choices(groups, ranked["names"].dtype.names, "groups")
    axes = _figure.panels(len(names), ax)
    for panel, name in zip(axes, names, strict=True):
        fields = ("names", "scores", "logfoldchanges", "pvals_adj", y)
        _draw(panel, pd.DataFrame({field: ranked[field][name] for field in fields}), y, n_genes)
        panel.set_title(_title(name, ranked["params"]))
    return _figure.finish("rank_genes", axes, show=show, save=save, return_fig=return_fig)


def _title(name: str, params: dict[str, Any]) -> str:
    reference = "all others" if params["reference"] == "rest" else params["reference"]
    return f"{params['group']} against {reference} in {name}" if "within" in params else f"{name} against {reference}"


def _ranked(adata: AnnData, key: str) -> dict[str, Any]:
    """Results by the name of their model, or by their own."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata is a {type(adata).__name__}; pass the AnnData that holds the ranked genes.")
    found = [
        name
        for name, value in adata.uns.items()
        if isinstance(value, dict) and {"names", "proba_de", "bayes_factor"} <= set(value)
    ]
    for name in (f"rank_genes_groups_{key}", key):
        if name in found:
            return adata.uns[name]
    raise KeyError(
        f"key={key!r} has no ranked genes in adata.uns; call tl.rank_genes_groups(adata, groupby, key={key!r}) first. "
        f"{_validate.did_you_mean(f'rank_genes_groups_{key}', found)}"
    )


def _draw(ax: Axes, genes: pd.DataFrame, y: str, n_named: int) -> None:
    is_found = genes["pvals_adj"] < 0.05
    for selected, color, label in ((~is_found, _figure.FADED, None), (is_found, _figure.MODEL, "FDR < 5 %")):
        part = genes[selected]
        ax.scatter(part["logfoldchanges"], part[y], s=8, color=color, alpha=0.6, linewidths=0, label=label)
    ax.axvline(0, color=_figure.FADED, linewidth=0.8, zorder=0)
    ax.set(xlabel="log2 fold change", ylabel=_LABELS[y])
    ax.legend(frameon=False, fontsize="small", loc="lower right", markerscale=2)
    found = genes[is_found].sort_values("scores", ascending=False)
    half = -(-n_named // 2)
    up, down = found[found["scores"] > 0].head(half), found[found["scores"] < 0].tail(n_named - half)[::-1]
    _name(ax, up, y, side=1)
    _name(ax, down, y, side=-1)


def _name(ax: Axes, genes: pd.DataFrame, y: str, *, side: int) -> None:
    """Write names in a column beside the points, from the highest down, with lines to their genes."""
    if genes.empty:
        return
    order = np.lexsort((-genes["logfoldchanges"].abs(), -genes[y]))  # so that few lines cross
    genes = genes.iloc[order]
    for i, (_, gene) in enumerate(genes.iterrows()):
        ax.annotate(
            gene["names"],
            (gene["logfoldchanges"], gene[y]),
            xytext=(0.98 if side > 0 else 0.02, 0.96 - 0.062 * i),
            textcoords="axes fraction",
            ha="right" if side > 0 else "left",
            va="center",
            fontsize="x-small",
            arrowprops={"arrowstyle": "-", "color": _figure.DATA, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 1},
        )
    # Room for the names on the outside of the points.
    left, right = ax.get_xlim()
    room = 0.4 * (right - left)
    ax.set_xlim(left - room * (side < 0), right + room * (side > 0))
