"""``tl.map_query``: new cells on a trained model."""

import numpy as np
import pandas as pd
import pytest
import torch

import scanpy_scvipyro as scvip


@pytest.fixture(scope="module")
def _halves(_mixtures):
    reference, query = _mixtures[::2].copy(), _mixtures[1::2].copy()
    scvip.tl.scvi_pyro(reference, batch_key="batch", max_epochs=20, progress_bar=False)
    return reference, query


@pytest.fixture
def reference(_halves):
    return _halves[0].copy()


@pytest.fixture
def query(_halves):
    return _halves[1].copy()


def test_codes_of_new_cells_are_those_of_the_encoder(reference, query):
    scvip.tl.map_query(query, reference)
    model, counts = scvip.get.model(reference), query.X.toarray()
    rows = pd.Index(reference.uns["scvi_pyro"]["categories"]["batch"]).get_indexer(query.obs["batch"])
    counts = counts * model.offset[rows].neg().exp().detach().numpy()
    log_counts = torch.tensor(counts / counts.sum(axis=1, keepdims=True) * model.typical_depth.item()).log1p()
    with torch.no_grad():
        codes = model.encoder(log_counts, log_counts[:, :0])[0]
    np.testing.assert_allclose(query.obsm["X_scvi_pyro"], codes, atol=1e-4)


def test_new_cells_lie_among_the_reference_cells_of_their_line(reference, query):
    scvip.tl.map_query(query, reference)
    codes, labels = reference.obsm["X_scvi_pyro"], reference.obs["cell_type"].to_numpy()
    distance = np.linalg.norm(query.obsm["X_scvi_pyro"][:, None] - codes[None], axis=2)
    assert (labels[distance.argmin(axis=1)] == query.obs["cell_type"]).mean() > 0.98


def test_genes_are_matched_by_name_in_any_order_and_among_others(reference, query):
    genes = reference.var_names[::-1][:-1]
    small_reference = reference[:, genes].copy()
    scvip.tl.scvi_pyro(small_reference, batch_key="batch", max_epochs=2, progress_bar=False)
    straight = query[:, genes].copy()
    scvip.tl.map_query(straight, small_reference)
    scvip.tl.map_query(query, small_reference)
    np.testing.assert_allclose(query.obsm["X_scvi_pyro"], straight.obsm["X_scvi_pyro"], atol=1e-5)
    np.testing.assert_allclose(
        query[:, genes].layers["scvi_pyro_imputed"], straight.layers["scvi_pyro_imputed"], rtol=1e-4
    )
    unknown = query.var_names.difference(genes)
    assert len(unknown) == 1
    assert np.isnan(query[:, unknown].layers["scvi_pyro_imputed"]).all()


def test_covariates_of_any_scale_mean_the_same_for_reference_and_query(small, train_quickly):
    year = np.random.default_rng(0).integers(0, 4, small.n_obs)
    options = {"continuous_covariate_keys": ["year"], "encode_covariates": True}
    codes, imputed = [], []
    for shift, scale in ((0, 1), (2022, 1), (2**20, 2**10)):
        small.obs["year"] = shift + scale * year
        train_quickly(small, **options)
        query = small[60:].copy()
        scvip.tl.map_query(query, small)
        np.testing.assert_allclose(query.obsm["X_scvi_pyro"], small[60:].obsm["X_scvi_pyro"], rtol=1e-4, atol=1e-6)
        codes.append(query.obsm["X_scvi_pyro"])
        imputed.append(query.layers["scvi_pyro_imputed"])
    for other in (1, 2):
        np.testing.assert_allclose(codes[other], codes[0], atol=1e-3)
        np.testing.assert_allclose(imputed[other], imputed[0], rtol=1e-2)


def test_mapping_the_reference_itself_gives_what_training_wrote(reference, unchanged):
    mapped = reference.copy()
    del mapped.uns["scvi_pyro"], mapped.obsm["X_scvi_pyro"], mapped.layers["scvi_pyro_imputed"]
    scvip.tl.map_query(mapped, reference)
    unchanged(mapped, reference)


def test_every_query_works_on_the_new_cells(reference, query):
    scvip.tl.map_query(query, reference)
    scvip.tl.impute(query, transform_batch="all", key_added="corrected")
    scvip.tl.latent(query)
    scvip.tl.score_cells(query)
    scvip.tl.posterior_predictive(query)
    scvip.tl.rank_genes_groups(query, "cell_type", n_samples=100)
    assert scvip.tl.gene_correlations(query, genes=["KRT80", "AGR2"]).shape == (2, 2)
    assert {"scvi_pyro_elbo", "scvi_pyro_uncertainty"} < set(query.obs)
    assert {"corrected", "scvi_pyro_simulated"} < set(query.layers)


def test_held_out_elbo_is_near_that_of_the_reference(reference, query):
    scvip.tl.map_query(query, reference)
    for adata in (reference, query):
        scvip.tl.score_cells(adata)
    held_out = query.obs["scvi_pyro_elbo"].mean()
    assert held_out == pytest.approx(reference.obs["scvi_pyro_elbo"].mean(), rel=0.05)


def test_imputation_can_be_left_out(reference, query):
    scvip.tl.map_query(query, reference, impute=False)
    assert not query.layers


def test_the_model_is_a_copy_of_its_own(reference, query):
    scvip.tl.map_query(query, reference)
    query.uns["scvi_pyro"]["weights"]["encoder.loc.bias"][:] = np.nan
    assert np.isfinite(reference.uns["scvi_pyro"]["weights"]["encoder.loc.bias"]).all()


def test_the_reference_is_left_alone(reference, query, unchanged):
    before = reference.copy()
    scvip.tl.map_query(query, reference)
    unchanged(reference, before)


def test_the_global_random_state_is_left_alone(reference, query):
    before = torch.get_rng_state()
    scvip.tl.map_query(query, reference)
    assert torch.equal(torch.get_rng_state(), before)


def test_one_cell_can_be_mapped(reference, query):
    one = query[[0]].copy()
    scvip.tl.map_query(one, reference)
    assert one.obsm["X_scvi_pyro"].shape == (1, 10)


def test_missing_genes_are_refused_by_number_and_name(reference, query):
    with pytest.raises(ValueError, match=r"2 of the 701 genes of the model are not in .* for example 'A1BG-AS1'"):
        scvip.tl.map_query(query[:, 2:].copy(), reference)


def test_a_missing_batch_column_is_refused(reference, query):
    del query.obs["batch"]
    with pytest.raises(KeyError, match=r"batch_key='batch' is not in adata.obs"):
        scvip.tl.map_query(query, reference)


def test_a_reference_without_a_model_is_refused(query):
    with pytest.raises(KeyError, match="train a model first"):
        scvip.tl.map_query(query, query)


def test_a_reference_that_is_no_anndata_is_refused(query):
    with pytest.raises(TypeError, match="adata_ref is a dict; pass the AnnData"):
        scvip.tl.map_query(query, {})
