"""``pl.rank_genes``: a volcano of the ranked genes."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.text import Text

import scanpy_scvipyro as scvip

pytestmark = pytest.mark.usefixtures("no_windows")


@pytest.fixture(scope="module")
def _ranked(_trained):
    return scvip.tl.rank_genes_groups(_trained, "cell_type", n_samples=200, progress_bar=False, copy=True)


@pytest.fixture
def ranked(_ranked):
    """The cell mixtures with ranked genes of each cell line."""
    return _ranked.copy()


def table(adata, group, key="rank_genes_groups_scvi_pyro"):
    fields = ("names", "scores", "logfoldchanges", "pvals_adj", "proba_de", "bayes_factor")
    return pd.DataFrame({field: adata.uns[key][field][group] for field in fields}).set_index("names")


def points(collection):
    return np.asarray(sorted(map(tuple, collection.get_offsets())))


@pytest.mark.parametrize("y", ["bayes_factor", "proba_de"])
def test_points_are_fold_changes_and_how_sure_they_are(ranked, y):
    genes = table(ranked, "H2228")
    ax = scvip.pl.rank_genes(ranked, groups="H2228", y=y, show=False)
    others, found = ax.collections
    is_found = genes["pvals_adj"] < 0.05
    for drawn, selected in ((others, ~is_found), (found, is_found)):
        np.testing.assert_allclose(
            points(drawn), sorted(map(tuple, genes.loc[selected, ["logfoldchanges", y]].to_numpy()))
        )
    assert len(others.get_offsets()) + len(found.get_offsets()) == ranked.n_vars


def test_top_genes_up_and_down_are_named_at_their_points(ranked):
    genes = table(ranked, "H1975")
    ax = scvip.pl.rank_genes(ranked, groups=["H1975"], n_genes=6, show=False)
    named = {text.get_text(): text.xy for text in ax.texts}
    by_score = genes.index[genes["scores"].argsort()[::-1]]
    assert set(named) == {*by_score[:3], *by_score[-3:]}
    for name, place in named.items():
        np.testing.assert_allclose(place, genes.loc[name, ["logfoldchanges", "bayes_factor"]].astype(float))


def test_names_do_not_overlap(ranked):
    for ax in scvip.pl.rank_genes(ranked, n_genes=16, show=False):
        ax.figure.canvas.draw()
        boxes = [Text.get_window_extent(text) for text in ax.texts]  # without the lines to their points
        assert len(boxes) > 10
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_genes_that_are_not_found_are_not_named(ranked):
    ranked.uns["rank_genes_groups_scvi_pyro"]["pvals_adj"]["H1975"][:] = 0.5
    assert not scvip.pl.rank_genes(ranked, groups="H1975", show=False).texts


def test_every_group_has_a_panel_that_names_the_reference(ranked):
    titles = [ax.get_title() for ax in scvip.pl.rank_genes(ranked, show=False)]
    assert titles == ["H1975 against all others", "H2228 against all others", "HCC827 against all others"]
    scvip.tl.rank_genes_groups(ranked, "cell_type", reference="H2228", n_samples=50, key_added="pairs")
    axes = scvip.pl.rank_genes(ranked, key="pairs", show=False)
    assert [ax.get_title() for ax in axes] == ["H1975 against H2228", "HCC827 against H2228"]


def test_results_of_scanpy_are_not_taken_for_ours(trained_small):
    sc.pp.log1p(trained_small)
    sc.tl.rank_genes_groups(trained_small, "cell_type", method="t-test")
    with pytest.raises(KeyError, match=r"key='rank_genes_groups' has no ranked genes.*call tl.rank_genes_groups"):
        scvip.pl.rank_genes(trained_small, key="rank_genes_groups", show=False)


def test_other_axes_are_refused(ranked):
    with pytest.raises(ValueError, match=r"y='pvals' is not a choice.*'proba_de'"):
        scvip.pl.rank_genes(ranked, y="pvals", show=False)
