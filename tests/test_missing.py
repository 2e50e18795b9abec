"""Queries without some genes of the reference, or with other names for them."""

import re

import numpy as np
import pytest
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, missing, storage


@pytest.fixture(scope="module")
def _halves(_mixtures):
    reference, query = _mixtures[::2].copy(), _mixtures[1::2].copy()
    scvip.tl.scvi_pyro(reference, batch_key="batch", max_epochs=20, impute=False, progress_bar=False)
    return reference, query


@pytest.fixture
def reference(_halves):
    return _halves[0].copy()


@pytest.fixture
def query(_halves):
    return _halves[1].copy()


def without(query, share):
    """Leave genes out at random."""
    return query[:, np.random.default_rng(0).random(query.n_vars) >= share].copy()


def completed(reference, query):
    """Cells with all genes of the reference, and which of them the query has."""
    model, known = storage.from_uns(reference, "scvi_pyro")
    measured = np.isin(known.genes, query.var_names)
    positions = query.var_names.get_indexer(known.genes[measured])
    cells = data.load(query, data.describe_more(query, known), positions)
    return missing.completed(model, cells, torch.from_numpy(measured), known), measured


def test_codes_without_some_genes_are_nearer_to_those_of_all_than_with_zeros(reference, query):
    thinned = without(query, 0.2)
    zeros = query.copy()
    zeros.X = zeros.X.multiply(query.var_names.isin(thinned.var_names)).tocsr()
    scvip.tl.map_query(query, reference)
    scvip.tl.map_query(zeros, reference)
    scvip.tl.map_query(thinned, reference, missing_genes="impute")
    codes = query.obsm["X_scvi_pyro"]
    moved, moved_by_zeros = (np.linalg.norm(a.obsm["X_scvi_pyro"] - codes, axis=1).mean() for a in (thinned, zeros))
    assert moved < moved_by_zeros


def test_cells_without_half_of_the_genes_lie_among_their_line(reference, query):
    query = without(query, 0.5)
    scvip.tl.map_query(query, reference, missing_genes="impute")
    distance = np.linalg.norm(query.obsm["X_scvi_pyro"][:, None] - reference.obsm["X_scvi_pyro"][None], axis=2)
    assert (reference.obs["cell_type"].to_numpy()[distance.argmin(axis=1)] == query.obs["cell_type"]).mean() > 0.97


def test_library_sizes_are_on_the_scale_of_the_reference(reference, query):
    depth = np.ravel(query.X.sum(axis=1))
    cells, _ = completed(reference, without(query, 0.3))
    assert np.median(cells.library_size[:, 0].numpy() / depth) == pytest.approx(1, abs=0.05)


def test_measured_genes_keep_their_counts(reference, query):
    query = without(query, 0.3)
    cells, measured = completed(reference, query)
    counts = next(iter(cells.chunks()))[1].counts.to_dense().numpy()
    np.testing.assert_array_equal(counts[:, measured], query[:, reference.var_names[measured]].X.toarray())
    assert (counts[:, ~measured] > 0).all()
    np.testing.assert_allclose(counts.sum(axis=1), cells.depth[:, 0], rtol=1e-5)


def test_however_cells_are_read_their_counts_are_the_same(reference, query):
    cells, _ = completed(reference, without(query, 0.3))
    counts = torch.cat([chunk.counts.to_dense() for _, chunk in cells.chunks()])
    rows = torch.arange(cells.n_cells).flip(0)[:50]
    torch.testing.assert_close(cells.cells(rows).counts.to_dense(), counts[rows])
    torch.testing.assert_close(cells.counts.read(rows).coo(torch.arange(50)).to_dense(), counts[rows])
    blocks = torch.cat([torch.from_numpy(block.to_scipy().toarray()) for _, block in cells.counts.blocks()])
    torch.testing.assert_close(blocks, counts)
    torch.testing.assert_close(cells.totals.counts.sum(dim=0), counts.double().sum(dim=0))


def test_the_layer_holds_the_genes_that_are_there(reference, query):
    query = without(query, 0.2)[:, ::-1].copy()
    scvip.tl.map_query(query, reference, missing_genes="impute")
    imputed = query.layers["scvi_pyro_imputed"]
    assert np.isfinite(imputed).all()
    correlation = np.corrcoef(np.log1p(imputed.mean(axis=0)), np.log1p(np.ravel(query.X.mean(axis=0))))[0, 1]
    assert correlation > 0.95
    assert set(query.uns["scvi_pyro"]["missing_genes"]) == set(reference.var_names) - set(query.var_names)


def test_a_new_batch_may_lack_genes(reference, query):
    query = without(query, 0.1)
    query.obs["batch"] = "new"
    scvip.tl.map_query(query, reference, missing_genes="impute", max_epochs=2, progress_bar=False)
    assert np.isfinite(query.obsm["X_scvi_pyro"]).all()


def test_what_is_expected_in_a_new_batch_is_the_average_over_known_ones(reference, query, monkeypatch):
    monkeypatch.setattr(missing, "_N_ROUNDS", 1)  # so that all have the same codes
    query = without(query, 0.3)

    def frequencies(batch):
        query.obs["batch"] = batch
        cells, measured = completed(reference, query)
        return (next(cells.minibatches([torch.arange(100)])).counts.to_dense() / cells.depth[:100])[:, ~measured]

    known = [frequencies(batch) for batch in reference.obs["batch"].unique()]
    assert (known[0] - known[1]).abs().max() > 1e-4
    torch.testing.assert_close(frequencies("new"), torch.stack(known).mean(dim=0))


def test_loadings_are_those_of_the_genes_that_are_there(small, train_quickly):
    reference, query = small.copy(), small[:, 5:].copy()
    train_quickly(reference, batch_key="batch", decoder="linear")
    scvip.tl.map_query(query, reference, missing_genes="impute")
    loadings = query.varm["scvi_pyro_loadings"]
    np.testing.assert_array_equal(loadings, reference.varm["scvi_pyro_loadings"].loc[query.var_names])


def test_with_all_genes_there_is_nothing_to_impute(reference, query):
    scvip.tl.map_query(plain := query.copy(), reference)
    scvip.tl.map_query(query, reference, missing_genes="impute")
    np.testing.assert_array_equal(query.obsm["X_scvi_pyro"], plain.obsm["X_scvi_pyro"])
    assert "missing_genes" not in query.uns["scvi_pyro"]


def test_genes_are_found_by_a_column(reference, query):
    scvip.tl.map_query(plain := query.copy(), reference)
    query.var["symbol"] = query.var_names
    query.var_names = [f"id{i}" for i in range(query.n_vars)]
    scvip.tl.map_query(query, reference, var_key="symbol")
    np.testing.assert_array_equal(query.obsm["X_scvi_pyro"], plain.obsm["X_scvi_pyro"])


def test_versions_of_ensembl_ids_can_be_dropped_on_either_side(small, train_quickly):
    small.var_names = [f"ENSG{i:011d}.3" for i in range(small.n_vars)]
    query = small.copy()
    query.var_names = [f"ENSG{i:011d}{'.7' * (i % 2)}" for i in range(small.n_vars)]
    train_quickly(small, batch_key="batch")
    scvip.tl.map_query(query, small, ensembl_versions=False)
    np.testing.assert_array_equal(query.obsm["X_scvi_pyro"], small.obsm["X_scvi_pyro"])


def test_a_query_whose_column_would_match_is_told_so(reference, query):
    query.var["symbol"] = query.var_names
    query.var_names = [f"id{i}" for i in range(query.n_vars)]
    with pytest.raises(
        ValueError, match=r"701 of the 701 .* With var_key='symbol' of tl\.map_query, 701 of them would"
    ):
        scvip.tl.map_query(query, reference)


def renamed(query, names):
    query.var_names = [names(name) for name in query.var_names]
    return query


@pytest.mark.parametrize(
    "names",
    [
        lambda name: f"GRCh38_{name}",
        lambda name: f"ENSG00000000001_{name}",
        lambda name: f"{name}|ENSG00000000001",
        lambda name: f"{name}-1",
        lambda name: f"{name}.1",
    ],
)
def test_a_query_with_something_beside_its_names_is_told_what_to_do(reference, query, names):
    with pytest.raises(ValueError, match=r"After .*, 701 of them would be found") as refused:
        scvip.tl.map_query(renamed(query, names), reference)
    exec(re.search(r"After (.*), 701 of them", str(refused.value))[1], {"adata": query})
    assert query.var_names.tolist() == reference.var_names.tolist()


def test_a_query_in_other_case_is_told_so(reference, query):
    message = r"But for case, 701 of them are there \('[\w-]+' for '[\w-]+'\).* same species"
    with pytest.raises(ValueError, match=message):
        scvip.tl.map_query(renamed(query, str.lower), reference)


def test_a_query_in_other_case_is_told_what_to_do_where_one_call_does_it(reference, query):
    capitals = reference.var_names[reference.var_names.str.isupper()]
    query = renamed(query[:, capitals].copy(), str.capitalize)
    with pytest.raises(ValueError, match=rf"After .*, {len(capitals)} would be found, if .* same species") as refused:
        scvip.tl.map_query(query, reference)
    exec(re.search(r"After (.*), \d+ would", str(refused.value))[1], {"adata": query})
    assert query.var_names.tolist() == capitals.tolist()


def test_every_function_for_trained_models_tells_of_other_names(reference):
    reference.var_names = reference.var_names.str.lower()
    with pytest.raises(ValueError, match="But for case, 701 of them are there"):
        scvip.tl.latent(reference)


def test_a_query_with_other_versions_is_told_so(small, train_quickly):
    small.var_names = [f"ENSG{i:011d}.3" for i in range(small.n_vars)]
    train_quickly(small)
    small.var_names = [f"ENSG{i:011d}.4" for i in range(small.n_vars)]
    query = small.copy()
    small.var_names = small.uns["scvi_pyro"]["genes"]
    with pytest.raises(ValueError, match=r"With ensembl_versions=False of tl\.map_query, 40 of them would be found"):
        scvip.tl.map_query(query, small)


def test_refused_genes_come_with_advice(reference, query):
    with pytest.raises(ValueError, match=r"2 of the 701 genes .* missing_genes='impute'\)\.$"):
        scvip.tl.map_query(query[:, 2:].copy(), reference)


@pytest.mark.parametrize("function", ["latent", "score_cells", "impute"])
def test_after_mapping_without_genes_other_functions_say_what_they_need(reference, query, function):
    thinned = without(query, 0.3)
    scvip.tl.map_query(thinned, reference, missing_genes="impute", impute=False)
    with pytest.raises(ValueError, match="has inferred them for what it has written, but all other functions") as found:
        getattr(scvip.tl, function)(thinned)
    advised = eval(str(found.value).split("both have: ")[1].rstrip("."), {"reference": reference, "adata": thinned})
    assert set(advised.var_names) == set(thinned.var_names)


def test_no_gene_at_all_is_refused(reference, query, unchanged):
    query.var_names = [f"id{i}" for i in range(query.n_vars)]
    before = query.copy()
    with pytest.raises(ValueError, match=r"701 of the 701 genes of the model are not in adata\.var_names"):
        scvip.tl.map_query(query, reference, missing_genes="impute")
    unchanged(query, before)


def test_a_column_with_a_gene_twice_is_refused(reference, query):
    query.var["symbol"] = ["A1BG", "A1BG", *query.var_names[2:]]
    reference.uns["scvi_pyro"]["genes"][0] = "A1BG"
    with pytest.raises(ValueError, match=r"more than once in adata\.var\['symbol'\], for example 'A1BG'"):
        scvip.tl.map_query(query, reference, var_key="symbol", missing_genes="impute")


def test_a_column_that_is_not_there_is_refused(reference, query):
    query.var["gene_ids"] = query.var_names
    with pytest.raises(KeyError, match=r"var_key='gene_id' is not in adata\.var\. Did you mean 'gene_ids'"):
        scvip.tl.map_query(query, reference, var_key="gene_id")


def test_another_choice_is_refused(reference, query):
    with pytest.raises(ValueError, match="missing_genes='drop' is not a choice"):
        scvip.tl.map_query(query, reference, missing_genes="drop")
