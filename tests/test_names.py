"""Categories named as their columns hold them, and lists of names in any form."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scanpy_scvipyro as scvip
from scanpy_scvipyro import _names, _validate

FORMS = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "array": np.array,
    "Series": pd.Series,
    "Index": pd.Index,
    "Categorical": pd.Categorical,
    "generator": iter,
}


class TestText:
    @pytest.mark.parametrize("value", [1, 1.0, np.int8(1), np.uint64(1), np.float32(1), "1", np.str_("1")])
    def test_equal_numbers_have_one_name_in_every_type(self, value):
        assert _names.text(value) == "1"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (True, "True"),
            (np.False_, "False"),
            (0.5, "0.5"),
            (np.float32(0.1), "0.1"),
            (-2.0, "-2"),
            ("1.0", "1.0"),
            (" a", " a"),
            (float("inf"), "inf"),
        ],
    )
    def test_other_values_keep_their_text(self, value, expected):
        assert _names.text(value) == expected


class TestPositions:
    def test_are_those_of_the_names(self):
        assert _names.positions(["b", "c", "a"], ["a", "b"]) == [1, -1, 0]

    @pytest.mark.parametrize(("name", "known"), [("1.0", "1"), (1, "1.0"), (1.0, "1"), ("-3", "-3.00")])
    def test_whole_numbers_are_found_whether_text_of_floats_or_not(self, name, known):
        assert _names.positions([name], ["x", known]) == [1]

    @pytest.mark.parametrize(
        ("name", "known"), [("01", "1"), ("a ", "a"), ("A", "a"), (True, "1"), ("1.5", "1"), ("10", "1.0")]
    )
    def test_other_names_are_not_taken_for_each_other(self, name, known):
        assert _names.positions([name], [known]) == [-1]

    def test_two_names_never_become_one(self):
        assert _names.positions(["1.0", "1"], ["1", "1.0"]) == [1, 0]
        assert _names.positions(["1.0", "1"], ["1"]) == [-1, 0]


class TestCategories:
    @pytest.mark.parametrize(
        ("values", "names"),
        [
            ([10, 9, 10], ["9", "10"]),
            ([2.0, 1.5, np.nan], ["1.5", "2"]),
            ([True, False, True], ["False", "True"]),
            (["b", None, "a"], ["a", "b"]),
            (pd.Categorical([3, 1, 3], categories=[3, 2, 1]), ["3", "1"]),
            (pd.array([1, None, 2], dtype="Int64"), ["1", "2"]),
            (pd.array([0.5, None, 2], dtype="Float32"), ["0.5", "2"]),
            (pd.cut([1, 5, 9], [0, 5, 10]), ["(0, 5]", "(5, 10]"]),
        ],
        ids=str,
    )
    def test_keep_their_order_and_missing_values(self, values, names):
        column = pd.Series(values)
        found = _names.categories(column, "the column")
        assert found.categories.tolist() == names
        np.testing.assert_array_equal(pd.isna(found), column.isna())

    @pytest.mark.parametrize("values", [[1, "1"], [True, "True"], [1.0, "1"]])
    def test_that_read_alike_are_refused_with_their_types(self, values):
        message = (
            rf"the column has categories that read alike: .* \({type(values[0]).__name__}\) and '.*' \(str\); rename"
        )
        with pytest.raises(ValueError, match=message):
            _names.categories(pd.Series([*values, "x"], dtype=object), "the column")
        with pytest.raises(ValueError, match=message):
            _names.categories(pd.Series(pd.Categorical(values)), "the column")

    @pytest.mark.parametrize("values", [["1", "1.0"], ["a", "A"], ["a", "a "], ["", " "]])
    def test_that_differ_in_text_stay_apart(self, values):
        assert _names.categories(pd.Series(values), "the column").categories.tolist() == sorted(values)

    def test_measurements_are_refused(self):
        values = pd.Series(np.tile(np.arange(51) / 7, 10))
        with pytest.raises(ValueError, match=r"the column holds 51 different numbers, it looks like a measurement"):
            _names.categories(values, "the column")
        assert len(_names.categories(values[values < 7], "the column").categories) == 49
        assert len(_names.categories(values.astype("category"), "the column").categories) == 51

    def test_a_number_for_each_of_few_cells_is_a_measurement(self):
        with pytest.raises(ValueError, match="looks like a measurement"):
            _names.categories(pd.Series(np.arange(25) / 7), "the column")


class TestMask:
    @pytest.mark.parametrize(
        "form", [list, tuple, np.array, pd.Series, pd.Index, lambda v: pd.array(v, dtype="boolean")]
    )
    def test_booleans_of_any_form_are_one(self, form):
        assert _names.mask(form([True, False])).tolist() == [True, False]

    @pytest.mark.parametrize("names", [["a"], "a", {"a"}, [], [1, 0], np.array([1, 0])])
    def test_names_are_none(self, names):
        assert _names.mask(names) is None


# The same three batches in all types that columns have.
BATCHES = {
    "int": [0, 1, 2],
    "int8": np.array([0, 1, 2], dtype=np.int8),
    "float": [0.5, 1.0, 2.0],
    "float32": np.array([0.1, 1, 2], dtype=np.float32),
    "str": ["a", "b", "c"],
    "mixed": [1, "a", "b"],
}


@pytest.fixture(params=[(name, form) for name in BATCHES for form in ("values", "categories")], ids=str)
def typed(request, small):
    """The small data with batches of some type, and the batches as the column holds them."""
    name, form = request.param
    values = pd.Series(BATCHES[name])
    column = values.iloc[np.arange(small.n_obs) % 3].set_axis(small.obs_names)
    small.obs["typed"] = column.astype("category") if form == "categories" else column
    return small, list(values)


def as_text(values):
    return [_names.text(value) for value in values]


class TestBatches:
    def test_are_named_as_their_column_holds_them(self, typed, train_quickly):
        adata, batches = typed
        train_quickly(adata, batch_key="typed")
        for asked in (batches[1], batches[:2], batches):
            scvip.tl.impute(adata, transform_batch=asked, key_added="typed")
            name = as_text(asked) if isinstance(asked, list) else as_text([asked])[0]
            scvip.tl.impute(adata, transform_batch=name, key_added="text")
            np.testing.assert_array_equal(adata.layers["typed"], adata.layers["text"])
        scvip.tl.posterior_predictive(adata, transform_batch=batches[2])
        scvip.tl.gene_correlations(adata, transform_batch=batches[:1])
        scvip.tl.rank_genes_groups(adata, "cell_type", transform_batch=batches[1:], n_samples=50)

    def test_booleans_are_named_by_booleans(self, small, train_quickly):
        small.obs["is_10x"] = (small.obs["batch"] == "10x_3cl").to_numpy()
        train_quickly(small, batch_key="is_10x")
        for value, name in ((True, "True"), (np.False_, "False")):
            scvip.tl.impute(small, transform_batch=value, key_added="typed")
            scvip.tl.impute(small, transform_batch=name, key_added="text")
            np.testing.assert_array_equal(small.layers["typed"], small.layers["text"])
        with pytest.raises(KeyError, match=r"transform_batch has 1, .*There is: 'False', 'True'"):
            scvip.tl.impute(small, transform_batch=1)

    @pytest.mark.parametrize("form", FORMS)
    def test_come_in_lists_of_any_form_and_order(self, trained_small, form):
        batches = ["dropseq_3cl", "10x_3cl"]
        scvip.tl.impute(trained_small, transform_batch=FORMS[form](batches), key_added="any form")
        scvip.tl.impute(trained_small, transform_batch=batches[::-1], key_added="list")
        np.testing.assert_array_equal(trained_small.layers["any form"], trained_small.layers["list"])

    @pytest.mark.parametrize("column", [["1", "1.0"], [1, "1"]], ids=str)
    def test_with_names_alike_train_apart_or_not_at_all(self, small, train_quickly, column):
        small.obs["alike"] = np.resize(np.array(column, dtype=object), small.n_obs)
        if column == [1, "1"]:
            with pytest.raises(ValueError, match="batch_key='alike' has categories that read alike"):
                train_quickly(small, batch_key="alike")
        else:
            train_quickly(small, batch_key="alike")
            assert small.uns["scvi_pyro"]["categories"]["alike"].tolist() == column

    @pytest.mark.parametrize(
        ("trained_on", "asked_on"),
        [("float", "int"), ("int", "float"), ("float", "str"), ("int", "category of float"), ("str of float", "int")],
    )
    def test_of_one_number_are_one_in_queries(self, small, train_quickly, trained_on, asked_on):
        numbers = np.arange(small.n_obs) % 3
        columns = {
            "int": numbers,
            "float": numbers.astype(float),
            "str": numbers.astype(str),
            "str of float": numbers.astype(float).astype(str),
            "category of float": pd.Categorical(numbers.astype(float)),
        }
        small.obs["batch"] = columns[trained_on]
        train_quickly(small, batch_key="batch")
        query = small.copy()
        query.obs["batch"] = columns[asked_on]
        scvip.tl.map_query(query, small)
        np.testing.assert_array_equal(query.obsm["X_scvi_pyro"], small.obsm["X_scvi_pyro"])

    def test_of_few_new_cells_may_be_as_many_as_the_cells(self, small, train_quickly):
        small.obs["batch"] = np.arange(small.n_obs) // 4
        train_quickly(small, batch_key="batch")
        query = small[::4].copy()
        scvip.tl.map_query(query, small)
        np.testing.assert_allclose(query.obsm["X_scvi_pyro"], small.obsm["X_scvi_pyro"][::4], atol=1e-6)

    def test_renamed_since_training_are_named_with_their_old_names(self, trained_small):
        trained_small.obs["batch"] = trained_small.obs["batch"].cat.rename_categories({"10x_3cl": "10x"})
        with pytest.raises(
            ValueError, match=r"not trained on: '10x'\..*If they were renamed since \('10x' was '10x_3cl'\)"
        ):
            scvip.tl.latent(trained_small)

    def test_of_new_cells_are_not_taken_for_renamed_ones(self, trained_small):
        trained_small.obs["batch"] = "new"
        with pytest.raises(ValueError, match=r"train on them\.$"):
            scvip.tl.latent(trained_small)


class TestGroups:
    def test_are_named_as_their_column_holds_them(self, small, typed, train_quickly):
        adata, groups = typed
        train_quickly(adata)
        scvip.tl.rank_genes_groups(adata, "typed", groups=groups[:1], reference=groups[2], n_samples=50)
        ranked = adata.uns["rank_genes_groups_scvi_pyro"]
        scvip.tl.rank_genes_groups(
            adata, "typed", groups=as_text(groups[:1]), reference=as_text(groups)[2], n_samples=50
        )
        by_text = adata.uns["rank_genes_groups_scvi_pyro"]
        assert ranked["names"].dtype.names == tuple(as_text(groups[:1]))
        assert ranked["params"]["reference"] == by_text["params"]["reference"] == as_text(groups)[2]
        np.testing.assert_array_equal(ranked["scores"], by_text["scores"])

    @pytest.mark.parametrize("form", FORMS)
    def test_come_in_lists_of_any_form(self, trained_small, form):
        scvip.tl.rank_genes_groups(trained_small, "cell_type", groups=FORMS[form](["H2228", "H1975"]), n_samples=50)
        assert trained_small.uns["rank_genes_groups_scvi_pyro"]["names"].dtype.names == ("H1975", "H2228")

    def test_come_as_one_too(self, trained_small):
        scvip.tl.rank_genes_groups(trained_small, "cell_type", groups="H2228", n_samples=50)
        assert trained_small.uns["rank_genes_groups_scvi_pyro"]["names"].dtype.names == ("H2228",)

    def test_ranked_are_plotted_by_their_names_in_their_type(self, small, train_quickly, no_windows):
        train_quickly(small)
        small.obs["cluster"] = np.arange(small.n_obs) % 3
        scvip.tl.rank_genes_groups(small, "cluster", n_samples=50)
        assert scvip.pl.rank_genes(small, groups=1, show=False).get_title() == "1 against all others"
        assert len(scvip.pl.rank_genes(small, groups=pd.Series([0, 2]), show=False)) == 2

    def test_that_are_measurements_are_refused(self, trained_small):
        trained_small.obs["score"] = np.linspace(0, 1, trained_small.n_obs)
        with pytest.raises(ValueError, match=r"groupby='score' holds 90 different numbers.*pandas\.cut"):
            scvip.tl.rank_genes_groups(trained_small, "score")


class TestGenesAndCells:
    @pytest.mark.parametrize("form", [np.array, list, pd.Series])
    def test_genes_come_as_a_mask(self, trained_small, form):
        mask = np.arange(trained_small.n_vars) % 3 == 0
        scvip.tl.impute(trained_small, genes=form(mask), key_added="mask")
        scvip.tl.impute(trained_small, genes=trained_small.var_names[mask], key_added="names")
        np.testing.assert_array_equal(trained_small.layers["mask"], trained_small.layers["names"])
        assert scvip.tl.gene_correlations(trained_small, genes=form(mask)).shape == (mask.sum(),) * 2

    @pytest.mark.parametrize("form", FORMS)
    def test_genes_come_in_lists_of_any_form(self, trained_small, form):
        names = trained_small.var_names[:2].tolist()
        scvip.tl.impute(trained_small, genes=FORMS[form](names), key_added="some")
        assert np.isfinite(trained_small.layers["some"]).any(axis=0).sum() == 2

    def test_a_mask_of_another_length_is_refused(self, trained_small):
        with pytest.raises(ValueError, match=r"genes has shape \(3,\); a mask needs one value for each of 40 genes"):
            scvip.tl.impute(trained_small, genes=[True, False, True])

    def test_a_mask_of_genes_that_the_model_does_not_know_is_refused(self, small, train_quickly):
        modelled = np.arange(small.n_vars) > 0
        train_quickly(small, mask_var=modelled)
        with pytest.raises(KeyError, match=rf"genes has '{small.var_names[0]}', which the model was not trained on"):
            scvip.tl.impute(small, genes=~modelled)

    @pytest.mark.parametrize("form", FORMS)
    def test_cells_come_in_lists_of_any_form(self, trained_small, form):
        names = trained_small.obs_names[:2].tolist()
        scvip.tl.posterior_predictive(trained_small, cells=FORMS[form](names))
        assert set(trained_small.layers["scvi_pyro_simulated"].nonzero()[0]) == {0, 1}


@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series, pd.Index])
def test_keys_come_in_lists_of_any_form(form):
    assert _validate.keys_as_list(form(["a", "b"]), "keys") == ["a", "b"]


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda a: scvip.tl.scvi_pyro(a, batch_key="twice"), "batch_key"),
        (lambda a: scvip.tl.scvi_pyro(a, labels_key="twice"), "labels_key"),
        (lambda a: scvip.tl.scvi_pyro(a, categorical_covariate_keys="twice"), "categorical_covariate_keys"),
        (lambda a: scvip.tl.scvi_pyro(a, continuous_covariate_keys="twice"), "continuous_covariate_keys"),
        (lambda a: scvip.tl.scvi_pyro(a, size_factor_key="twice"), "size_factor_key"),
        (lambda a: scvip.tl.rank_genes_groups(a, "twice"), "groupby"),
        (lambda a: scvip.pl.integration(a, labels_key="twice"), "labels_key"),
    ],
)
def test_a_name_of_two_columns_is_refused(trained_small, call, argument):
    column = pd.DataFrame({"twice": 1.0}, index=trained_small.obs_names)
    trained_small.obs = pd.concat([trained_small.obs, column, column], axis=1)
    with pytest.raises(
        ValueError, match=rf"{argument}='twice' names 2 columns of adata\.obs; rename or drop all but one"
    ):
        call(trained_small)


def test_typed_batches_survive_a_file(small, train_quickly, tmp_path):
    small.obs["plate"] = pd.Categorical(np.arange(small.n_obs) % 3 + 1)
    train_quickly(small, batch_key="plate")
    small.write_h5ad(tmp_path / "typed.h5ad")
    read = ad.read_h5ad(tmp_path / "typed.h5ad")
    scvip.tl.latent(read)
    np.testing.assert_array_equal(read.obsm["X_scvi_pyro"], small.obsm["X_scvi_pyro"])
