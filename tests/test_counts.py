"""Counts: what is read, and what is refused, with where they may be."""

import re

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scanpy_scvipyro import _counts


def read_counts(adata, layer=None, genes=None):
    genes = np.ones(adata.n_vars, dtype=bool) if genes is None else genes
    return _counts.read_counts(adata, *_counts.find(adata, layer), genes)


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float32, np.float64])
def test_negative_counts_are_refused_with_the_cell(adata, dtype):
    adata.X = adata.X.astype(dtype)
    adata.X[2, 1] = -1
    with pytest.raises(ValueError, match=r"adata\.X has negative values: -1.* in cell 'c2' \(column 1 .*pass raw"):
        read_counts(adata)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_nan_and_infinite_counts_are_refused_with_the_cell(adata, value, is_sparse):
    adata.X[1, 0] = value
    adata.X = adata.X if is_sparse else adata.X.toarray()
    with pytest.raises(ValueError, match=rf"adata\.X has NaN or infinite values: {value} in cell 'c1'"):
        read_counts(adata)


def test_fractions_are_refused_as_normalized_data(adata):
    adata.X[0, 1] = 1.37
    with pytest.raises(ValueError, match=r"not whole numbers, for example 1\.37; it looks like normalized data"):
        read_counts(adata)


def test_fractions_are_refused_with_the_digits_that_tell_them_from_whole_numbers(adata):
    adata.X[0, 1] = 1.000005
    with pytest.raises(ValueError, match=r"not whole numbers, for example 1\.000005;"):
        read_counts(adata)


@pytest.mark.parametrize("is_sparse", [True, False])
def test_errors_of_rounding_are_taken_out_of_counts_and_left_in_adata(adata, is_sparse):
    counts = np.array([[0, 2, 1], [3, 0, 70_001], [12_345, 1, 4]], dtype=np.float32)
    there_and_back = np.expm1(np.log1p(counts / 7 * 1e4)) / 1e4 * 7
    there_and_back[0, 0] = -1e-9
    assert not np.array_equal(there_and_back, counts)
    adata.X = sparse.csr_matrix(there_and_back) if is_sparse else there_and_back
    read = read_counts(adata)
    np.testing.assert_array_equal(read.toarray(), counts)
    assert read.nnz == np.count_nonzero(counts)
    np.testing.assert_array_equal(adata.X.toarray() if is_sparse else adata.X, there_and_back)


def test_counts_with_errors_of_rounding_are_pointed_to(adata):
    adata.layers["back"] = adata.X * np.float32(1 + 2e-7)
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match=r"Whole numbers are in: layer='back'"):
        read_counts(adata)


def test_refusal_points_to_the_layer_and_raw_with_counts(adata):
    adata.layers["umi"] = adata.X.copy()
    adata.layers["scaled"] = adata.X * 0.3
    adata.raw = adata
    adata.X = adata.X * 0.5
    with pytest.raises(
        ValueError, match=r"Whole numbers are in: layer='umi', adata\.raw \(take.* put them into adata\.X"
    ):
        read_counts(adata)


def test_the_advice_on_counts_in_raw_works_where_raw_has_more_genes(adata):
    raw, kept = adata, adata[:, ["g2", "g0"]].copy()
    kept.raw = raw
    kept.X = kept.X * 0.5
    with pytest.raises(ValueError, match=r"normalized data") as refused:
        read_counts(kept)
    exec(re.search(r"take them by (.*\.X)\)", str(refused.value))[1], {"adata": kept})
    np.testing.assert_array_equal(read_counts(kept, "counts").toarray(), raw.X.toarray()[:, [2, 0]])


def test_refusal_does_not_point_to_what_was_refused():
    counts = np.ones((200, 2), dtype=np.float32)
    counts[150, 0] = -1
    with pytest.raises(ValueError, match=r"adata\.X has negative values") as refused:
        read_counts(ad.AnnData(counts))
    assert "Whole numbers" not in str(refused.value)


def test_missing_layer_is_refused_with_where_counts_may_be(adata):
    with pytest.raises(KeyError, match=r"layer='counts' .*There is: nothing\. Whole numbers are in: adata\.X\."):
        read_counts(adata, layer="counts")


def test_refusal_says_how_to_keep_counts_where_there_are_none(adata):
    adata.X = adata.X * 0.5
    with pytest.raises(ValueError, match=r"adata\.layers\['counts'\] = adata\.X\.copy\(\), then pass layer='counts'"):
        read_counts(adata)


def test_wrong_value_far_into_a_large_matrix_is_found(adata):
    counts = sparse.csr_matrix(np.ones((2200, 2000), dtype=np.int8))
    counts.data[-1] = -1
    large = ad.AnnData(counts)
    with pytest.raises(ValueError, match=r"negative values: -1 in cell '2199' \(column 1999"):
        read_counts(large)


def test_values_outside_of_the_selected_genes_are_not_refused(adata):
    adata.X[0, 2] = np.nan
    assert read_counts(adata, genes=np.array([True, True, False])).shape == (3, 2)


def test_cells_without_counts_are_refused_with_a_remedy(adata):
    adata.X[1, 0] = 0
    with pytest.raises(ValueError, match=r"1 of \d+ cells have no counts in adata\.X, the first is 'c1'; .*filter"):
        read_counts(adata)


def test_cells_without_counts_in_the_selected_genes_are_refused(adata):
    with pytest.raises(ValueError, match=r"no counts in the selected genes.*'c1'.*or select more genes"):
        read_counts(adata, genes=np.array([False, True, True]))


def test_missing_layer_is_refused_with_the_nearest(adata):
    adata.layers["counts"] = adata.X.copy()
    with pytest.raises(KeyError, match=r"layer='count' is not in adata\.layers\. Did you mean 'counts'\?"):
        read_counts(adata, layer="count")


def test_missing_matrix_is_refused(adata):
    empty = ad.AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    with pytest.raises(ValueError, match=r"adata\.X is empty; pass layer=.*Whole numbers are in: layer='counts'"):
        read_counts(empty)


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", object])
def test_values_that_are_no_numbers_are_refused(adata, dtype):
    adata.layers["odd"] = adata.X.toarray().astype(int).astype(dtype)
    with pytest.raises(TypeError, match=r"adata\.layers\['odd'\] holds values of type .*; pass integer or float"):
        read_counts(adata, layer="odd")


def test_repeated_entries_of_a_small_type_are_summed_without_overflow():
    matrix = sparse.csr_matrix(
        (np.array([100, 100, 1], np.int8), np.array([0, 0, 1]), np.array([0, 2, 3])), shape=(2, 2)
    )
    adata = ad.AnnData(sparse.csr_matrix((2, 2), dtype=np.float32))
    adata.layers["counts"] = matrix
    read = _counts.read_counts(adata, *_counts.find(adata, "counts"), np.ones(2, dtype=bool))
    np.testing.assert_array_equal(read.toarray(), [[200, 0], [0, 1]])
    np.testing.assert_array_equal(matrix.data, [100, 100, 1])


@pytest.mark.parametrize("genes", [np.ones(3, dtype=bool), np.arange(3)], ids=["mask", "positions"])
def test_counts_of_all_genes_are_not_copied(adata, genes):
    assert np.shares_memory(read_counts(adata, genes=genes).data, adata.X.data)


def test_genes_in_another_order_are_read_in_theirs(adata):
    np.testing.assert_array_equal(read_counts(adata, genes=np.array([2, 0])).toarray(), [[1, 0], [0, 3], [4, 1]])
