"""Training and queries on files, against the same in memory."""

import functools
import hashlib
import threading

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
import zarr
from scipy import sparse

import scanpy_scvipyro as scvip
from scanpy_scvipyro import _lazy, _stored, checkpoint, data, from_disk, outcome
from scanpy_scvipyro.data import CellDataModule, Minibatches

pytest.importorskip("dask", reason="read_lazy needs dask")


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    """Small data then have many blocks and several buffers."""
    monkeypatch.setattr(from_disk, "BLOCK", 16)
    monkeypatch.setattr(from_disk, "BUFFER", 1 << 16)


def opened_zarr(path):
    store = zarr.open_group(path, mode="r")
    others = {name: ad.io.read_elem(store[name]) for name in ("obs", "var", "obsm", "uns")}
    return ad.AnnData(ad.io.sparse_dataset(store["X"]), **others)


FORMS = {
    "backed": lambda path: ad.read_h5ad(path, backed="r"),
    "zarr": lambda path: opened_zarr(path.with_suffix(".zarr")),
    "lazy h5ad": ad.experimental.read_lazy,
    "lazy zarr": lambda path: ad.experimental.read_lazy(path.with_suffix(".zarr")),
    "two lazy files": lambda path: ad.concat(
        [ad.experimental.read_lazy(path.with_name(f"part{i}.h5ad")) for i in range(2)], merge="same", uns_merge="same"
    ),
}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def written(adata, tmp_path, **options):
    adata.write_h5ad(tmp_path / "cells.h5ad", **options)
    adata.write_zarr(tmp_path / "cells.zarr")
    for i, part in enumerate((adata[:40], adata[40:])):
        part.copy().write_h5ad(tmp_path / f"part{i}.h5ad")
    return tmp_path / "cells.h5ad"


def load(adata, genes=None, kept=None, **spec):
    genes = np.ones(adata.n_vars, dtype=bool) if genes is None else genes
    return data.load(adata, data.describe(adata, data.DataSpec(**spec), genes), genes, kept=kept, show=False)


def dense(cells):
    return cells.counts.to_dense().numpy()


class TestReading:
    @pytest.mark.parametrize("mask", [False, True], ids=["all genes", "masked"])
    @pytest.mark.parametrize("compression", [None, "gzip"])
    def test_cells_are_those_in_memory(self, small, tmp_path, form, mask, compression):
        genes = np.arange(small.n_vars) % 3 != 1 if mask else None
        opened = form(written(small, tmp_path, compression=compression))
        on_disk, in_memory = (
            load(adata, genes, batch_key="batch", labels_key="cell_type") for adata in (opened, small)
        )
        assert isinstance(on_disk.counts, from_disk.OnDisk)
        for rows in (torch.arange(90), torch.tensor([70, 3, 3, 41, 40, 39, 0])):
            ours, theirs = on_disk.cells(rows), in_memory.cells(rows)
            assert ours.counts.is_coalesced()
            np.testing.assert_array_equal(dense(ours), dense(theirs))
            for part, other in zip(ours[1:], theirs[1:]):
                torch.testing.assert_close(part, other)
        torch.testing.assert_close(on_disk.depth, in_memory.depth)

    def test_sums_are_those_in_memory(self, small, tmp_path, form):
        opened = form(written(small, tmp_path))
        on_disk, in_memory = (load(adata, batch_key="batch") for adata in (opened, small))
        for ours, theirs in zip(on_disk.totals, in_memory.totals):
            torch.testing.assert_close(ours, theirs)
        other = torch.arange(90) % 4
        for ours, theirs in zip(on_disk.counts.totals(other), in_memory.counts.totals(other)):
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("name", ["backed", "lazy h5ad", "lazy zarr"])
    def test_layers_are_read(self, small, tmp_path, name):
        small.layers["umi"], small.X = small.X.copy(), sparse.csr_matrix(small.shape, dtype=np.float32)
        opened = FORMS[name](written(small, tmp_path))
        np.testing.assert_array_equal(
            dense(load(opened, layer="umi").cells(torch.arange(5))), small.layers["umi"][:5].toarray()
        )

    @pytest.mark.parametrize("name", ["backed", "lazy h5ad", "lazy zarr"])
    def test_dense_matrices_are_read(self, small, tmp_path, name):
        small.X = small.X.toarray()
        opened = FORMS[name](written(small, tmp_path))
        np.testing.assert_array_equal(dense(load(opened).cells(torch.arange(30, 50))), small.X[30:50])

    @pytest.mark.parametrize("name", ["backed", "lazy h5ad"])
    def test_unsorted_repeated_and_zero_entries_are_read_as_in_memory(self, tmp_path, name):
        parts = (np.array([2, 1, 0, 3, 4.0]), np.array([2, 0, 1, 1, 1]), np.array([0, 3, 5]))
        adata = ad.AnnData(sparse.csr_matrix((2, 3), dtype=np.float32))
        path = written(adata, tmp_path)
        with h5py.File(path, "a") as file:
            for entry, values in zip(("data", "indices", "indptr"), parts):
                del file["X"][entry]
                file["X"][entry] = values
        cells = load(FORMS[name](path)).cells(torch.arange(2))
        assert dense(cells).tolist() == [[1, 0, 2], [0, 7, 0]]
        assert cells.counts.values().tolist() == [1, 2, 7]

    def test_only_needed_columns_of_obs_are_read(self, small, tmp_path, monkeypatch):
        opened = FORMS["lazy h5ad"](written(small, tmp_path))
        asked = []
        read = type(opened.obs).to_memory
        monkeypatch.setattr(
            type(opened.obs), "to_memory", lambda table: asked.append(set(table.columns)) or read(table)
        )
        load(opened, batch_key="batch")
        assert set().union(*asked) == {"batch"}

    def test_the_same_counts_go_on_with_a_run(self, small, tmp_path, form):
        opened = form(written(small, tmp_path))
        fingerprints = [checkpoint._of_counts(load(adata)) for adata in (opened, small)]
        assert fingerprints[0] == fingerprints[1]


class TestMinibatches:
    def parts(self, cell_data, seed=0, rows=None, batch_size=7):
        rows = torch.arange(cell_data.n_cells) if rows is None else rows
        minibatches = Minibatches(cell_data, rows, batch_size, torch.Generator().manual_seed(seed))
        return [dense(cells) for cells in minibatches]

    def test_each_cell_is_in_one_of_them(self, mixtures, tmp_path, form):
        cell_data = load(form(written(mixtures, tmp_path)))
        rows = torch.randperm(mixtures.n_obs)[:1200]
        parts = self.parts(cell_data, rows=rows, batch_size=64)
        assert {len(part) for part in parts} == {63, 64}
        found, expected = np.concatenate(parts), mixtures.X[rows.numpy()].toarray()
        assert sorted(map(bytes, found)) == sorted(map(bytes, expected))

    def test_processes_share_all_cells(self, mixtures, tmp_path):
        cell_data, seen = load(FORMS["backed"](written(mixtures, tmp_path))), []
        for rank in range(3):
            generator = torch.Generator().manual_seed(3)
            part = Minibatches(cell_data, torch.arange(1300), 32, generator, rank=rank, n_ranks=3)
            seen.append([dense(cells) for cells in part])
        assert {len(minibatches) for minibatches in seen} == {14}
        found = np.concatenate([cells for of_rank in seen for cells in of_rank])
        assert sorted(map(bytes, found)) == sorted(map(bytes, mixtures.X[:1300].toarray()))

    def test_cells_in_order_take_an_eighth_of_the_buffer(self, mixtures, tmp_path, monkeypatch):
        monkeypatch.setattr(from_disk, "BUFFER", 1 << 19)
        cell_data, n_read = load(FORMS["backed"](written(mixtures, tmp_path))), []
        read = cell_data.counts._read
        monkeypatch.setattr(cell_data.counts, "_read", lambda rows: n_read.append(len(rows)) or read(rows))
        for parts in (torch.arange(mixtures.n_obs).split(7), torch.arange(mixtures.n_obs).flip(0).split(7)):
            n_read.clear()
            assert sum(part.shape[0] for part in cell_data.counts.minibatches(parts)) == mixtures.n_obs
            share = 8 if parts[0][0] == 0 else 1
            assert max(n_read) == cell_data.counts._buffer_size // share // 7 * 7

    def test_blocks_are_no_small_part_of_what_is_compressed_together(self, mixtures, tmp_path):
        store, n_values = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=2), mixtures.X.nnz
        for n_cells, block in ((200, 50), (10, from_disk.BLOCK)):
            chunks = {"chunks": (n_values * n_cells // mixtures.n_obs,)}
            ad.io.write_elem(store, f"of {n_cells}", mixtures.X, dataset_kwargs=chunks)
            on_disk = load(ad.AnnData(ad.io.sparse_dataset(store[f"of {n_cells}"])))
            sizes = np.diff(on_disk.counts.bounds)
            assert abs(sizes[0] - block) <= 1
            assert len(set(sizes[:-1])) == 1

    def test_neighbouring_blocks_are_read_at_once(self, mixtures, tmp_path, monkeypatch):
        counts, asked = load(FORMS["backed"](written(mixtures, tmp_path))).counts, []
        read = counts._read_all
        monkeypatch.setattr(counts, "_read_all", lambda *ends: asked.append(ends) or read(*ends))
        rows = torch.cat([torch.arange(20, 300), torch.arange(340, 350), torch.arange(352, 353)])
        np.testing.assert_array_equal(counts.coo(rows).to_dense(), mixtures.X[rows.numpy()].toarray())
        assert asked == [(20, 128), (128, 256), (256, 300), (340, 353)]
        asked.clear()
        assert sum(part.n_cells for _, part in counts.blocks()) == mixtures.n_obs
        assert len(asked) == -(-mixtures.n_obs // 128)

    def test_order_follows_from_the_seed(self, mixtures, tmp_path):
        cell_data = load(FORMS["backed"](written(mixtures, tmp_path)))
        first, again, other = (np.concatenate(self.parts(cell_data, seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any(axis=1).mean() > 0.9

    def test_cells_of_a_minibatch_are_from_many_places(self, mixtures, tmp_path):
        cell_data = load(FORMS["backed"](written(mixtures, tmp_path)))
        generator = torch.Generator().manual_seed(0)
        parts = cell_data.counts.shuffled(torch.arange(mixtures.n_obs), 21, 1, generator)[0]
        assert len(cell_data.counts._buffers(parts, cell_data.counts._buffer_size)) > 3
        n_blocks = [len((part // from_disk.BLOCK).unique()) for part in parts]
        in_buffer = cell_data.counts._buffer_size / from_disk.BLOCK
        assert min(n_blocks) > 0.6 * in_buffer

    def test_cells_that_are_asked_for_again_stay_in_memory(self, mixtures, tmp_path, form, monkeypatch):
        kept = torch.tensor([1209, 3, 700, 3, 0])
        cell_data = load(form(written(mixtures, tmp_path)), kept=kept)
        n_asked, read = [], cell_data.counts._counts
        monkeypatch.setattr(cell_data.counts, "_counts", lambda *rows: n_asked.append(rows) or read(*rows))
        for rows in (kept, torch.tensor([700, 1209])):
            np.testing.assert_array_equal(dense(cell_data.cells(rows)), mixtures.X[rows.numpy()].toarray())
        assert not n_asked
        np.testing.assert_array_equal(dense(cell_data.cells(torch.tensor([3, 4]))), mixtures.X[[3, 4]].toarray())
        assert n_asked

    def test_evaluated_cells_are_those_in_memory(self, mixtures, tmp_path, monkeypatch):
        in_memory = CellDataModule(load(mixtures), train_size=0.9, batch_size=64, random_state=0)
        kept = torch.cat(in_memory.split.evaluated)
        cell_data = load(FORMS["backed"](written(mixtures, tmp_path)), kept=kept)
        monkeypatch.setattr(from_disk.OnDisk, "_counts", None)
        on_disk = CellDataModule(cell_data, train_size=0.9, batch_size=64, random_state=0)
        for (found, _), (expected, _) in zip(on_disk.val_dataloader(), in_memory.val_dataloader(), strict=True):
            np.testing.assert_array_equal(dense(found), dense(expected))

    @pytest.mark.parametrize("share", [0.9, 1.0])
    def test_training_reads_all_cells_for_checks_and_for_codes_alone(self, mixtures, tmp_path, monkeypatch, share):
        monkeypatch.setattr(from_disk, "BUFFER", 1 << 28)  # of which blocks are no parts
        monkeypatch.setattr(data, "MAX_EVALUATED", 30)
        monkeypatch.setattr(outcome, "judged", lambda n_cells: np.arange(0, n_cells, 50))
        opened, n_read, read = FORMS["backed"](written(mixtures, tmp_path)), [], from_disk.OnDisk._stored
        monkeypatch.setattr(from_disk.OnDisk, "_stored", lambda *rows: n_read.append(rows[2] - rows[1]) or read(*rows))
        scvip.tl.scvi_pyro(opened, max_epochs=2, train_size=share, impute=False, progress_bar=False)
        n_trained = round(share * mixtures.n_obs)
        assert 2 * mixtures.n_obs + 2 * n_trained <= sum(n_read) <= 4 * mixtures.n_obs


class TestAhead:
    def test_one_call_is_made_ahead(self):
        second_began = threading.Event()
        results = from_disk.ahead(lambda x: (second_began.set() if x == 2 else None, x)[1], [1, 2, 3])
        assert next(results) == 1
        assert second_began.wait(5)
        assert list(results) == [2, 3]

    def test_errors_are_raised_and_the_thread_ends(self):
        before = threading.active_count()
        with pytest.raises(ZeroDivisionError):
            list(from_disk.ahead(lambda x: 1 / x, [1, 0, 1]))
        results = from_disk.ahead(lambda x: x, range(10))
        next(results)
        results.close()
        assert threading.active_count() == before


class TestTraining:
    def test_same_seed_same_bits(self, small, tmp_path, form, train_quickly):
        path = written(small, tmp_path)
        first, again = form(path), form(path)
        for adata in (first, again):
            train_quickly(adata, batch_key="batch", impute=False)
        np.testing.assert_array_equal(first.obsm["X_scvi_pyro"], again.obsm["X_scvi_pyro"])
        for name, weights in first.uns["scvi_pyro"]["weights"].items():
            np.testing.assert_array_equal(weights, again.uns["scvi_pyro"]["weights"][name])

    def test_the_file_stays_as_it_is(self, small, tmp_path, train_quickly):
        path = written(small, tmp_path)
        before = hashlib.sha256(path.read_bytes()).digest()
        backed = FORMS["backed"](path)
        train_quickly(backed, batch_key="batch", impute=False)
        scvip.tl.score_cells(backed, progress_bar=False)
        backed.file.close()
        assert hashlib.sha256(path.read_bytes()).digest() == before

    def test_one_buffer_is_as_random_as_memory(self, small, tmp_path, monkeypatch, train_quickly):
        monkeypatch.setattr(from_disk, "BUFFER", 1 << 27)
        cell_data = load(FORMS["backed"](written(small, tmp_path)))
        parts = cell_data.counts.shuffled(torch.arange(90), 5, 1, torch.Generator().manual_seed(0))[0]
        assert len(cell_data.counts._buffers(parts, cell_data.counts._buffer_size)) == 1

    @pytest.mark.slow
    def test_sorted_files_train_as_well_as_memory(self, simulated, tmp_path, monkeypatch):
        monkeypatch.setattr(from_disk, "BLOCK", 4)
        monkeypatch.setattr(from_disk, "BUFFER", 1 << 17)
        ordered = simulated[simulated.obs.sort_values(["batch", "group"]).index].copy()
        path, elbo = written(ordered, tmp_path), {"disk": [], "memory": []}
        options = {"batch_size": 16, "max_epochs": 10, "impute": False, "progress_bar": False}
        for seed in range(3):
            for name, adata in (("disk", FORMS["backed"](path)), ("memory", ordered.copy())):
                scvip.tl.scvi_pyro(adata, **options, random_state=seed)
                elbo[name].append(adata.uns["scvi_pyro"]["history"]["validation_elbo"].iloc[-1])
        lost = np.mean(elbo["memory"]) - np.mean(elbo["disk"])
        assert lost < max(np.ptp(elbo["memory"]), 1.0), elbo

    def test_labels_are_learnt(self, mixtures, tmp_path):
        mixtures.obs["known"] = mixtures.obs["cell_type"].where(mixtures.obs["batch"] == "10x_3cl")
        options = {"labels_key": "known", "batch_key": "batch", "max_epochs": 5, "impute": False, "progress_bar": False}
        path = written(mixtures, tmp_path)
        for name in ("backed", "lazy h5ad"):
            opened = FORMS[name](path)
            scvip.tl.scanvi_pyro(opened, **options)
            predicted = np.asarray(opened.obs["scanvi_pyro"])
            assert (predicted == mixtures.obs["cell_type"].to_numpy()).mean() > 0.9
            assert opened.obsm["scanvi_pyro_probabilities"].shape == (mixtures.n_obs, 3)


class TestQueries:
    """Of a model that travels in the file."""

    @pytest.fixture
    def pair(self, trained, tmp_path, form):
        del trained.layers["scvi_pyro_imputed"]
        return form(written(trained, tmp_path)), trained

    def test_codes_and_scores_are_those_in_memory(self, pair):
        for adata in pair:
            scvip.tl.latent(adata, n_samples=2)
            scvip.tl.score_cells(adata, progress_bar=False)
        ours, theirs = pair
        for key in ("X_scvi_pyro", "X_scvi_pyro_var", "X_scvi_pyro_samples"):
            np.testing.assert_allclose(ours.obsm[key], theirs.obsm[key], rtol=1e-4, atol=1e-5)
        for key in ("scvi_pyro_elbo", "scvi_pyro_reconstruction", "scvi_pyro_kl", "scvi_pyro_uncertainty"):
            np.testing.assert_allclose(np.asarray(ours.obs[key]), theirs.obs[key], rtol=1e-4, atol=1e-3)

    def test_codes_and_scores_read_each_cell_once(self, pair, monkeypatch):
        opened, n_read, read = pair[0], [], from_disk.OnDisk._stored
        monkeypatch.setattr(from_disk, "BUFFER", 1 << 28)  # of which blocks are no parts
        monkeypatch.setattr(from_disk.OnDisk, "_stored", lambda *rows: n_read.append(rows[2] - rows[1]) or read(*rows))
        n_times = 2 if _lazy.is_dask(opened.X) else 1  # which reads all cells for the checks alone
        for ask in (scvip.tl.latent, functools.partial(scvip.tl.score_cells, progress_bar=False)):
            n_read.clear()
            ask(opened)
            assert sum(n_read) == n_times * opened.n_obs

    def test_expression_in_a_store_is_that_in_memory(self, pair, tmp_path):
        ours, theirs = pair
        scvip.tl.impute(ours, transform_batch="all", out=tmp_path / "imputed.zarr", progress_bar=False)
        scvip.tl.impute(theirs, transform_batch="all", progress_bar=False)
        store = ad.read_zarr(tmp_path / "imputed.zarr")
        np.testing.assert_allclose(store.X, theirs.layers["scvi_pyro_imputed"], rtol=1e-4, atol=1e-5)
        assert store.obs_names.equals(theirs.obs_names)

    def test_ranked_genes_are_those_in_memory(self, pair):
        for adata in pair:
            scvip.tl.rank_genes_groups(adata, "cell_type", n_samples=500, pts=True, progress_bar=False)
        ours, theirs = (sc.get.rank_genes_groups_df(a, "HCC827", key="rank_genes_groups_scvi_pyro") for a in pair)
        pd.testing.assert_frame_equal(
            ours.set_index("names"), theirs.set_index("names"), check_like=True, rtol=1e-3, atol=1e-4
        )

    def test_the_model_can_be_stored_as_a_file(self, pair, tmp_path):
        scvip.write_model(pair[0], tmp_path / "model.safetensors")
        assert _stored.names(scvip.read_model(tmp_path / "model.safetensors")) == ["scvi_pyro"]


@pytest.mark.parametrize("name", ["backed", "lazy h5ad"])
def test_abundance_is_that_in_memory(tmp_path, name, train_quickly):
    adata = scvip.datasets.donors(n_cells=40)
    train_quickly(adata, batch_key="donor", impute=False)
    opened = FORMS[name](written(adata, tmp_path))
    for each in (opened, adata):
        scvip.tl.differential_abundance(
            each, "condition", sample_key="donor", reference="control", groupby="cell_type", n_neighbors=50
        )
    for column in ("scvi_pyro_da_lfc", "scvi_pyro_da_fdr"):
        np.testing.assert_allclose(np.asarray(opened.obs[column]), adata.obs[column], rtol=1e-5)
    pd.testing.assert_frame_equal(opened.uns["scvi_pyro_da"]["labels"], adata.uns["scvi_pyro_da"]["labels"])
    assert len(scvip.pl.abundance(opened, max_cells=100, show=False)) == 2


@pytest.mark.filterwarnings("ignore:Consolidated metadata")  # of what annbatch writes
def test_collections_of_annbatch_are_read(small, tmp_path, train_quickly):
    annbatch = pytest.importorskip("annbatch", reason="needs Python 3.12")
    path = written(small, tmp_path)
    collection = annbatch.DatasetCollection(tmp_path / "collection.zarr")
    collection.add_adatas([path.with_name("part0.h5ad"), path.with_name("part1.h5ad")])
    opened = ad.concat([ad.experimental.read_lazy(group) for group in collection], merge="same")
    assert not opened.obs_names.equals(small.obs_names)
    cells = load(opened, batch_key="batch").cells(torch.arange(90))
    ordered = small[opened.obs_names]
    np.testing.assert_array_equal(dense(cells), ordered.X.toarray())
    assert cells.batch.tolist() == ordered.obs["batch"].cat.codes.tolist()
    train_quickly(opened, batch_key="batch", impute=False)
    scvip.tl.latent(opened, key_added="again")
    np.testing.assert_allclose(opened.obsm["X_again"], opened.obsm["X_scvi_pyro"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_missing", [0, 100])
@pytest.mark.parametrize("name", ["backed", "lazy zarr"])
def test_queries_are_mapped(mixtures, tmp_path, train_quickly, name, n_missing):
    reference, query = mixtures[::2].copy(), mixtures[1::2, n_missing:].copy()
    train_quickly(reference, batch_key="batch", impute=False)
    query.obs["batch"] = np.where(query.obs["batch"] == "10x_3cl", "10x_3cl", "new")
    opened = FORMS[name](written(query, tmp_path))
    for cells in (opened, query):
        scvip.tl.map_query(cells, reference, missing_genes="impute", max_epochs=2, impute=False, progress_bar=False)
    known = (query.obs["batch"] == "10x_3cl").to_numpy()
    assert opened.uns["scvi_pyro"]["categories"]["batch"].tolist()[-1] == "new"
    np.testing.assert_allclose(
        opened.obsm["X_scvi_pyro"][known], query.obsm["X_scvi_pyro"][known], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", ["backed", "lazy h5ad"])
def test_a_report_is_written(trained_small, tmp_path, name):
    del trained_small.layers["scvi_pyro_imputed"]
    opened = FORMS[name](written(trained_small, tmp_path))
    scvip.pl.report(opened, labels_key="cell_type", path=tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<img ") == 10


class TestRefusals:
    @pytest.fixture(params=["backed", "zarr", "lazy h5ad", "lazy zarr"])
    def opened_as(self, request):
        return FORMS[request.param]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (-1, r"adata\.X has negative values: -1.* in cell 'c37'"),
            (np.nan, r"adata\.X has NaN or infinite values: nan in cell 'c37'"),
            (1.5, r"adata\.X has values that are not whole numbers, for example 1\.5"),
        ],
    )
    def test_what_is_no_count(self, small, tmp_path, opened_as, value, message, train_quickly):
        small.obs_names = [f"c{i}" for i in range(small.n_obs)]
        small.X[37, 0] = value
        opened = opened_as(written(small, tmp_path))
        with pytest.raises(ValueError, match=message):
            train_quickly(opened, impute=False)
        assert "scvi_pyro" not in opened.uns

    @pytest.mark.parametrize("function", ["latent", "score_cells"])
    def test_what_is_no_count_for_a_known_model(self, trained_small, tmp_path, opened_as, function):
        trained_small.obs_names = [f"c{i}" for i in range(trained_small.n_obs)]
        trained_small.X[37, 0] = -1
        opened = opened_as(written(trained_small, tmp_path))
        before = np.asarray(opened.obsm["X_scvi_pyro"])
        with pytest.raises(ValueError, match=r"adata\.X has negative values: -1.* in cell 'c37'"):
            getattr(scvip.tl, function)(opened)
        np.testing.assert_array_equal(np.asarray(opened.obsm["X_scvi_pyro"]), before)
        assert "scvi_pyro_elbo" not in opened.obs

    @pytest.mark.parametrize("function", ["latent", "score_cells"])
    def test_empty_cells_for_a_known_model(self, trained_small, tmp_path, opened_as, function):
        counts = trained_small.X.toarray()
        counts[[50, 70]] = 0
        trained_small.X = sparse.csr_matrix(counts)
        opened = opened_as(written(trained_small, tmp_path))
        message = rf"2 of 90 cells have no counts in adata\.X.* {trained_small.obs_names[50]!r}"
        with pytest.raises(ValueError, match=message):
            getattr(scvip.tl, function)(opened)
        assert "scvi_pyro_elbo" not in opened.obs

    def test_empty_cells(self, small, tmp_path, opened_as):
        counts = small.X.toarray()
        counts[[50, 70]] = 0
        small.X = sparse.csr_matrix(counts)
        opened = opened_as(written(small, tmp_path))
        with pytest.raises(ValueError, match=rf"2 of 90 cells have no counts in adata\.X.* {small.obs_names[50]!r}"):
            load(opened)

    def test_counts_stored_by_gene(self, small, tmp_path, opened_as):
        small.X = small.X.tocsc()
        path = written(small, tmp_path)
        with pytest.raises(ValueError, match=r"stored gene by gene \(CSC\).*: a = ad\.read_h5ad") as refused:
            load(opened_as(path))
        exec(str(refused.value).split("once: ")[1].rstrip("."), {"ad": ad, "path": path})
        assert isinstance(load(FORMS["backed"]("by_cell.h5ad")).counts, from_disk.OnDisk)

    def test_imputed_layer(self, small, tmp_path, opened_as, train_quickly):
        opened = opened_as(written(small, tmp_path))
        with pytest.raises(
            ValueError, match=r"cells of adata are on disk.*impute=False.*tl\.impute\(adata, out=path\)"
        ):
            train_quickly(opened)
        train_quickly(opened, impute=False)
        with pytest.raises(ValueError, match=r"cells of adata are on disk.*pass out="):
            scvip.tl.impute(opened)
        with pytest.raises(ValueError, match=r"cells of adata are on disk.*impute=False"):
            scvip.tl.map_query(opened, opened)

    def test_functions_that_write_layers(self, small, tmp_path, opened_as):
        with pytest.raises(ValueError, match=r"the cells of adata are on disk; .*adata\.to_memory\(\)"):
            scvip.tl.posterior_predictive(opened_as(written(small, tmp_path)))

    def test_copies_of_a_backed_file(self, small, tmp_path, train_quickly):
        with pytest.raises(ValueError, match=r"scvi_pyro\(copy=True\) would copy the file"):
            train_quickly(FORMS["backed"](written(small, tmp_path)), copy=True)

    def test_parts_of_a_backed_file(self, small, tmp_path, train_quickly):
        path = written(small, tmp_path)
        with pytest.raises(ValueError, match=r"a part of a backed AnnData.*read_lazy\(path\)"):
            train_quickly(FORMS["backed"](path)[:50], impute=False)
        part = FORMS["lazy h5ad"](path)[:50].copy()
        train_quickly(part, impute=False)
        assert part.obsm["X_scvi_pyro"].shape == (50, 10)

    @pytest.mark.parametrize("several", [list, ad.experimental.AnnCollection])
    def test_files_that_are_not_one(self, small, several, train_quickly):
        with pytest.raises(TypeError, match=rf"adata is a {several.__name__}.*anndata\.concat\(\[.*read_lazy\(path\)"):
            train_quickly(several([small[:40].copy(), small[40:].copy()]), impute=False)


def test_the_reading_thread_computes_alone_and_leaves_other_threads_their_number():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert list(from_disk.ahead(lambda _: torch.get_num_threads(), range(2))) == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
