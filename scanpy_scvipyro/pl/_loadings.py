from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scanpy_scvipyro import _stored, _validate
from scanpy_scvipyro._public import public
from scanpy_scvipyro.pl import _figure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@public
def loadings(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    dimensions: Iterable[str] | str | None = None,
    n_genes: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | bool | None = None,
    return_fig: bool = False,
) -> Axes | list[Axes] | Figure | None:
    """Plot the genes that each latent dimension of a linear decoder raises and lowers most :cite:p:`Svensson2020`.

    Parameters
    ----------
    adata
        AnnData with a model that was trained with ``decoder="linear"``, here or elsewhere; its cells are not used.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    dimensions
        Latent dimensions to plot, one panel each: ``"Z_0"``, ``"Z_1"``, ...; by default all.
    n_genes
        Genes per panel, half of them with the highest and half with the lowest loadings.
    ax
        Axes to draw on, with one dimension.
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
        If the decoder of the model is not linear, or a dimension is unknown.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, decoder="linear", n_latent=3, max_epochs=2, impute=False, progress_bar=False)
    >>> axes = scvip.pl.loadings(adata, show=False)
    >>> [ax.get_title() for ax in axes]
    ['Z_0', 'Z_1', 'Z_2']
    """
    stored = _stored.trained(adata, key)
    decoder = stored["model_options"]["decoder"]
    if decoder != "linear":
        raise ValueError(
            f"key={key!r} is a model with decoder={str(decoder)!r}, which has no loadings of genes; "
            "train one with tl.scvi_pyro(adata, decoder='linear')."
        )
    _validate.check_arguments({"n_genes": n_genes})
    # Those of the model itself, since a subset of the genes, or another reader of its file, has no adata.varm of them.
    weights = np.asarray(stored["weights"]["decoder.rate.weight"])[:, : int(stored["model_options"]["n_latent"])]
    table = pd.DataFrame(weights, index=stored["genes"], columns=[f"Z_{i}" for i in range(weights.shape[1])])
    names = _figure.choices(dimensions, table.columns.tolist(), "dimensions")
    axes = _figure.panels(len(names), ax, n_columns=5, width=2.8, height=0.6 + 0.24 * n_genes)
    for panel, name in zip(axes, names, strict=True):
        _draw(panel, table[name], n_genes)
        panel.set_title(name)
    return _figure.finish("loadings", axes, show=show, save=save, return_fig=return_fig)


def _draw(ax: Axes, column: pd.Series, n_genes: int) -> None:
    """Draw bars from the highest to the lowest loading."""
    ordered = column.sort_values(ascending=False, kind="stable")
    if len(ordered) > n_genes:
        half = -(-n_genes // 2)
        ordered = ordered.iloc[[*range(half), *range(len(ordered) - (n_genes - half), len(ordered))]]
    places = range(len(ordered))
    colors = [_figure.MODEL if value > 0 else _figure.DATA for value in ordered]
    ax.barh(places, ordered.to_numpy(), color=colors, height=0.75)
    ax.set_yticks(places, ordered.index, fontsize="small")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(xlabel="loading", ylim=(len(ordered) - 0.4, -0.6))
