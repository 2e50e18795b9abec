"""How a report looks."""

from __future__ import annotations

import base64
import io
import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from scanpy_scvipyro.pl import _abundance, _history, _integration, _labels, _posterior_predictive
from scanpy_scvipyro.pl._integration import AFTER, BEFORE

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from matplotlib.axes import Axes

    from scanpy_scvipyro.pl._report_content import Content

_CURVES = {
    "elbo": "The evidence lower bound (ELBO) should rise and level off, for the validation cells too.",
    "kl": "The KL divergence says how much the latent codes carry.",
    "learning_rate": "The learning rate rises, then falls to zero.",
}
_CHECKS = {
    "mean_variance": "Variance of each gene over its mean: dots should lie in circles.",
    "zeros": "Share of cells without a count of each gene: points should lie on the line.",
    "library_size": "Counts per cell: the line should follow the grey.",
}
MAX_IN_LEGEND = 60


class Picture(NamedTuple):
    """A figure as a data URI, with the words under it and those that stand in for it."""

    source: str
    caption: str
    alt: str


class Legend(NamedTuple):
    """Names and colours of what UMAPs show."""

    title: str
    entries: list[tuple[str, str]]
    n_more: int


def render(content: Content) -> str:
    """Fill the template."""
    import jinja2
    import matplotlib as mpl

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("scanpy_scvipyro", "pl"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    with mpl.style.context("default"):
        pictures = {"curves": _curves(content), "umaps": _umaps(content), "checks": _predictive_checks(content)}
        pictures |= {"labels": _label_pictures(content), "abundance": _abundance_pictures(content)}
    return environment.get_template("report.html.jinja").render(
        content=content,
        pictures=pictures,
        batches=_batch_rows(content.batches),
        legends=[_legend(content, column) for column in content.columns.named],
        scores=_score_rows(content),
    )


def _picture(draw: Callable[[Axes], None], caption: str, alt: str, size: tuple[float, float] = (4.2, 3.2)) -> Picture:
    from matplotlib.figure import Figure  # not pyplot's, so that no window opens and no notebook shows it

    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, facecolor="white", metadata={"Software": None})
    return Picture(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", caption, alt)


def _curves(content: Content) -> list[Picture]:
    known = _history.recorded_metrics(content.history)
    return [
        _picture(partial(_history.draw, recorded=content.history, name=name), caption, f"Curve by epoch: {name}")
        for name, caption in _CURVES.items()
        if name in known
    ]


def _predictive_checks(content: Content) -> list[Picture]:
    return [
        _picture(
            partial(_posterior_predictive.draw, simulation=content.simulation, statistic=name),
            caption,
            f"Data beside simulation: {name.replace('_', ' ')}",
        )
        for name, caption in _CHECKS.items()
    ]


def _label_pictures(content: Content) -> list[Picture]:
    """Of a model that predicts labels."""
    agreement = content.agreement
    if agreement is None:
        return []
    umap, novelty = content.cells.obsm[f"{AFTER}_umap"], content.cells.obs[_integration.NOVELTY].to_numpy()
    of_cells = f"of {agreement.what}"
    return [
        _picture(
            partial(_labels.draw_reliability, agreement=agreement),
            f"Accuracy by probability, {of_cells}: dots should lie on the line.",
            "Reliability diagram of the predicted labels",
        ),
        _picture(
            partial(_labels.draw_confusion, agreement=agreement),
            f"Given and predicted labels, {of_cells}.",
            "Confusion matrix of given and predicted labels",
            (4.6, 4.2),
        ),
        _picture(
            partial(_labels.draw_novelty, umap=umap, novelty=novelty),
            "Novelty: dark cells are unlike all labelled ones.",
            "UMAP of the cells, coloured by novelty",
        ),
    ]


def _abundance_pictures(content: Content) -> list[Picture]:
    """Where conditions are compared."""
    cells, column = content.abundance, content.columns.label
    if cells is None:
        return []
    umap = content.cells.obsm[f"{AFTER}_umap"]
    n_up, n_down = (int((cells.is_found & (sign * cells.change > 0)).sum()) for sign in (1, -1))
    counted = f"Cells in neighbourhoods that are more frequent: {n_up:,}, less frequent: {n_down:,} (FDR < 5 %)."
    draw = partial(_abundance.draw_umap, umap=umap, cells=cells)
    pictures = [_picture(draw, counted, "UMAP of the cells, coloured by log2 ratio of abundance", (4.6, 3.8))]
    if column is not None:
        labels = content.cells.obs[column].array
        draw = partial(_abundance.draw_by_label, cells=cells, labels=labels)
        pictures.append(_picture(draw, f"Log2 ratio of each cell by {column}.", "Log2 ratio by label", (4.6, 3.8)))
    return pictures


def _umaps(content: Content) -> list[Picture]:
    names = {BEFORE: "PCA of log counts", AFTER: content.key}
    columns: list[str | None] = [*content.columns.named] or [None]
    pictures = []
    for column in columns:
        for embedding, name in names.items():
            score = _integration.score(content.columns, column, content.scores[embedding])
            by = f" by {column}" if column else ""
            pictures.append(
                _picture(
                    partial(
                        _integration.draw, cells=content.cells, embedding=embedding, column=column, with_legend=False
                    ),
                    f"{name}{by}" + (f": {score}" if score else ""),
                    f"UMAP of the cells, {name}, coloured{by}" if by else f"UMAP of the cells, {name}",
                    (4.2, 3.8),
                )
            )
    return pictures


def _legend(content: Content, column: str) -> Legend:
    from matplotlib.colors import to_hex

    names = content.cells.obs[column].cat.categories
    colors = [to_hex(color) for color in content.cells.uns[f"{column}_colors"]]
    entries = list(zip(names, colors, strict=False))
    return Legend(column, entries[:MAX_IN_LEGEND], max(0, len(entries) - MAX_IN_LEGEND))


def _score_rows(content: Content) -> list[list[str]]:
    """One row per score that there is: its name, before, after, and what is good."""
    before, after = content.scores[BEFORE], content.scores[AFTER]
    rows: list[tuple[str, float, float, str]] = []
    if before.same_batch is not None and after.same_batch is not None and after.mixed is not None:
        meaning = f"{after.mixed.mean():.2f} if mixed, 1 if apart"
        rows.append(("same-batch neighbours", before.same_batch.mean(), after.same_batch.mean(), meaning))
    if before.same_label is not None and after.same_label is not None:
        rows.append(("same-label neighbours", before.same_label.mean(), after.same_label.mean(), "best: 1"))
    if before.labels is not None and after.labels is not None:
        rows.append(("ARI of k-means and labels", before.labels.ari, after.labels.ari, "best: 1"))
        rows.append(("silhouette of labels", before.labels.silhouette, after.labels.silhouette, "best: 1"))
    return [[name, f"{was:.2f}", f"{now:.2f}", meaning] for name, was, now, meaning in rows]


def _batch_rows(batches: pd.DataFrame) -> list[list[str]]:
    formats = {"cells": "{:,.0f}", "counts per cell (median)": "{:,.0f}", "nats beyond expectation": "{:+.1%}"}
    columns = [
        ["-" if math.isnan(value) else formats.get(str(name), "{:.2f}").format(value) for value in batches[name]]
        for name in batches
    ]
    return [list(row) for row in zip(batches.index, *columns, strict=True)]
