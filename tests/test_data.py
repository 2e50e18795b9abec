"""From AnnData to minibatches, against dense numpy."""

import itertools

import anndata as ad
import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from scanpy_scvipyro import data

DTYPES = ("bool", "int8", "uint8", "int32", "uint16", "int64", "uint64", "float16", "float32", "float64")
FORMS = {
    "csr_matrix": sparse.csr_matrix,
    "csc_matrix": sparse.csc_matrix,
    "csr_array": sparse.csr_array,
    "csc_array": sparse.csc_array,
    "dense": np.asarray,
    "fortran": np.asfortranarray,
}


def load(adata, **spec):
    genes = np.ones(adata.n_vars, dtype=bool)
    return data.load(adata, data.describe(adata, data.DataSpec(**spec), genes), genes)


def dense_rows(cell_data, rows=None):
    rows = torch.arange(cell_data.n_cells) if rows is None else torch.as_tensor(rows)
    return cell_data.cells(rows).counts.to_dense().numpy()


@st.composite
def counts_and_form(draw):
    """A count matrix in which every cell has a count, as AnnData may hold it, and the same in float64."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    highest = {"b": 1, "i": 127, "u": 255, "f": 2048}[dtype.kind]  # whole numbers up to 2048 are exact in float16
    count = st.one_of(st.just(0), st.integers(0, highest))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9).filter(lambda s: s[0] > 1))
    counts = draw(hnp.arrays(np.float64, shape, elements=count.map(float)))
    counts[np.flatnonzero(counts.sum(axis=1) == 0), draw(st.integers(0, shape[1] - 1))] = 1
    forms = [name for name in FORMS if dtype != np.float16 or name in ("dense", "fortran")]  # scipy has no float16
    return FORMS[draw(st.sampled_from(forms))](counts.astype(dtype)), counts


@given(counts_and_form(), st.data())
@settings(max_examples=150, deadline=None)
def test_cells_are_the_dense_rows_of_any_matrix(matrix_and_counts, draws):
    matrix, counts = matrix_and_counts
    rows = draws.draw(st.lists(st.integers(0, len(counts) - 1), min_size=1, max_size=12))
    cell_data = load(ad.AnnData(matrix))
    cells = cell_data.cells(torch.tensor(rows))
    assert cells.counts.is_coalesced()
    assert cells.counts.dtype == torch.float32
    np.testing.assert_array_equal(cells.counts.to_dense(), counts[rows])
    np.testing.assert_array_equal(cells.library_size, counts[rows].sum(axis=1, keepdims=True))


@given(counts_and_form(), st.data())
@settings(max_examples=50, deadline=None)
def test_genes_are_selected_by_mask_or_position(matrix_and_counts, draws):
    matrix, counts = matrix_and_counts
    matrix, counts = matrix[counts[:, 0] > 0], counts[counts[:, 0] > 0]  # every cell keeps a count
    hypothesis.assume(len(counts))
    mask = draws.draw(hnp.arrays(bool, counts.shape[1]))
    mask[0] = True
    adata = ad.AnnData(matrix)
    spec = data.describe(adata, data.DataSpec(), mask)
    for genes in (mask, np.flatnonzero(mask), None):
        np.testing.assert_array_equal(dense_rows(data.load(adata, spec, genes)), counts[:, mask])


def test_unsorted_indices_and_duplicates_are_summed_in_a_copy():
    matrix = sparse.csr_matrix((np.array([2, 1, 3.0]), np.array([2, 0, 0]), np.array([0, 2, 3])), shape=(2, 3))
    duplicated = sparse.csr_matrix((np.ones(3), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    assert dense_rows(load(ad.AnnData(matrix))).tolist() == [[1, 0, 2], [3, 0, 0]]
    assert dense_rows(load(ad.AnnData(duplicated))).tolist() == [[0, 2], [1, 0]]
    assert matrix.indices.tolist() == [2, 0, 0]
    assert duplicated.data.tolist() == [1, 1, 1]


def test_stored_zeros_are_left_out():
    matrix = sparse.csr_matrix((np.array([0, 1, 3, 0.0]), np.array([0, 1, 0, 1]), np.array([0, 2, 4])), shape=(2, 2))
    assert load(ad.AnnData(matrix)).cells(torch.arange(2)).counts.values().tolist() == [1, 3]
    assert matrix.data.tolist() == [0, 1, 3, 0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_readonly", [True, False])
def test_reading_leaves_the_matrix_untouched(small, form, is_readonly):
    small.X = FORMS[form](small.X.toarray())
    arrays = [small.X.data, small.X.indices, small.X.indptr] if sparse.issparse(small.X) else [small.X]
    before = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = not is_readonly
    cell_data = load(small, batch_key="batch")
    cell_data.cells(torch.arange(5)).counts.mul_(7)
    for array, copy in zip(arrays, before):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable != is_readonly


def test_views_and_layers_are_read(small):
    small.layers["umi"] = small.X.copy()
    small.X = None
    view = small[[5, 3, 80], np.arange(40)[::-1]]
    expected = small.layers["umi"].toarray()[[5, 3, 80], ::-1]
    np.testing.assert_array_equal(dense_rows(load(view, layer="umi")), expected)


def test_covariates_come_with_their_cells(small):
    small.obs["donor"] = np.resize(["x", "y", "z"], small.n_obs)
    small.obs["age"] = np.arange(small.n_obs) / 7
    small.obs["factor"] = np.arange(small.n_obs) + 0.5
    cell_data = load(
        small,
        batch_key="batch",
        labels_key="cell_type",
        categorical_covariate_keys=["donor"],
        continuous_covariate_keys=["age"],
        size_factor_key="factor",
    )
    rows = [7, 3, 3, 88]
    cells = cell_data.cells(torch.tensor(rows))
    obs = small.obs.iloc[rows]
    assert cells.batch.tolist() == obs["batch"].cat.codes.tolist()
    assert cells.label.tolist() == obs["cell_type"].cat.codes.tolist()
    assert cells.categorical[:, 0].tolist() == pd.Categorical(obs["donor"], ["x", "y", "z"]).codes.tolist()
    standardized = (obs["age"] - small.obs["age"].mean()) / small.obs["age"].std(ddof=0)
    np.testing.assert_allclose(cells.continuous[:, 0], standardized, rtol=1e-6)
    np.testing.assert_allclose(cells.library_size[:, 0], obs["factor"])
    np.testing.assert_allclose(cell_data.depth[:, 0], np.ravel(small.X.sum(axis=1)))


@given(st.floats(1e-30, 1e30), st.floats(-1e8, 1e8), st.sampled_from([-1, 1]))
@settings(max_examples=100, deadline=None)
def test_continuous_covariates_may_have_any_scale_and_offset(scale, offset, sign):
    plain = np.random.default_rng(0).normal(size=30)
    adata = ad.AnnData(np.ones((30, 2), dtype=np.float32))
    adata.obs["plain"], adata.obs["moved"] = plain, sign * scale * (plain + offset)
    continuous = load(adata, continuous_covariate_keys=["plain", "moved"]).continuous.numpy()
    np.testing.assert_allclose(continuous[:, 1], sign * continuous[:, 0], atol=1e-6)


def test_a_year_keeps_its_months():
    adata = ad.AnnData(np.ones((4, 2), dtype=np.float32))
    adata.obs["date"] = 2022 + np.arange(4) / 12
    continuous = load(adata, continuous_covariate_keys=["date"]).continuous[:, 0]
    np.testing.assert_allclose(continuous, np.array([-3, -1, 1, 3]) / np.sqrt(5), rtol=1e-6)


@pytest.mark.parametrize("value", [0, 7, 1 / 3, -1e20])
def test_constant_covariates_become_zeros(small, value):
    small.obs["constant"] = float(value)
    small.obs.iloc[3, -1] = np.nextafter(value, np.inf)  # rounding in another program
    spec = data.describe(small, data.DataSpec(continuous_covariate_keys=["constant"]), np.ones(40, dtype=bool))
    assert not data.load(small, spec).continuous.any()
    small.obs["constant"] = np.arange(small.n_obs)  # in a query, of which the model knows nothing
    assert not data.load(small, spec).continuous.any()


def test_covariates_of_other_cells_are_standardized_as_those_trained_on(small):
    small.obs["age"] = 40 + np.arange(small.n_obs) / 7
    spec = data.describe(small, data.DataSpec(continuous_covariate_keys=["age"]), np.ones(40, dtype=bool))
    everything, some = (data.load(cells, spec).continuous for cells in (small, small[60:]))
    assert torch.equal(everything[60:], some)


def test_spec_counts_the_categories_that_occur(small):
    small.obs["batch"] = small.obs["batch"].cat.add_categories("unused")
    spec = data.describe(
        small, data.DataSpec(batch_key="batch", categorical_covariate_keys=["cell_type"]), np.ones(40, dtype=bool)
    )
    assert (spec.n_batches, spec.n_labels, spec.n_categories) == (3, 1, (3,))


def test_genes_are_found_by_name_in_any_order(small):
    spec = data.describe(small, data.DataSpec(), np.ones(small.n_vars, dtype=bool))
    shuffled = small[:, np.random.default_rng(1).permutation(small.n_vars)].copy()
    np.testing.assert_array_equal(dense_rows(data.load(shuffled, spec)), small.X.toarray())


def test_genes_missing_from_another_anndata_are_refused(small):
    spec = data.describe(small, data.DataSpec(), np.ones(small.n_vars, dtype=bool))
    name = small.var_names[-1]
    with pytest.raises(ValueError, match=rf"1 of the 40 genes of the model are not in adata\.var_names.*'{name}'"):
        data.load(small[:, :-1], spec)


def test_duplicate_gene_names_of_another_anndata_are_refused(small):
    spec = data.describe(small, data.DataSpec(), np.ones(small.n_vars, dtype=bool))
    with pytest.warns(UserWarning, match="not unique"):
        twice = ad.concat([small, small[:, :1]], axis="var")
    with pytest.raises(ValueError, match=r"adata\.var_names has duplicates.*var_names_make_unique\(\)"):
        data.load(twice, spec)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_genes_that_a_model_cannot_tell_apart_are_refused_once_they_are_renamed(small):
    small.var_names = [*small.var_names[:-1], small.var_names[0]]
    spec = data.describe(small, data.DataSpec(), np.ones(small.n_vars, dtype=bool))
    data.load(small, spec)
    small.var_names_make_unique()
    with pytest.raises(ValueError, match=r"trained on genes with duplicate names.*train again"):
        data.load(small, spec)


def test_chunks_cover_all_cells_in_order(small):
    cell_data = load(small)
    for rows in (None, torch.tensor([4, 2, 60])):
        parts = [(chunk, cells.counts.to_dense().numpy()) for chunk, cells in cell_data.chunks(rows, n_draws=6000)]
        assert [chunk.start for chunk, _ in parts[1:]] == [chunk.stop for chunk, _ in parts[:-1]]
        expected = small.X.toarray()[slice(None) if rows is None else rows]
        np.testing.assert_array_equal(np.concatenate([counts for _, counts in parts]), expected)
        assert len(parts) > 1 or rows is not None


def test_log_frequencies_are_those_of_the_data(small):
    counts, batch = small.X.toarray().astype(float), small.obs["batch"].cat.codes.to_numpy()
    overall, per_batch = load(small, batch_key="batch").log_frequencies()
    frequency = counts / counts.sum(axis=1, keepdims=True)
    for code in range(3):
        # Half a count of each gene in the whole batch.
        expected = frequency[batch == code].mean(axis=0) + 0.5 / counts[batch == code].sum()
        np.testing.assert_allclose(per_batch[code], np.log(expected / expected.sum()), rtol=1e-5)
    np.testing.assert_allclose(overall.exp(), per_batch.exp().mean(dim=0), rtol=1e-5)


def test_log_frequencies_are_relative_to_size_factors(small):
    depth = np.ravel(small.X.sum(axis=1))
    small.obs["factor"] = depth / 1000
    relative, _ = load(small, size_factor_key="factor").log_frequencies()
    plain, _ = load(small).log_frequencies()
    np.testing.assert_allclose(relative, plain + np.log(1000), rtol=1e-5)


def test_log_library_size_is_that_of_each_batch(small):
    log_depth = pd.Series(np.log(np.ravel(small.X.sum(axis=1))), index=small.obs_names)
    loc, scale = load(small, batch_key="batch").log_library_size()
    by_batch = log_depth.groupby(small.obs["batch"], observed=True)
    np.testing.assert_allclose(loc[:, 0], by_batch.mean(), rtol=1e-5)
    np.testing.assert_allclose(scale[:, 0], by_batch.std(ddof=0), rtol=1e-4)


def test_library_size_of_a_batch_with_one_cell_keeps_some_width(small):
    small.obs["batch"] = ["single"] + ["other"] * (small.n_obs - 1)
    _, scale = load(small, batch_key="batch").log_library_size()
    assert scale.min().item() == pytest.approx(0.01)


@given(st.integers(2, 400), st.integers(2, 200), st.booleans())
@settings(max_examples=100, deadline=None)
def test_minibatches_hold_each_cell_once_and_at_least_two(n_cells, batch_size, is_shuffled):
    cell_data = load(ad.AnnData(np.arange(1, n_cells + 1, dtype=np.float32)[:, None]))
    generator = torch.Generator().manual_seed(0) if is_shuffled else None
    minibatches = data.Minibatches(cell_data, torch.arange(n_cells), batch_size, generator)
    parts = [cells.counts.to_dense()[:, 0].tolist() for cells in minibatches]
    sizes = [len(part) for part in parts]
    assert len(parts) == len(minibatches)
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size + (batch_size == 2)  # an odd cell joins a pair
    assert sorted(itertools.chain(*parts)) == list(range(1, n_cells + 1))


def test_minibatches_are_shuffled_anew_in_each_pass():
    cell_data = load(ad.AnnData(np.arange(1, 101, dtype=np.float32)[:, None]))
    minibatches = data.Minibatches(cell_data, torch.arange(100), 10, torch.Generator().manual_seed(0))
    first, second = ([cells.counts.to_dense()[:, 0].tolist() for cells in minibatches] for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("n_cells", "train_size", "expected"), [(1000, 0.9, 900), (2, 0.01, 2), (10, 0.01, 2), (3, 0.9, 3), (10, 1, 10)]
)
def test_training_cells_are_a_share_but_at_least_two(n_cells, train_size, expected):
    assert data.n_training_cells(n_cells, train_size) == expected


def test_validation_cells_are_held_out_and_depend_on_the_seed(small):
    def split(seed):
        module = data.CellDataModule(load(small), train_size=0.8, batch_size=16, random_state=seed)
        return module.split.training.tolist(), module.split.validation.tolist()

    train, validation = split(0)
    assert sorted(train + validation) == list(range(small.n_obs))
    assert (len(train), len(validation)) == (72, 18)
    assert split(0) == (train, validation)
    assert split(1) != (train, validation)


def test_as_many_training_cells_as_validation_cells_are_evaluated(small):
    module = data.CellDataModule(load(small), train_size=0.8, batch_size=16, random_state=0)
    training, validation = module.split
    (cells, is_validation), *more = module.val_dataloader()
    assert not more
    expected = torch.cat([training[:18], validation])
    torch.testing.assert_close(cells.library_size, module.data.library_size[expected])
    assert is_validation.tolist() == 18 * [False] + 18 * [True]


def test_no_more_cells_are_evaluated_than_the_elbo_needs(small, monkeypatch):
    monkeypatch.setattr(data, "MAX_EVALUATED", 10)
    module = data.CellDataModule(load(small), train_size=0.8, batch_size=64, random_state=0)
    ((_, is_validation),) = module.val_dataloader()
    assert is_validation.tolist() == 10 * [False] + 10 * [True]


def test_without_validation_cells_training_cells_are_evaluated(small):
    module = data.CellDataModule(load(small), train_size=1, batch_size=16, random_state=0)
    ((cells, is_validation),) = module.val_dataloader()
    assert len(cells.batch) == small.n_obs
    assert not is_validation.any()


def test_minibatches_of_evaluated_cells_tell_training_from_validation_cells(small):
    cells = load(small)
    training, validation = torch.arange(20), torch.arange(60, 80)
    parts = [
        data.Evaluated(data.Minibatches(cells, torch.cat([training, validation]), 7, rank=rank, n_ranks=2), validation)
        for rank in range(2)
    ]
    assert [len(part) for part in parts] == [3, 3]
    told = [part for of_rank in parts for part in of_rank]
    depth = {False: [], True: []}
    for minibatch, is_validation in told:
        for held_out in (False, True):
            depth[held_out] += minibatch.library_size[is_validation == held_out].flatten().tolist()
    assert sorted(depth[False]) == sorted(cells.library_size[training].flatten().tolist())
    assert sorted(depth[True]) == sorted(cells.library_size[validation].flatten().tolist())
