"""``tl.rank_genes_groups`` with samples as the replicates."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scanpy_scvipyro as scvip
from scanpy_scvipyro.datasets import _donors

KEY = "rank_genes_groups_scvi_pyro"
CONDITIONS = {"groupby": "condition", "groups": ["case"], "reference": "control", "sample_key": "donor"}


def made(mixtures, n_changed, seed=0):
    pool = mixtures[mixtures.obs["batch"] == "10x_3cl"].copy()
    pool.obs["population"] = pool.obs["cell_type"]
    adata = _donors.make(pool, n_donors=(4, 4), n_cells=200, n_changed=n_changed, random_state=seed)
    scvip.tl.scvi_pyro(adata, batch_key="donor", max_epochs=5, impute=False, progress_bar=False)
    return adata


@pytest.fixture(scope="module")
def _changed(_mixtures):
    return made(_mixtures, n_changed=40)


@pytest.fixture
def changed(_changed):
    return _changed.copy()


def rank(adata, **arguments):
    scvip.tl.rank_genes_groups(adata, **{**CONDITIONS, "progress_bar": False} | arguments)


def table(adata, name):
    return sc.get.rank_genes_groups_df(adata, name, key=KEY).set_index("names").reindex(adata.var_names)


class TestConditions:
    def test_changes_are_found_in_each_cell_type(self, changed):
        rank(changed, within="cell_type")
        assert changed.uns[KEY]["names"].dtype.names == ("H1975", "H2228", "HCC827")
        for kind in changed.obs["cell_type"].cat.categories:
            found, true = table(changed, kind), changed.varm["log2_fold_change"][kind]
            called = found["pvals_adj"] < 0.05
            inside = changed[changed.obs["cell_type"] == kind]
            is_large = (true.abs() > 1) & (np.ravel(inside.X.sum(axis=0)) > 150)
            assert is_large.sum() >= 10
            assert called[is_large].mean() > 0.6
            assert called[true == 0].sum() <= 4
            assert np.corrcoef(found["logfoldchanges"][is_large], true[is_large])[0, 1] > 0.95

    def test_cells_as_replicates_call_what_donors_do_not(self, mixtures):
        adata = made(mixtures, n_changed=0, seed=1)
        rank(adata, within="cell_type")
        by_donors = sum((table(adata, kind)["pvals_adj"] < 0.05).sum() for kind in adata.uns[KEY]["names"].dtype.names)
        sc.pp.normalize_total(adata)
        sc.pp.log1p(adata)
        sc.tl.rank_genes_groups(adata, "condition", groups=["case"], reference="control", method="wilcoxon")
        by_cells = (sc.get.rank_genes_groups_df(adata, "case")["pvals_adj"] < 0.05).sum()
        assert by_donors <= 1
        assert by_cells > 20

    def test_larger_changes_than_delta_are_fewer(self, changed):
        calls = []
        for delta in (None, 0, 0.3):
            rank(changed, within="cell_type", delta=delta)
            calls.append((table(changed, "H1975")["pvals_adj"] < 0.05).sum())
        assert calls[0] == calls[1] > 1.5 * calls[2] > 0

    def test_groups_within_samples_are_pairs(self, changed):
        rank(changed, groupby="cell_type", groups="all", reference="rest")
        log_counts = changed.copy()
        sc.pp.normalize_total(log_counts)
        sc.pp.log1p(log_counts)
        sc.tl.rank_genes_groups(log_counts, "cell_type", method="t-test")
        for kind in changed.obs["cell_type"].cat.categories:
            ours, scanpys = table(changed, kind), sc.get.rank_genes_groups_df(log_counts, kind).set_index("names")
            assert set(ours["scores"].nlargest(10).index) & set(scanpys.index[:10])
            assert np.corrcoef(ours["scores"], scanpys["scores"].reindex(ours.index))[0, 1] > 0.8

    def test_genes_of_hardly_any_counts_are_not_tested(self, changed):
        lowest = changed.var_names[0]
        dense = changed.X.tolil()
        dense[:, 0] = 0
        dense[0, 0] = 9
        changed.X = dense.tocsr()
        rank(changed)
        row = table(changed, "case").loc[lowest]
        assert row["pvals"] == row["pvals_adj"] == 1
        assert row["logfoldchanges"] == 0
        lowest_known = changed.uns[KEY]["proba_de"]["case"].min()
        assert changed.uns[KEY]["proba_de"]["case"][changed.uns[KEY]["names"]["case"] == lowest][0] == lowest_known


class TestStructure:
    def test_fields_have_the_types_of_scanpy(self, changed, tmp_path):
        rank(changed, within="cell_type", pts=True)
        sc.tl.rank_genes_groups(changed, "cell_type", method="t-test")
        ours, scanpys = changed.uns[KEY], changed.uns["rank_genes_groups"]
        for field in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj"):
            assert ours[field].dtype == scanpys[field].dtype
        shares = changed[(changed.obs["cell_type"] == "H1975") & (changed.obs["condition"] == "case")]
        expected = np.ravel((shares.X > 0).mean(axis=0))
        np.testing.assert_allclose(ours["pts"]["H1975"], expected)
        assert ours["params"]["within"] == "cell_type"
        assert ours["params"]["sample_key"] == "donor"
        assert ours["params"]["corr_method"] == "benjamini-hochberg"
        changed.write_h5ad(tmp_path / "ranked.h5ad")
        again = sc.read_h5ad(tmp_path / "ranked.h5ad")
        pd.testing.assert_frame_equal(table(again, "H2228"), table(changed, "H2228"))

    def test_plots_name_the_comparison(self, changed, no_windows):
        rank(changed, within="cell_type")
        ax = scvip.pl.rank_genes(changed, groups="H1975", show=False)
        assert ax.get_title() == "case against control in H1975"

    def test_types_of_too_few_samples_are_left_out_with_a_warning(self, changed, warned):
        odd = (changed.obs["cell_type"] == "HCC827") & changed.obs["donor"].isin(["case2", "case3", "case4"])
        changed = changed[~odd].copy()
        rank(changed, within="cell_type")
        assert changed.uns[KEY]["names"].dtype.names == ("H1975", "H2228")
        (warning,) = warned()
        assert "not compared in cell_type: 'HCC827', where 'case' or what it is compared with has too few" in warning


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"sample_key": "doner"}, KeyError, r"sample_key='doner' is not in adata.obs. Did you mean 'donor'"),
            ({"sample_key": None, "within": "cell_type"}, ValueError, r"passed without sample_key; pass the column"),
            ({"within": "celltype"}, KeyError, r"within='celltype' is not in adata.obs"),
            ({"mode": "vanilla"}, ValueError, r"mode='vanilla' compares cells, with sample_key samples are compared"),
            (
                {"groups": "all", "reference": "rest", "within": "cell_type"},
                ValueError,
                r"name one and what to compare it with: groups=\['case'\], reference='control'",
            ),
            ({"sample_key": "one"}, ValueError, r"sample_key='one': there are too few samples: 1 on one side and 1"),
            ({"sample_key": "one", "within": "cell_type"}, ValueError, r"in 'HCC827', as in all other values of"),
            ({"sample_key": "holes"}, ValueError, r"sample_key='holes' has 1 missing values"),
        ],
    )
    def test_refusals_say_what_to_do_and_change_nothing(self, changed, unchanged, arguments, error, message):
        changed.obs["one"] = changed.obs["condition"].astype(str)
        changed.obs["holes"] = changed.obs["donor"].astype(object)
        changed.obs.iloc[0, changed.obs.columns.get_loc("holes")] = np.nan
        before = changed.copy()
        with pytest.raises(error, match=message):
            rank(changed, **arguments)
        unchanged(changed, before)
