"""``tl.rank_genes_groups``: what is found, how often it is false, and that Scanpy reads it."""

import re

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from scipy.stats import binom

import scanpy_scvipyro as scvip

KEY = "rank_genes_groups_scvi_pyro"


def rank(adata, groupby="group", **arguments):
    scvip.tl.rank_genes_groups(adata, groupby, **{"n_samples": 2000, "progress_bar": False} | arguments)


def table(adata, group):
    """Results of a group, in the order of the genes."""
    stored = adata.uns[KEY]
    fields = ("scores", "logfoldchanges", "pvals", "pvals_adj", "bayes_factor", "proba_de")
    frame = pd.DataFrame({field: stored[field][group] for field in fields}, index=stored["names"][group])
    return frame.reindex(adata.var_names)


@pytest.fixture(scope="module")
def _changed():
    """Three groups with changes of a tenth of the genes each, over two batches and two factors they share."""
    rng = np.random.default_rng(0)
    n_cells, n_genes = 900, 600
    group, batch = rng.integers(3, size=n_cells), rng.integers(2, size=n_cells)
    change = np.zeros((3, n_genes))
    for row in change:
        row[rng.choice(n_genes, 60, replace=False)] = rng.choice([-1, 1], 60) * rng.uniform(0.6, 2.4, 60)
    log_rate = rng.normal(0, 1.3, n_genes) + np.log(2) * change[group] + rng.normal(0, 0.4, (2, n_genes))[batch]
    log_rate += rng.normal(size=(n_cells, 2)) @ rng.normal(0, 0.3, (2, n_genes))
    rate = np.exp(log_rate)
    mean = rate / rate.sum(axis=1, keepdims=True) * rng.lognormal(np.log(1500), 0.4, (n_cells, 1))
    counts = rng.negative_binomial(3.0, 3.0 / (3.0 + mean)).astype(np.float32)
    obs = pd.DataFrame({"group": group.astype(str), "batch": batch.astype(str)}, dtype="category")
    adata = ad.AnnData(sparse.csr_matrix(counts), obs.set_index("c" + obs.index.astype(str)))
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    adata.varm["change"] = change.T
    scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=60, impute=False, progress_bar=False)
    return adata


@pytest.fixture
def changed(_changed):
    return _changed.copy()


class TestFindings:
    def test_false_discoveries_are_as_rare_as_promised(self, changed):
        rank(changed)
        unchanged_gene = ~changed.varm["change"].any(axis=1)
        calls = np.stack([table(changed, group)["pvals_adj"] < 0.05 for group in "012"])
        assert calls[:, unchanged_gene].sum() <= binom.ppf(0.975, calls.sum(), 0.05)

    def test_most_changes_are_found_with_their_sign(self, changed):
        rank(changed)
        for i, group in enumerate("012"):
            change, found = changed.varm["change"][:, i], table(changed, group)
            called = (found["pvals_adj"] < 0.05).to_numpy()
            assert called[change != 0].mean() > 0.8
            assert (np.sign(found["scores"]) == np.sign(change))[called & (change != 0)].mean() > 0.98

    def test_fold_changes_are_those_that_were_simulated(self, changed):
        rank(changed, reference="1", groups=["0"])
        truth = changed.varm["change"][:, 0] - changed.varm["change"][:, 1]
        estimate = table(changed, "0")["logfoldchanges"]
        seen = np.ravel(changed.X.mean(axis=0)) > 0.5
        assert np.corrcoef(estimate[seen], truth[seen])[0, 1] > 0.95
        assert np.polyfit(truth[seen], estimate[seen], 1)[0] == pytest.approx(1, abs=0.15)

    @pytest.mark.parametrize("mode", ["change", "vanilla"])
    @pytest.mark.parametrize("n_samples", [50, 2000])
    def test_nothing_is_found_between_random_halves(self, changed, mode, n_samples):
        for seed in (123, 124, 125):  # not 0, from which the groups were drawn
            changed.obs["half"] = np.random.default_rng(seed).choice(["a", "b"], changed.n_obs)
            rank(changed, "half", mode=mode, n_samples=n_samples, random_state=seed)
            assert not (table(changed, "a")["pvals_adj"] < 0.05).any()

    @pytest.mark.parametrize("mode", ["change", "vanilla"])
    @pytest.mark.parametrize("n_cells", [1, 2, 5])
    def test_nothing_is_found_of_a_few_random_cells(self, changed, mode, n_cells):
        calls = 0
        for seed in range(123, 127):
            few = np.random.default_rng(seed).permutation(changed.n_obs) < n_cells
            changed.obs["few"] = np.where(few, "few", "many")
            rank(changed, "few", groups=["few"], mode=mode, random_state=seed)
            calls += (table(changed, "few")["pvals_adj"] < 0.05).sum()
        assert calls <= 4  # of 2,400 genes

    @pytest.mark.parametrize("mode", ["change", "vanilla"])
    def test_genes_that_were_never_counted_are_not_found(self, mixtures, mode):
        genes = np.argsort(-np.ravel(mixtures.X.sum(axis=0)))[:150]
        line = mixtures.obs["cell_type"] == "H1975"
        cells = np.r_[np.flatnonzero(line)[:9], np.flatnonzero(~line)]
        counts = mixtures[cells, genes].X.toarray()
        counts[:, 100:] = 0
        few = ad.AnnData(sparse.csr_matrix(counts), mixtures.obs.iloc[cells], mixtures.var.iloc[genes])
        scvip.tl.scvi_pyro(few, batch_key="batch", max_epochs=20, impute=False, progress_bar=False)
        rank(few, "cell_type", groups=["H1975"], mode=mode)
        called = (table(few, "H1975")["pvals_adj"] < 0.05).to_numpy()
        assert called[:100].any()
        assert not called[100:].any()

    def test_batches_differ_only_when_their_effect_is_left_in(self, changed):
        def n_found(transform_batch):
            rank(changed, "batch", transform_batch=transform_batch)
            return (table(changed, "0")["pvals_adj"] < 0.05).sum()

        assert n_found("all") <= 3
        assert n_found(None) > 100

    def test_vanilla_calls_no_unchanged_genes(self, changed):
        rank(changed, mode="vanilla")
        unchanged_gene = ~changed.varm["change"].any(axis=1)
        called = np.stack([table(changed, group)["pvals_adj"] < 0.05 for group in "012"])
        assert called.sum() > 30
        assert called[:, unchanged_gene].sum() <= binom.ppf(0.975, called.sum(), 0.05)


class TestValues:
    def test_fold_changes_are_differences_of_mean_log_frequencies(self, trained, by_hand):
        rank(trained, "cell_type", groups=["H1975"], reference="HCC827", pseudocounts=1e-5, n_samples=5000)
        hand = by_hand(trained)
        cells = trained.obs["cell_type"]
        draws = [
            np.log2(hand.frequencies(hand.posterior().sample(), batch) + 1e-5) for batch in range(3) for _ in range(3)
        ]
        mean = np.mean(draws, axis=0)
        difference = mean[cells == "H1975"].mean(axis=0) - mean[cells == "HCC827"].mean(axis=0)
        np.testing.assert_allclose(table(trained, "H1975")["logfoldchanges"], difference, atol=0.08)

    def test_vanilla_is_the_probability_that_a_cell_is_higher(self, trained, by_hand):
        rank(trained, "cell_type", groups=["H1975"], mode="vanilla", n_samples=5000)
        hand = by_hand(trained)
        ours = (trained.obs["cell_type"] == "H1975").to_numpy()
        rng = np.random.default_rng(0)
        pairs = rng.choice(np.flatnonzero(ours), 3000), rng.choice(np.flatnonzero(~ours), 3000)
        higher = []
        for batch in range(3):
            one, other = (hand.frequencies(hand.posterior().sample(), batch) for _ in range(2))
            higher.append(one[pairs[0]] > other[pairs[1]])
        probability = np.mean(higher, axis=(0, 1))
        computed = 1 / (1 + np.exp(-table(trained, "H1975")["scores"]))
        np.testing.assert_allclose(computed, probability, atol=0.05)

    def test_swapped_groups_have_opposite_fold_changes(self, trained):
        rank(trained, "cell_type", groups=["H1975"], reference="H2228")
        one = table(trained, "H1975")["logfoldchanges"]
        rank(
            trained,
            "cell_type",
            groups=["H2228"],
            reference="H1975",
            pseudocounts=trained.uns[KEY]["params"]["pseudocounts"],
        )
        np.testing.assert_allclose(table(trained, "H2228")["logfoldchanges"], -one, atol=0.15)

    def test_ranking_some_groups_gives_what_ranking_all_gives(self, trained):
        rank(trained, "cell_type", pseudocounts=1e-5)
        everything = table(trained, "H2228")["logfoldchanges"]
        rank(trained, "cell_type", groups=["H2228"], pseudocounts=1e-5)
        assert trained.uns[KEY]["names"].dtype.names == ("H2228",)
        np.testing.assert_allclose(table(trained, "H2228")["logfoldchanges"], everything, atol=0.15)

    def test_large_pseudocounts_shrink_fold_changes(self, trained):
        rank(trained, "cell_type", pseudocounts=1.0)
        assert table(trained, "H1975")["logfoldchanges"].abs().max() < 0.5

    def test_delta_is_chosen_for_each_group_unless_it_is_given(self, trained):
        rank(trained, "cell_type")
        assert (trained.uns[KEY]["params"]["delta"] >= 0.1).all()
        rank(trained, "cell_type", delta=0.7)
        assert trained.uns[KEY]["params"]["delta"].tolist() == [0.7] * 3

    def test_cells_without_a_group_are_left_out(self, trained):
        trained.obs["known"] = trained.obs["cell_type"].astype(object).where(trained.obs["cell_type"] != "HCC827")
        rank(trained, "known", groups=["H1975"], pseudocounts=1e-5)
        unlabelled = table(trained, "H1975")["logfoldchanges"]
        rank(trained, "cell_type", groups=["H1975"], reference="H2228", pseudocounts=1e-5)
        np.testing.assert_allclose(table(trained, "H1975")["logfoldchanges"], unlabelled, atol=0.15)


class TestScanpy:
    @pytest.fixture
    def both(self, trained):
        """Results of this package and of Scanpy, on log counts."""
        rank(trained, "cell_type", pts=True)
        sc.pp.normalize_total(trained)
        sc.pp.log1p(trained)
        sc.tl.rank_genes_groups(trained, "cell_type", method="t-test", pts=True)
        return trained

    def test_fields_have_the_types_of_scanpy(self, both):
        ours, scanpys = both.uns[KEY], both.uns["rank_genes_groups"]
        assert ours.keys() - scanpys.keys() == {"bayes_factor", "proba_de"}
        assert not scanpys.keys() - ours.keys()
        assert scanpys["params"].keys() <= ours["params"].keys()
        for field in ("names", "scores", "logfoldchanges", "pvals", "pvals_adj"):
            assert ours[field].dtype == scanpys[field].dtype
            assert ours[field].shape == scanpys[field].shape

    def test_shares_of_cells_are_those_of_scanpy(self, both):
        for field in ("pts", "pts_rest"):
            pd.testing.assert_frame_equal(both.uns[KEY][field], both.uns["rank_genes_groups"][field])

    def test_groups_are_sorted_by_score(self, both):
        for group in both.uns[KEY]["scores"].dtype.names:
            assert (np.diff(both.uns[KEY]["scores"][group]) <= 0).all()

    def test_data_frame_has_the_columns_and_cut_offs_of_scanpy(self, both):
        ours = sc.get.rank_genes_groups_df(both, None, key=KEY)
        assert ours.columns.equals(sc.get.rank_genes_groups_df(both, None).columns)
        cut = sc.get.rank_genes_groups_df(both, "H1975", key=KEY, pval_cutoff=0.05, log2fc_min=1)
        assert 0 < len(cut) < both.n_vars
        assert (cut["logfoldchanges"] > 1).all()

    def test_plots_show_the_genes(self, both):
        with mpl.rc_context({"backend": "agg"}):
            sc.pl.rank_genes_groups(both, key=KEY, show=False)
            drawn = mpl.pyplot.gcf().axes[0].texts[0].get_text()
            dots = sc.pl.rank_genes_groups_dotplot(
                both, key=KEY, n_genes=2, values_to_plot="logfoldchanges", dendrogram=False, show=False
            )
            mpl.pyplot.close("all")
        assert drawn == both.uns[KEY]["names"]["H1975"][0]
        labels = [label.get_text() for label in dots["mainplot_ax"].get_xticklabels()]
        assert labels[:2] == both.uns[KEY]["names"]["H1975"][:2].tolist()

    def test_genes_are_filtered(self, both):
        sc.tl.filter_rank_genes_groups(both, key=KEY, min_fold_change=2, key_added="filtered")
        kept = pd.notna(both.uns["filtered"]["names"]["H1975"])
        assert 0 < kept.sum() < both.n_vars
        assert (both.uns[KEY]["logfoldchanges"]["H1975"][kept] > 2).all()

    def test_results_survive_a_file(self, both, tmp_path):
        both.write_h5ad(tmp_path / "ranked.h5ad")
        again = ad.read_h5ad(tmp_path / "ranked.h5ad")
        pd.testing.assert_frame_equal(
            sc.get.rank_genes_groups_df(again, None, key=KEY), sc.get.rank_genes_groups_df(both, None, key=KEY)
        )

    def test_the_number_of_genes_can_be_limited(self, trained_small):
        rank(trained_small, "cell_type", n_genes=7)
        assert trained_small.uns[KEY]["names"].shape == (7,)

    @pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
    def test_groups_with_a_slash_in_their_names_are_stored(self, trained_small, file_format, tmp_path):
        trained_small.obs["slashed"] = np.where(trained_small.obs["cell_type"] == "H1975", "T/NK", "B")
        rank(trained_small, "slashed")
        getattr(trained_small, f"write_{file_format}")(tmp_path / "file")
        read = getattr(ad, f"read_{file_format}")(tmp_path / "file")
        ours = table(trained_small, "T/NK")
        pd.testing.assert_frame_equal(table(read, "T/NK"), ours)

    def test_the_advice_on_groups_whose_shares_cannot_be_stored_works(self, trained_small, tmp_path):
        names = trained_small.obs["cell_type"].astype(object).replace("H1975", "T/NK")
        names.iloc[3] = np.nan
        trained_small.obs["slashed"] = names.astype("category")
        with pytest.raises(ValueError, match="rename the group") as refused:
            rank(trained_small, "slashed", pts=True)
        exec(re.search(r"rename the group: (.*)\.$", str(refused.value))[1], {"adata": trained_small})
        rank(trained_small, "slashed", pts=True)
        trained_small.write_zarr(tmp_path / "ranked.zarr")
        assert ad.read_zarr(tmp_path / "ranked.zarr").uns[KEY]["pts"].columns.tolist() == ["H2228", "HCC827", "T_NK"]

    def test_results_go_where_they_are_asked_for(self, trained_small):
        rank(trained_small, "cell_type", key_added="markers")
        assert KEY not in trained_small.uns
        assert "names" in trained_small.uns["markers"]


def test_a_group_of_a_single_cell_is_warned_of(trained_small, warned):
    trained_small.obs["group"] = ["lone", "other"] + ["rest"] * (trained_small.n_obs - 2)
    rank(trained_small, "group", groups=["lone"])
    (warning,) = warned()
    assert warning.startswith("WARNING: groups of a single cell: 'lone'. What is found for them holds for that cell;")
    rank(trained_small, "cell_type")
    assert warned() == []


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"groupby": "celltype"}, KeyError, r"groupby='celltype' is not in adata.obs. Did you mean 'cell_type'"),
            ({"groups": ["H1976"]}, KeyError, r"groups='H1976' is not a value of .* Did you mean 'H1975'"),
            ({"groupby": ["cell_type"]}, TypeError, r"groupby=\['cell_type'\] is not the name of a column"),
            ({"reference": "others"}, KeyError, r"reference='others' is not a value of"),
            ({"groups": ["H1975"], "reference": "H1975"}, ValueError, r"no two groups to compare"),
            ({"mode": "wilcoxon"}, ValueError, r"pass 'change' or 'vanilla'"),
            ({"n_samples": 49}, ValueError, r"n_samples=49 was passed; pass at least 50: fewer draws"),
            ({"n_samples": 1}, ValueError, r"n_samples=1 was passed; pass at least 50"),
            ({"delta": -1}, ValueError, r"delta=-1 was passed; pass a number of at least 0"),
            ({"transform_batch": "nope"}, KeyError, r"which the model was not trained on"),
            ({"fdr": 0.1}, TypeError, r"has no argument 'fdr'"),
            ({"key_added": "scvi_pyro"}, ValueError, r"key_added='scvi_pyro' is the name of a model in adata.uns"),
            ({"groupby": "slashed", "pts": True}, ValueError, r"files cannot store one named 'T/NK'; leave pts out"),
        ],
    )
    def test_refusals_say_what_to_do_and_change_nothing(self, trained_small, unchanged, arguments, error, message):
        trained_small.obs["slashed"] = np.where(trained_small.obs["cell_type"] == "H1975", "T/NK", "B")
        before = trained_small.copy()
        with pytest.raises(error, match=message):
            scvip.tl.rank_genes_groups(trained_small, **{"groupby": "cell_type"} | arguments)
        unchanged(trained_small, before)

    def test_one_group_is_refused(self, trained_small):
        trained_small.obs["one"] = "same"
        with pytest.raises(ValueError, match=r"no two groups to compare; it has \['same'\]"):
            rank(trained_small, "one")


def test_known_markers_lead_each_sorted_population(data_directory):
    adata = scvip.datasets.pbmc_facs_zheng()
    log_counts = adata.copy()
    sc.pp.normalize_total(log_counts)
    sc.pp.log1p(log_counts)
    sc.pp.highly_variable_genes(log_counts, n_top_genes=1000)
    adata = adata[:, log_counts.var["highly_variable"]].copy()
    scvip.tl.scvi_pyro(adata, max_epochs=20, impute=False, progress_bar=False)
    rank(adata, "cell_type", n_samples=1000)
    markers = {
        "CD14+ Monocyte": {"S100A8", "S100A9", "LYZ", "CD14"},
        "CD19+ B": {"CD79A", "CD79B", "MS4A1", "CD74"},
        "CD34+": {"SPINK2", "SOX4"},
        "CD56+ NK": {"GNLY", "NKG7", "GZMB"},
        "CD8+ Cytotoxic T": {"CD8B", "CD3D"},
        "CD8+/CD45RA+ Naive Cytotoxic": {"CD8B", "CD3D"},
        "CD4+ T Helper2": {"CD3D", "IL7R"},
        "CD4+/CD45RO+ Memory": {"IL32", "CD3D"},
        "CD4+/CD25 T Reg": {"IL32", "CD3D"},
        "CD4+/CD45RA+/CD25- Naive T": {"CD3D", "CD3E"},
    }
    leading = {
        group: set(sc.get.rank_genes_groups_df(adata, group, key=KEY, pval_cutoff=0.05)["names"][:30])
        for group in markers
    }
    missing = {group: expected - leading[group] for group, expected in markers.items() if expected - leading[group]}
    assert not missing
