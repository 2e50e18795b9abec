"""Refusals: what was wrong, what was found, and what to do."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scanpy_scvipyro import _validate

# Values just outside of the range, and values of the wrong kind.
OUT_OF_RANGE = {
    "n_latent": (0, -1, 2.5, "10", True),
    "n_hidden": (0, 1.0),
    "n_layers": (0, 1.0),
    "n_batch_embedding": (0, 1.0),
    "n_prior_components": (0, 1.0),
    "dropout_rate": (-0.1, 1.0, float("nan"), "0.1"),
    "batch_alignment": (-0.01, float("nan")),
    "kl_weight": (-0.1, 101),
    "batch_offset": (-0.01, 1.01, float("nan")),
    "max_epochs": (0, -1, 1.5, float("inf")),
    "batch_size": (1, 0, 64.0),
    "train_size": (0, 1.01, float("nan"), float("inf")),
    "learning_rate": (0, -1e-3, 1.5, float("nan"), float("inf"), True),
    "n_epochs_kl_warmup": (-1, 1.5),
    "early_stopping_patience": (0, 1.5),
    "random_state": (-1, 2**32, 0.5, np.random.default_rng(0)),
}


@pytest.mark.parametrize("name", ["n_latent", "random_state", "batch_size", "n_samples", "gene_likelihood"])
def test_none_is_refused_where_it_means_nothing(name):
    with pytest.raises(ValueError, match=rf"^{name}=None (was passed; pass|is not a choice)"):
        _validate.check_arguments({name: None})


def test_none_passes_where_a_default_is_worked_out_later():
    _validate.check_arguments({"max_epochs": None, "batch_offset": None, "delta": None})
    _validate.check_arguments({"n_samples": None}, may_be_none=["n_samples"])


class Callback:
    """As of another package, whose classes have the same names."""


class Counts(Callback):
    pass


@pytest.mark.parametrize("several", [list, tuple, set, iter])
def test_one_instance_and_several_become_a_list(several):
    one, two = Counts(), Counts()
    assert _validate.instances(None, Callback, "callbacks") == []
    assert _validate.instances(one, Callback, "callbacks") == [one]
    assert set(_validate.instances(several([one, two]), Callback, "callbacks")) == {one, two}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Counts, r"callbacks has the class Counts itself; pass an instance .* in a list: Counts\(\.\.\.\)\."),
        ([Counts(), Counts], r"callbacks has the class Counts itself"),
        ("csv", r"callbacks has 'csv'; pass an instance of a Callback, or several in a list"),
        ([3], r"callbacks has 3; pass an instance"),
    ],
)
def test_classes_and_names_are_no_instances(value, message):
    with pytest.raises(TypeError, match=message):
        _validate.instances(value, Callback, "callbacks")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OUT_OF_RANGE for value in OUT_OF_RANGE[name]])
def test_number_out_of_range_is_refused_with_the_range(name, value):
    with pytest.raises(ValueError, match=rf"^{name}=.* was passed; pass a (whole )?number (from|of at least) \S+"):
        _validate.check_arguments({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_latent", 1),
        ("n_latent", np.int64(5)),
        ("dropout_rate", 0),
        ("train_size", np.float32(0.5)),
        ("train_size", 1),
        ("batch_size", 2),
        ("batch_offset", None),
        ("max_epochs", None),
        ("random_state", 2**32 - 1),
    ],
)
def test_numbers_in_range_of_any_numeric_type_pass(name, value):
    _validate.check_arguments({name: value})


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("gene_likelihood", "nbb", "nb"),
        ("gene_likelihood", "Poison", "poisson"),
        ("dispersion", "gene_cell", "gene-cell"),
        ("library", "observe", "observed"),
        ("activation", "RELU", "relu"),
        ("encoder_normalization", "batchnorm", "batch"),
        ("decoder_normalization", "layers", "layer"),
        ("batch_representation", "onehot", "one-hot"),
        ("decoder", "lineal", "linear"),
        ("prior", "mixtures", "mixture"),
    ],
)
def test_unknown_choice_is_refused_with_the_nearest(name, value, nearest):
    with pytest.raises(ValueError, match=rf"^{name}='{value}' is not a choice\. Did you mean '{nearest}'\?"):
        _validate.check_arguments({name: value})


@pytest.mark.parametrize("value", [["nb"], {"nb"}, 3])
def test_choice_of_the_wrong_type_is_refused(value):
    with pytest.raises(ValueError, match=r"^gene_likelihood=.* is not a choice"):
        _validate.check_arguments({"gene_likelihood": value})


def test_did_you_mean_ignores_case_and_lists_names():
    hint = _validate.did_you_mean("BATCH", ["Batch", "donor"])
    assert hint == "Did you mean 'Batch'? There is: 'Batch', 'donor'."


def test_did_you_mean_does_not_guess_wildly():
    assert _validate.did_you_mean("plate", ["x", "y"]) == "There is: 'x', 'y'."


def test_did_you_mean_says_so_where_nothing_exists():
    assert _validate.did_you_mean("plate", []) == "There is: nothing."


@pytest.mark.parametrize("what", [np.ones((3, 2)), pd.DataFrame(np.ones((3, 2))), "counts.h5ad", None])
def test_other_than_anndata_is_refused(what):
    with pytest.raises(TypeError, match=rf"adata is a {type(what).__name__}, not an AnnData; wrap.*read_h5ad"):
        _validate.check_adata(what)


def test_anndata_on_disk_is_refused_where_it_cannot_be_read(adata, tmp_path):
    adata.write_h5ad(tmp_path / "counts.h5ad")
    backed = ad.read_h5ad(tmp_path / "counts.h5ad", backed="r")
    with pytest.raises(ValueError, match=r"the cells of adata are on disk.*adata\.to_memory\(\)"):
        _validate.check_adata(backed)
    backed.file.close()


UNFIT = ["", ".", "..", "a/b", "/a", "a/", "a\\b", "a\0b", ".zgroup", ".zattrs", "zarr.json", "\udc80", "x" * 256]


@pytest.mark.parametrize("name", [None, 1, *UNFIT])
def test_names_of_results_that_files_cannot_store_are_refused(name):
    with pytest.raises(ValueError, match=rf"key_added={re.escape(repr(name))} was passed; pass a name without '/'"):
        _validate.check_key_added(name)


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
@pytest.mark.parametrize("name", ["scvi pyro", "...", ".a", "a.b", "__a", "café", "模型", "a:b", "x" * 200])
def test_names_of_results_that_are_not_refused_are_stored(adata, name, file_format, tmp_path):
    _validate.check_key_added(name)
    adata.uns[name] = {"weights": {"w": np.ones(2)}}
    adata.obs[f"{name}_reconstruction"] = 1.5
    adata.obsm[f"X_{name}"] = np.ones((3, 2))
    getattr(adata, f"write_{file_format}")(tmp_path / "file")
    read = getattr(ad, f"read_{file_format}")(tmp_path / "file")
    assert "w" in read.uns[name]["weights"]
    assert f"{name}_reconstruction" in read.obs
    assert f"X_{name}" in read.obsm


@pytest.mark.parametrize(("n_cells", "found"), [(0, "0 cells"), (1, "1 cell")])
def test_fewer_than_two_cells_are_refused(adata, n_cells, found):
    with pytest.raises(ValueError, match=rf"adata has {found}; at least two are needed"):
        _validate.check_adata(adata[:n_cells])


def test_the_number_of_cells_that_are_needed_is_named(adata):
    with pytest.raises(ValueError, match=r"adata has 3 cells; at least 20 are needed\."):
        _validate.check_adata(adata, min_cells=20)


def test_no_genes_are_refused(adata):
    with pytest.raises(ValueError, match="adata has no genes"):
        _validate.check_adata(adata[:, :0])


def test_mask_selects_genes_by_column_or_array(adata):
    mask = np.array([True, False, True])
    adata.var["chosen"] = mask
    np.testing.assert_array_equal(_validate.gene_mask(adata, "chosen"), mask)
    np.testing.assert_array_equal(_validate.gene_mask(adata, mask), mask)
    np.testing.assert_array_equal(_validate.gene_mask(adata, mask.tolist()), mask)
    np.testing.assert_array_equal(_validate.gene_mask(adata, adata.var["chosen"]), mask)
    assert _validate.gene_mask(adata, None).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([1, 0, 1], r"values of type int64; pass True for each gene"),
        (["g0", "g1"], r"values of type <U2; pass True.*adata\.var_names\.isin\(names\)"),
        ([True, False], r"shape \(2,\); adata has 3 genes"),
        ([[True, False, True]], r"shape \(1, 3\); adata has 3 genes"),
        ([False] * 3, r"selects no genes; select at least one"),
        ("score", r"values of type float64; pass True"),
    ],
)
def test_wrong_mask_is_refused(adata, mask, message):
    adata.var["score"] = 0.5
    with pytest.raises(ValueError, match=rf"mask_var .*{message}"):
        _validate.gene_mask(adata, mask)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_a_series_says_by_its_index_which_genes_are_meant(adata):
    chosen = pd.Series([True, False, False], index=["g2", "g0", "g1"])
    assert _validate.gene_mask(adata, chosen).tolist() == [False, False, True]
    assert _validate.gene_mask(adata, chosen.reset_index(drop=True)).tolist() == [True, False, False]
    chosen.index = ["g2", "g0", "ENSG1"]
    with pytest.raises(ValueError, match=r"mask_var is a Series whose index has other names than adata, .*'g2'; pass"):
        _validate.gene_mask(adata, chosen)


def test_mask_of_genes_that_cannot_be_found_by_name_is_refused(adata):
    adata.var_names = ["g0", "g0", "g2"]
    assert _validate.gene_mask(adata, [True] * 3).all()
    with pytest.raises(ValueError, match=r"adata\.var_names has duplicates.*var_names_make_unique\(\) before training"):
        _validate.gene_mask(adata, [False, True, True])


def test_missing_mask_column_is_refused_with_the_nearest(adata):
    adata.var["highly_variable"] = True
    with pytest.raises(KeyError, match=r"mask_var='highly_variabel' .*Did you mean 'highly_variable'\?"):
        _validate.gene_mask(adata, "highly_variabel")


def test_missing_obs_column_is_refused_with_the_nearest(adata):
    with pytest.raises(KeyError, match=r"batch_key='smaple' is not in adata\.obs\. Did you mean 'sample'\?.*'age'"):
        _validate.obs_codes(adata, "smaple", "batch_key")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA])
def test_missing_values_in_a_column_are_refused_with_the_cell(adata, missing):
    adata.obs["sample"] = pd.Series(["a", missing, "a"], index=adata.obs_names, dtype=object)
    with pytest.raises(ValueError, match=r"batch_key='sample' has 1 missing values, the first for cell 'c1'; fill"):
        _validate.obs_codes(adata, "sample", "batch_key")


@pytest.mark.parametrize("dtype", [str, "category", object, "string"])
def test_codes_number_the_categories_that_occur(adata, dtype):
    adata.obs["sample"] = adata.obs["sample"].astype(dtype)
    codes, categories = _validate.obs_codes(adata, "sample", "batch_key")
    assert (codes.tolist(), categories.tolist()) == ([0, 1, 0], ["a", "b"])


@pytest.mark.parametrize(("values", "names"), [([3, 1, 3], ["1", "3"]), ([True, False, True], ["False", "True"])])
def test_numbers_and_booleans_serve_as_categories(adata, values, names):
    adata.obs["plate"] = values
    codes, categories = _validate.obs_codes(adata, "plate", "batch_key")
    assert (codes.tolist(), categories.tolist()) == ([1, 0, 1], names)


@pytest.mark.parametrize("name", ["donor/plate", *UNFIT])
def test_a_column_that_files_cannot_store_is_refused_with_another_name(adata, name):
    adata.obs[name] = adata.obs["sample"]
    message = rf"batch_key={re.escape(repr(name))} is a name with which files cannot store the model"
    with pytest.raises(ValueError, match=message) as refused:
        _validate.obs_codes(adata, name, "batch_key")
    exec(re.search(r"rename the column: (.*)\.$", str(refused.value))[1], {"adata": adata})
    assert _validate.obs_codes(adata, adata.obs.columns[-1], "batch_key")[1].tolist() == ["a", "b"]


@pytest.mark.parametrize("n_cells", [20, 100])
def test_a_column_that_groups_no_cells_is_refused(n_cells):
    adata = ad.AnnData(np.ones((n_cells, 2), dtype=np.float32))
    n_pairs = n_cells // 2
    adata.obs["pair"] = np.arange(n_cells) % n_pairs
    assert len(_validate.obs_codes(adata, "pair", "batch_key")[1]) == n_pairs
    adata.obs["measured"] = np.arange(n_cells) % (n_pairs + 1)
    with pytest.raises(
        ValueError, match=rf"batch_key='measured' has {n_pairs + 1} different values for {n_cells} cells"
    ):
        _validate.obs_codes(adata, "measured", "batch_key")


def test_unused_categories_get_no_code(adata):
    adata.obs["sample"] = pd.Categorical(["c", "b", "c"], categories=["a", "b", "c", "d"])
    codes, categories = _validate.obs_codes(adata, "sample", "batch_key")
    assert (codes.tolist(), categories.tolist()) == ([1, 0, 1], ["b", "c"])


def test_codes_follow_the_categories_of_a_model(adata):
    codes, _ = _validate.obs_codes(adata, "sample", "batch_key", np.array(["x", "b", "a"]))
    assert codes.tolist() == [2, 1, 2]


def test_categories_unknown_to_a_model_are_refused(adata):
    with pytest.raises(ValueError, match=r"categories that the model was not trained on: 'b'\. It knows: 'a', 'z'\."):
        _validate.obs_codes(adata, "sample", "batch_key", np.array(["a", "z"]))


def test_numbers_are_read_column_by_column(adata):
    adata.obs["n"] = [1, 2, 3]
    values = _validate.obs_numbers(adata, ["n", "age"], "continuous_covariate_keys")
    assert values.dtype == np.float64
    assert values.tolist() == [[1, 1.5], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    ("column", "positive", "message"),
    [
        (["a", "b", "c"], False, "holds values of type .*; it must be numeric.*categorical_covariate_keys="),
        ([1.0, np.inf, 1.0], False, "has values that are not finite; correct them"),
        ([1.0, 0.0, 1.0], True, "has values that are not positive and finite; correct them"),
    ],
)
def test_unusable_numbers_are_refused(adata, column, positive, message):
    adata.obs["factor"] = column
    with pytest.raises(ValueError, match=rf"size_factor_key='factor' {message}"):
        _validate.obs_numbers(adata, ["factor"], "size_factor_key", positive=positive)


def test_keys_come_as_one_or_several_but_each_once():
    assert _validate.keys_as_list(None, "keys") == []
    assert _validate.keys_as_list("a", "keys") == ["a"]
    assert _validate.keys_as_list(("a", "b"), "keys") == ["a", "b"]
    with pytest.raises(ValueError, match=r"keys=\['a', 'a'\] names a key twice"):
        _validate.keys_as_list(["a", "a"], "keys")


def test_results_larger_than_the_free_memory_are_refused():
    with pytest.raises(MemoryError, match=r"the layer would take 1048576\.0 GiB, and [\d.]+ GiB .*are free; write it"):
        _validate.check_memory(2**50, "the layer", "write it to disk.")


def test_results_that_fit_into_memory_pass():
    _validate.check_memory(1, "the layer", "write it to disk.")


def test_a_list_where_one_column_belongs_is_refused(small):
    with pytest.raises(TypeError, match=r"batch_key=\['batch', 'cell_type'\].*one that joins"):
        _validate.obs_column(small, ["batch", "cell_type"], "batch_key")
