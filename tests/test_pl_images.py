"""Pictures beside stored ones: shapes, places and colours. Text is left out, since it depends on fonts."""

from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images

from scanpy_scvipyro import checks
from scanpy_scvipyro import pl as plots
from scanpy_scvipyro.pl import _abundance, _integration, _labels, _posterior_predictive

BASELINES = Path(__file__).parent / "baseline_images"
pytestmark = pytest.mark.usefixtures("no_windows")


@pytest.fixture
def canvas():
    """Axes of a small figure in matplotlib's own style."""
    with mpl.style.context("default"):
        yield Figure(figsize=(3, 2.4), dpi=60).subplots()


def assert_looks_as_before(ax, name, tmp_path):
    for text in ax.texts:
        text.remove()
    if ax.get_legend() is not None:
        ax.get_legend().remove()
    ax.set(xlabel="", ylabel="", title="")
    ax.tick_params(which="both", labelbottom=False, labelleft=False)
    actual = tmp_path / f"{name}.png"
    ax.figure.savefig(actual)
    baseline = BASELINES / actual.name
    assert baseline.exists(), f"look at {actual}, and if it is as it should be, copy it to {baseline}"
    # Root mean square of 255 levels; lines of another colour or place give 5 and more.
    assert compare_images(baseline, actual, tol=2) is None


@pytest.fixture
def numbers():
    """AnnData without counts, whose stored results are made by hand."""
    rng = np.random.default_rng(0)
    names = [f"gene{i}" for i in range(60)]
    change = rng.normal(0, 2, 60)
    odds = 8 * np.abs(change) - 8 + rng.normal(0, 1, 60)
    values = {
        "names": np.array(names, dtype=object),
        "scores": 3 * change,
        "logfoldchanges": change,
        "pvals_adj": np.where(odds > 3, 0.01, 0.5),
        "proba_de": 1 / (1 + np.exp(-odds)),
        "bayes_factor": odds,
    }
    ranked = {name: pd.DataFrame({"a": value}).to_records(index=False) for name, value in values.items()}
    epochs = np.arange(1, 41)
    history = {"train_elbo": -500 - 300 * np.exp(-epochs / 6), "validation_elbo": -520 - 300 * np.exp(-epochs / 5)}
    adata = ad.AnnData(var=pd.DataFrame(index=names), obs=pd.DataFrame(index=["cell"]))
    weights = {"decoder.rate.weight": rng.normal(size=(60, 1))}
    adata.uns["scvi_pyro"] = {
        **{"params": {}, "genes": names, "module": "SCVI", "weights": weights},
        "model_options": {"decoder": "linear", "n_latent": 1},
        "history": pd.DataFrame(history, index=epochs),
    }
    adata.uns["rank_genes_groups_scvi_pyro"] = ranked | {"params": {"reference": "rest"}}
    return adata


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("history", {"metrics": "elbo"}),
        ("loadings", {"dimensions": "Z_0"}),
        ("rank_genes", {"groups": "a"}),
    ],
)
def test_plots_of_stored_results(numbers, canvas, tmp_path, name, arguments):
    getattr(plots, name)(numbers, **arguments, ax=canvas, show=False)
    assert_looks_as_before(canvas, name, tmp_path)


@pytest.mark.parametrize("statistic", ["mean_variance", "zeros", "library_size"])
def test_plots_of_counts_and_their_simulation(canvas, tmp_path, statistic):
    rng = np.random.default_rng(0)
    mean = np.geomspace(0.01, 100, 80)
    real, simulated = (
        checks.CountStatistics(mean, mean * noise + mean**2 * noise, np.exp(-mean) ** noise, rng.lognormal(8, 0.4, 500))
        for noise in rng.lognormal(0, 0.2, (2, 80))
    )
    _posterior_predictive.draw(canvas, _posterior_predictive.Simulation(real, simulated), statistic)
    assert_looks_as_before(canvas, statistic, tmp_path)


@pytest.mark.parametrize("panel", ["reliability", "confusion"])
def test_agreement_of_labels(canvas, tmp_path, panel):
    probability = np.linspace(0.35, 0.98, 15)
    reliability = np.column_stack([np.arange(15) ** 2, probability, probability**1.5])
    agreement = _labels.Agreement(reliability, np.array([[40, 10, 0], [0, 30, 0], [5, 5, 90]]), list("abc"), "cells")
    getattr(_labels, f"draw_{panel}")(canvas, agreement)
    assert_looks_as_before(canvas, f"labels_{panel}", tmp_path)


def test_novelty_on_a_umap(canvas, tmp_path):
    places = np.random.default_rng(0).normal(size=(90, 2)) + 6 * np.repeat(np.eye(3), 30, axis=0)[:, :2]
    _labels.draw_novelty(canvas, places, np.repeat([0.1, 0.9, 0.999], 30))
    assert_looks_as_before(canvas, "labels_novelty", tmp_path)


def test_umap_in_colours_of_the_data(canvas, tmp_path):
    places = np.random.default_rng(0).normal(size=(90, 2)) + 6 * np.repeat(np.eye(3), 30, axis=0)[:, :2]
    cells = ad.AnnData(obs=pd.DataFrame({"type": pd.Categorical(list("abc") * 30)}, index=map(str, range(90))))
    cells.obsm["after_umap"] = places
    cells.uns["type_colors"] = ["#112233", "#e07020", "#30a0d0"]
    _integration.draw(canvas, cells, "after", "type")
    assert_looks_as_before(canvas, "umap", tmp_path)


@pytest.mark.parametrize("panel", ["umap", "by_label"])
def test_abundance(canvas, tmp_path, panel):
    rng = np.random.default_rng(0)
    places = rng.normal(size=(90, 2)) + 6 * np.repeat(np.eye(3), 30, axis=0)[:, :2]
    change = rng.normal(0, 0.4, 90) + np.repeat([2, 0, -1], 30)
    cells = _abundance.Cells(change, np.abs(change) > 0.8, "case over control")
    if panel == "umap":
        _abundance.draw_umap(canvas, places, cells)
    else:
        _abundance.draw_by_label(canvas, cells, pd.Categorical(np.repeat(list("abc"), 30)))
    assert_looks_as_before(canvas, f"abundance_{panel}", tmp_path)
