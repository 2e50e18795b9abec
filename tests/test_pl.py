"""What all plots share: Scanpy's manners of showing, saving and returning, and their errors."""

import anndata as ad
import matplotlib.pyplot as plt
import pytest
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scanpy_scvipyro as scvip

pytestmark = pytest.mark.usefixtures("no_windows")
PLOTS = {
    "history": {},
    "integration": {"labels_key": "cell_type"},
    "loadings": {},
    "posterior_predictive": {},
    "rank_genes": {},
}
ONE_PANEL = {
    "history": {"metrics": "elbo"},
    "loadings": {"dimensions": "Z_1"},
    "posterior_predictive": {"statistics": "zeros"},
    "rank_genes": {"groups": "H1975"},
}
every_plot = pytest.mark.parametrize("name", PLOTS)
plots_of_one_panel = pytest.mark.parametrize("name", ONE_PANEL)


@pytest.fixture(scope="session")
def _ready(_small, train_quickly):
    adata = train_quickly(_small, batch_key="batch", decoder="linear", copy=True)
    scvip.tl.rank_genes_groups(adata, "cell_type", n_samples=50, progress_bar=False)
    return adata


@pytest.fixture
def ready(_ready):
    """Small data with a model of a linear decoder and ranked genes: every plot works on it."""
    return _ready.copy()


@pytest.fixture
def figures(tmp_path):
    """Directory that Scanpy saves figures in."""
    before, sc.settings.figdir = sc.settings.figdir, tmp_path / "figures"
    yield tmp_path / "figures"
    sc.settings.figdir = before


@pytest.fixture
def autoshow():
    """Set whether Scanpy shows figures, until the test ends."""
    before = sc.settings.autoshow
    yield lambda value: setattr(sc.settings, "autoshow", value)
    sc.settings.autoshow = before


def draw(name, adata, **arguments):
    return getattr(scvip.pl, name)(adata, **{"show": False} | arguments)


@every_plot
def test_axes_are_returned_unless_shown(ready, name):
    axes = draw(name, ready, **PLOTS[name])
    assert len(axes) > 1
    assert all(isinstance(ax, Axes) for ax in axes)


@every_plot
def test_the_figure_is_returned_on_request(ready, name):
    figure = draw(name, ready, **PLOTS[name], return_fig=True)
    assert isinstance(figure, Figure)
    assert len(figure.axes) > 1


@every_plot
def test_shown_figures_are_not_returned(ready, name, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    assert draw(name, ready, **PLOTS[name], show=True) is None
    assert len(shown) == 1


def test_whether_to_show_is_by_default_a_setting_of_scanpy(ready, autoshow, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    autoshow(False)
    assert scvip.pl.history(ready) is not None
    autoshow(True)
    assert scvip.pl.history(ready) is None
    assert shown == [1]


@every_plot
def test_saving_writes_a_file_and_closes_the_figure(ready, name, figures):
    draw(name, ready, **PLOTS[name], save="_mine.png")
    assert [path.name for path in figures.iterdir()] == [f"{name}_mine.png"]
    assert (figures / f"{name}_mine.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("save", "file"), [(True, "history.pdf"), ("_a", "history_a.pdf"), ("_a.svg", "history_a.svg")]
)
def test_the_format_is_the_ending_or_a_setting_of_scanpy(ready, save, file, figures):
    scvip.pl.history(ready, save=save, show=False)
    assert [path.name for path in figures.iterdir()] == [file]


@plots_of_one_panel
def test_one_panel_is_drawn_on_the_given_axes(ready, name):
    figure, (left, right) = plt.subplots(1, 2)
    assert draw(name, ready, **ONE_PANEL[name], ax=right) is right
    assert right.has_data()
    assert not left.has_data()
    assert plt.get_fignums() == [figure.number]


@plots_of_one_panel
def test_several_panels_do_not_fit_on_one_axes(ready, name):
    with pytest.raises(ValueError, match="ax is one axes, and there are"):
        draw(name, ready, **PLOTS[name], ax=plt.figure().subplots())


@every_plot
def test_plots_leave_the_data_unchanged(ready, unchanged, name):
    before = ready.copy()
    draw(name, ready, **PLOTS[name])
    unchanged(ready, before)


@every_plot
def test_plots_work_on_data_from_a_file(ready, name, tmp_path):
    ready.write_h5ad(tmp_path / "ready.h5ad")
    assert draw(name, ad.read_h5ad(tmp_path / "ready.h5ad"), **PLOTS[name])


@every_plot
def test_a_missing_model_is_named(ready, name):
    with pytest.raises(KeyError, match=r"key='scvi_piro'.*Did you mean '(rank_genes_groups_)?scvi_pyro'"):
        draw(name, ready, key="scvi_piro")


@every_plot
def test_a_misspelt_argument_is_named(ready, name):
    with pytest.raises(TypeError, match=r"has no argument 'return_figure'. Did you mean 'return_fig'\?"):
        draw(name, ready, return_figure=True)


@pytest.mark.parametrize(
    ("name", "argument", "known"),
    [
        ("history", "metrics", "'learning_rate'"),
        ("loadings", "dimensions", "'Z_9'"),
        ("posterior_predictive", "statistics", "'library_size'"),
        ("rank_genes", "groups", "'H1975'"),
    ],
)
def test_unknown_panels_are_refused_and_the_known_listed(ready, name, argument, known):
    with pytest.raises(ValueError, match=f"{argument} has 'nonsense'.*{known}"):
        draw(name, ready, **{argument: ["nonsense"]})
    with pytest.raises(ValueError, match=f"{argument} is empty.*{known}"):
        draw(name, ready, **{argument: []})
