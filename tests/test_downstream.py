"""What Scanpy and AnnData do with the results."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import torch
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import scanpy_scvipyro as scvip


def assert_same_model(a, b):
    before, after = scvip.get.model(a).state_dict(), scvip.get.model(b).state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_neighbors_leiden_and_umap_run_on_the_latent_codes(trained_small):
    sc.pp.neighbors(trained_small, use_rep="X_scvi_pyro")
    sc.tl.leiden(trained_small, flavor="igraph", n_iterations=2)
    sc.tl.umap(trained_small)
    assert trained_small.uns["neighbors"]["params"]["use_rep"] == "X_scvi_pyro"
    assert trained_small.obs["leiden"].notna().all()
    assert np.isfinite(trained_small.obsm["X_umap"]).all()


@pytest.mark.usefixtures("no_windows")
def test_umap_is_coloured_by_imputed_counts(trained_small):
    trained_small.obsm["X_umap"] = trained_small.obsm["X_scvi_pyro"][:, :2]
    gene = trained_small.var_names[3]
    axes = sc.pl.umap(trained_small, layer="scvi_pyro_imputed", color=gene, show=False)
    shown = np.sort(axes.collections[0].get_array())
    np.testing.assert_allclose(shown, np.sort(trained_small[:, gene].layers["scvi_pyro_imputed"].ravel()), rtol=1e-6)


@pytest.mark.usefixtures("no_windows")
def test_umap_is_coloured_by_imputed_counts_of_a_mask(small, train_quickly):
    train_quickly(small, mask_var=np.arange(small.n_vars) % 2 == 0)
    small.obsm["X_umap"] = small.obsm["X_scvi_pyro"][:, :2]
    axes = sc.pl.umap(small, layer="scvi_pyro_imputed", color=small.var_names[0], show=False)
    assert np.isfinite(np.asarray(axes.collections[0].get_array())).all()


def test_scanpy_reads_the_imputed_layer(trained_small):
    gene = trained_small.var_names[0]
    values = sc.get.obs_df(trained_small, gene, layer="scvi_pyro_imputed")[gene]
    np.testing.assert_array_equal(values, trained_small.layers["scvi_pyro_imputed"][:, 0])


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_a_file_gives_everything_back(trained_small, file_format, tmp_path):
    path = tmp_path / f"trained.{file_format}"
    getattr(trained_small, f"write_{file_format}")(path)
    read = getattr(ad, f"read_{file_format}")(path)
    np.testing.assert_array_equal(read.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])
    np.testing.assert_array_equal(read.layers["scvi_pyro_imputed"], trained_small.layers["scvi_pyro_imputed"])
    assert_same_model(read, trained_small)


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_data_from_a_file_give_the_same_result(small, trained_small, train_quickly, file_format, tmp_path):
    path = tmp_path / f"counts.{file_format}"
    getattr(small, f"write_{file_format}")(path)
    read = getattr(ad, f"read_{file_format}")(path)
    train_quickly(read, batch_key="batch")
    np.testing.assert_array_equal(read.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])
    assert_same_model(read, trained_small)


def test_files_are_written_again_after_reading(trained_small, tmp_path):
    trained_small.write_h5ad(tmp_path / "first.h5ad")
    ad.read_h5ad(tmp_path / "first.h5ad").write_zarr(tmp_path / "second.zarr")
    ad.read_zarr(tmp_path / "second.zarr").write_h5ad(tmp_path / "third.h5ad")
    assert_same_model(ad.read_h5ad(tmp_path / "third.h5ad"), trained_small)


def test_a_backed_file_gives_the_model(trained_small, tmp_path):
    trained_small.write_h5ad(tmp_path / "trained.h5ad")
    backed = ad.read_h5ad(tmp_path / "trained.h5ad", backed="r")
    assert_same_model(backed, trained_small)
    backed.file.close()


def test_a_copy_has_a_model_of_its_own(trained_small):
    copied = trained_small.copy()
    copied.uns["scvi_pyro"]["weights"]["decoder.rate.bias"][:] = 0
    assert scvip.get.model(trained_small).decoder.rate.bias.abs().max() > 0


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_slice_keeps_the_results_of_its_cells_and_the_model(trained_small, is_copied):
    genes = np.arange(trained_small.n_vars)[::-2]
    part = trained_small[10:20, genes]
    part = part.copy() if is_copied else part
    np.testing.assert_array_equal(part.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"][10:20])
    expected = trained_small.layers["scvi_pyro_imputed"][10:20][:, genes]
    np.testing.assert_array_equal(part.layers["scvi_pyro_imputed"], expected)
    assert_same_model(part, trained_small)


@pytest.mark.parametrize("uns_merge", ["same", "unique", "first", "only"])
def test_parts_are_concatenated_with_results(trained_small, uns_merge):
    parts = {"a": trained_small[:40].copy(), "b": trained_small[40:].copy()}
    whole = ad.concat(parts, label="part", uns_merge=uns_merge)
    np.testing.assert_array_equal(whole.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])
    np.testing.assert_array_equal(whole.layers["scvi_pyro_imputed"], trained_small.layers["scvi_pyro_imputed"])
    if uns_merge != "only":  # which keeps what is in one of the parts alone
        assert_same_model(whole, trained_small)


def test_concatenation_of_trained_with_untrained_cells_keeps_the_model(trained_small, small):
    trained_small.obs_names = "trained_" + trained_small.obs_names
    whole = ad.concat([trained_small, small], uns_merge="only")
    assert_same_model(whole, trained_small)


def test_a_concatenation_is_trained_on(small, train_quickly):
    whole = ad.concat({"a": small[:30].copy(), "b": small[30:].copy()}, label="part")
    train_quickly(whole, batch_key="part")
    assert scvip.get.model(whole).n_batches == 2


def test_imputed_counts_are_normalized_and_ranked_by_scanpy(trained):
    trained.X = trained.layers["scvi_pyro_imputed"]
    sc.pp.normalize_total(trained, target_sum=1e4)
    sc.pp.log1p(trained)
    sc.tl.rank_genes_groups(trained, "cell_type")
    ranked = sc.get.rank_genes_groups_df(trained, "H1975")
    assert ranked["logfoldchanges"].iloc[0] > 1


def test_cells_of_one_protocol_find_their_cell_line_in_another(trained):
    """A classifier trained on the latent codes of one protocol knows the cell lines of the others."""
    reference = trained.obs["batch"] == "10x_3cl"
    latent, truth = trained.obsm["X_scvi_pyro"], trained.obs["cell_type"]
    classifier = KNeighborsClassifier(15).fit(latent[reference], truth[reference])
    assert classifier.score(latent[~reference], truth[~reference]) > 0.98


def test_imputed_counts_of_a_sorted_population_predict_held_out_counts(data_directory):
    """Very sparse counts of one batch: each gene of a cell was seen less than once in ten."""
    adata = scvip.datasets.pbmc_facs_zheng()
    adata = adata[np.random.default_rng(0).permutation(adata.n_obs)[:800]].copy()
    adata = adata[:, np.argsort(np.ravel(adata.X.sum(axis=0)))[-1000:]].copy()
    counts = adata.X.toarray().astype(int)
    seen = np.random.default_rng(0).binomial(counts, 0.5)
    held_out = counts - seen
    adata.X = sparse.csr_matrix(seen.astype(np.float32))
    scvip.tl.scvi_pyro(adata, max_epochs=30, progress_bar=False)
    mean = seen.mean(axis=0) / seen.sum() * len(seen) * seen.sum(axis=1, keepdims=True)

    def error(predicted):
        return (np.square(predicted - held_out) / (held_out.mean(axis=0) + 0.1)).mean()

    imputed = error(adata.layers["scvi_pyro_imputed"])
    assert imputed < 0.6 * error(seen)
    assert imputed < 0.95 * error(mean)


@pytest.mark.slow
def test_cell_types_are_found_across_four_chemistries(data_directory):
    adata = scvip.datasets.pbmc_10x_4chemistries()
    normalized = adata.copy()
    sc.pp.normalize_total(normalized)
    sc.pp.log1p(normalized)
    sc.pp.highly_variable_genes(normalized, n_top_genes=2000, batch_key="batch")
    adata = adata[:, normalized.var["highly_variable"]].copy()
    scvip.tl.scvi_pyro(adata, batch_key="batch", progress_bar=False)
    sc.pp.neighbors(adata, use_rep="X_scvi_pyro")
    sc.tl.leiden(adata, resolution=0.1, flavor="igraph", n_iterations=2)
    assert adjusted_rand_score(adata.obs["cell_type"], adata.obs["leiden"]) >= 0.7
    batch = adata.obs["batch"].to_numpy()
    neighbors = NearestNeighbors(n_neighbors=20).fit(adata.obsm["X_scvi_pyro"]).kneighbors(return_distance=False)
    # 0.93 before, and 0.33 if chemistries, which differ in their cell types, were mixed perfectly.
    assert (batch[neighbors] == batch[:, None]).mean() < 0.5
