import anndata as ad
import numpy as np
import pytest
from anndata.tests.helpers import assert_equal

import scanpy_scvipyro as scvip
from scanpy_scvipyro import _conditions

CONDITIONS = {"condition_key": "condition", "sample_key": "donor", "reference": "control"}


@pytest.fixture(scope="module")
def _donors():
    adata = scvip.datasets.donors(enriched={"HCC827": 4}, random_state=1)
    scvip.tl.scvi_pyro(adata, batch_key="donor", max_epochs=4, impute=False, progress_bar=False)
    return adata


@pytest.fixture
def donors(_donors):
    return _donors.copy()


def compare(adata, **arguments):
    return scvip.tl.differential_abundance(adata, **CONDITIONS | arguments)


def test_the_enriched_line_is_found(donors):
    compare(donors, groupby="cell_type")
    is_enriched = donors.obs["cell_type"] == "HCC827"
    found = donors.obs["scvi_pyro_da_fdr"] < 0.05
    up = donors.obs["scvi_pyro_da_lfc"] > 0
    assert (found & up)[is_enriched].mean() > 0.1
    assert (found & up)[~is_enriched].mean() < 0.02
    labels = donors.uns["scvi_pyro_da"]["labels"]
    assert labels["pvals_adj"]["HCC827"] < 0.01
    assert labels["logfoldchanges"]["HCC827"] > 0.5 > 0 > labels["logfoldchanges"]["H1975"]
    assert labels["n_cells"].to_dict() == donors.obs["cell_type"].value_counts().to_dict()
    shares = donors.obs.groupby("donor", observed=True)["cell_type"].value_counts(normalize=True).unstack()
    assert labels["share"]["HCC827"] == pytest.approx(shares["HCC827"].iloc[6:].mean())
    assert labels["share_reference"]["HCC827"] == pytest.approx(shares["HCC827"].iloc[:6].mean())


def test_random_sets_of_donors_do_not_differ(donors):
    names = donors.obs["donor"].cat.categories
    donors.obs["condition"] = donors.obs["donor"].isin(names[::2]).map({True: "control", False: "case"})
    compare(donors)
    assert (donors.obs["scvi_pyro_da_fdr"] < 0.05).mean() < 0.01


def test_results_are_written_as_promised(donors, tmp_path):
    result = compare(donors, groupby="cell_type", key_added="mine", n_neighbors=50, copy=True)
    assert "scvi_pyro_da" not in donors.uns
    assert result.obs["mine_da_lfc"].dtype == result.obs["mine_da_fdr"].dtype == np.float32
    expected = {"n_neighbors": 50, "group": "case", "reference": "control", "groupby": "cell_type", "key": "scvi_pyro"}
    assert result.uns["mine_da"]["params"] == expected | {"condition_key": "condition", "sample_key": "donor"}
    result.write_h5ad(tmp_path / "compared.h5ad")
    assert_equal(ad.read_h5ad(tmp_path / "compared.h5ad").uns["mine_da"]["labels"], result.uns["mine_da"]["labels"])


def test_conditions_can_be_exchanged(donors):
    compare(donors)
    there = donors.obs["scvi_pyro_da_lfc"].copy()
    compare(donors, reference="case")
    assert np.corrcoef(there, -donors.obs["scvi_pyro_da_lfc"])[0, 1] > 0.98


def test_cells_of_other_conditions_get_no_result(donors):
    donors.obs["condition"] = donors.obs["condition"].astype(object)
    donors.obs.loc[donors.obs["donor"] == "case1", "condition"] = "unclear"
    donors.obs.loc[donors.obs["donor"] == "case2", "condition"] = None
    compare(donors, group="case")
    is_out = donors.obs["donor"].isin(["case1", "case2"])
    assert donors.obs["scvi_pyro_da_lfc"].isna().equals(is_out)


def test_samples_in_both_conditions_are_pairs(donors):
    numbers = donors.obs["donor"].astype(str).str[-1]
    donors.obs["pair"] = numbers
    samples = _conditions.samples_of(donors, "condition", "pair", "control", None)
    assert samples.design.shape == (12, 7)
    compare(donors, sample_key="pair")
    assert donors.obs["scvi_pyro_da_lfc"].notna().all()


def test_many_cells_share_neighbourhoods(donors, monkeypatch):
    compare(donors)
    every = donors.obs["scvi_pyro_da_lfc"].copy()
    monkeypatch.setattr(_conditions, "MAX_NEIGHBOURHOODS", 500)
    compare(donors)
    assert donors.obs["scvi_pyro_da_lfc"].nunique() <= 500
    assert np.corrcoef(every, donors.obs["scvi_pyro_da_lfc"])[0, 1] > 0.8


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"condition_key": "conditoin"}, KeyError, r"condition_key='conditoin' is not in adata.obs. Did you mean"),
        ({"sample_key": "doner"}, KeyError, r"sample_key='doner' is not in adata.obs. Did you mean 'donor'"),
        ({"reference": "controls"}, KeyError, r"reference='controls' is not a value of .* Did you mean 'control'"),
        ({"group": "cases"}, KeyError, r"group='cases' is not a value of"),
        ({"group": "control"}, ValueError, r"group='control' is the reference, too"),
        ({"condition_key": "cell_type", "reference": "H1975"}, ValueError, r"2 could be compared .* group='H2228'"),
        ({"sample_key": "condition"}, ValueError, r"there are too few samples: 1 on one side and 1 on the other"),
        ({"groupby": "type"}, KeyError, r"groupby='type' is not in adata.obs"),
        ({"key": "other"}, KeyError, r"no codes of key='other'; call tl.scvi_pyro"),
        ({"n_neighbors": 4}, ValueError, r"n_neighbors=4 was passed; pass a whole number of at least 5"),
        ({"n_neighbors": 10**6}, ValueError, r"cells are compared; pass a smaller one"),
    ],
)
def test_refusals_say_what_to_do_and_change_nothing(donors, unchanged, arguments, error, message):
    before = donors.copy()
    with pytest.raises(error, match=message):
        compare(donors, **arguments)
    unchanged(donors, before)
