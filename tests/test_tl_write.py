"""What linear decoders and batch embeddings add to an AnnData."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import scanpy as sc
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, storage


class Stop(pl.Callback):
    def on_train_end(self, *args):
        raise RuntimeError("stop")


class TestLoadings:
    def test_are_the_change_of_log_frequencies_along_each_dimension(self, mixtures, train_quickly):
        train_quickly(mixtures, batch_key="batch", decoder="linear", n_latent=3)
        loadings = mixtures.varm["scvi_pyro_loadings"]
        module, spec = storage.from_uns(mixtures, "scvi_pyro")
        cells = data.load(mixtures, spec).cells(torch.arange(3))
        change = module.decode(torch.eye(3), cells)[0] - module.decode(torch.zeros(3, 3), cells)[0]
        # Frequencies sum to one, which adds the same number to all genes.
        change = change.T - change.T.mean(dim=0)
        expected = loadings - loadings.mean(axis=0)
        np.testing.assert_allclose(change.detach(), expected, atol=1e-5)

    def test_have_a_row_per_gene_and_a_column_per_dimension(self, mixtures, train_quickly):
        train_quickly(mixtures, decoder="linear", n_latent=2)
        loadings = mixtures.varm["scvi_pyro_loadings"]
        assert loadings.columns.tolist() == ["Z_0", "Z_1"]
        assert loadings.index.equals(mixtures.var_names)

    def test_are_missing_for_genes_not_modelled(self, mixtures, train_quickly):
        mask = np.arange(mixtures.n_vars) % 2 == 0
        train_quickly(mixtures, decoder="linear", mask_var=mask)
        missing = mixtures.varm["scvi_pyro_loadings"].isna().to_numpy()
        np.testing.assert_array_equal(missing, np.repeat(~mask[:, None], 10, axis=1))

    def test_repeated_gene_names_keep_their_rows(self, small, train_quickly):
        expected = train_quickly(small, decoder="linear", copy=True).varm["scvi_pyro_loadings"]
        small.var_names = ["gene"] * small.n_vars
        train_quickly(small, decoder="linear")
        np.testing.assert_array_equal(small.varm["scvi_pyro_loadings"], expected)

    def test_can_be_plotted_by_scanpy(self, small, train_quickly):
        train_quickly(small, decoder="linear")
        small.varm["loadings"] = small.varm["scvi_pyro_loadings"].to_numpy()
        sc.pl.ranking(small, "varm", "loadings", indices=[0, 1], n_points=10, show=False)
        texts = [text.get_text() for text in plt.gcf().axes[1].texts]
        plt.close()
        assert texts == small.varm["scvi_pyro_loadings"]["Z_1"].nlargest(11).index.tolist()

    def test_nonlinear_decoders_have_none(self, trained_small):
        assert "scvi_pyro_loadings" not in trained_small.varm


class TestBatchEmbedding:
    @pytest.fixture
    def embedded(self, small, train_quickly):
        train_quickly(small, batch_key="batch", batch_representation="embedding", n_batch_embedding=2)
        return small

    def test_has_the_learnt_vector_of_each_batch_by_name(self, embedded):
        table = embedded.uns["scvi_pyro"]["batch_embedding"]
        assert table.index.tolist() == ["10x_3cl", "celseq2_3cl", "dropseq_3cl"]
        module, spec = storage.from_uns(embedded, "scvi_pyro")
        code = spec.categories["batch"].tolist().index("dropseq_3cl")
        np.testing.assert_array_equal(table.loc["dropseq_3cl"], module.batch_embedding.weight[code].detach())

    def test_survives_a_file(self, embedded, tmp_path, unchanged):
        embedded.write_h5ad(tmp_path / "embedded.h5ad")
        read = ad.read_h5ad(tmp_path / "embedded.h5ad").uns["scvi_pyro"]["batch_embedding"]
        unchanged(read, embedded.uns["scvi_pyro"]["batch_embedding"])

    def test_one_hot_batches_have_none(self, trained_small):
        assert "batch_embedding" not in trained_small.uns["scvi_pyro"]


def test_results_are_attached_under_the_given_key(small, train_quickly):
    train_quickly(small, decoder="linear", key_added="mine")
    assert set(small.obsm) == {"X_mine"}
    assert set(small.layers) - {None} == {"mine_imputed"}  # anndata 0.13 lists X as None
    assert set(small.varm) == {"mine_loadings"}
    assert scvip.get.model(small, key="mine").n_latent == 10


def test_a_second_model_leaves_nothing_of_the_first_under_its_key(small, train_quickly):
    train_quickly(small, decoder="linear")
    train_quickly(small, impute=False)
    assert set(small.layers) - {None} == set()
    assert set(small.varm) == set()


class TestReplacedModels:
    """Of an earlier model under the same key nothing is left, whatever puts another one there."""

    CALLS = {
        "differential_abundance": [
            {"condition_key": "condition", "sample_key": "sample", "reference": "0", "groupby": "cell_type"}
        ],
        "impute": [{"n_samples": 2}, {"n_samples": 2, "statistic": [0.05, 0.5, 1e-5]}],
        "latent": [{"n_samples": 2}],
        "posterior_predictive": [{}],
        "rank_genes_groups": [{"groupby": "cell_type", "n_samples": 50}],
        "score_cells": [{"n_samples": 2}],
    }
    WITHOUT_RESULTS_OF_THEIR_OWN = {"scvi_pyro", "scanvi_pyro", "map_query", "gene_correlations"}

    @pytest.fixture(params=["scvi_pyro", "a.b (c)"])
    def used(self, request, small, train_quickly):
        """A linear model of which everything was asked, and the key it stands under."""
        key = request.param
        small.obs["sample"] = [f"{i % 4}" for i in range(small.n_obs)]
        small.obs["condition"] = [f"{i % 2}" for i in range(small.n_obs)]
        train_quickly(small, batch_key="batch", decoder="linear", key_added=key)
        for name, calls in self.CALLS.items():
            for arguments in calls:
                getattr(scvip.tl, name)(small, key=key, **arguments)
        return small, key

    def names(self, adata):
        fields = ("obs", "obsm", "obsp", "var", "varm", "varp", "layers", "uns")
        return {(field, name) for field in fields for name in getattr(adata, field)}

    def test_calls_are_those_of_all_functions(self):
        assert set(self.CALLS) | self.WITHOUT_RESULTS_OF_THEIR_OWN == set(scvip.tl.__all__)

    @pytest.mark.parametrize("how", ["training", "mapping", "training a view"])
    def test_only_results_of_the_new_model_are_left(self, small, used, train_quickly, how):
        adata, key = used
        untouched = ad.AnnData(
            small.X, obs=small.obs[["batch", "protocol", "cell_type", "sample", "condition"]], var=small.var
        )
        fresh = train_quickly(untouched, batch_key="batch", impute=False, key_added=key, copy=True)
        if how == "training":
            train_quickly(adata, batch_key="batch", impute=False, key_added=key)
        elif how == "mapping":
            scvip.tl.map_query(adata, fresh, key=key, impute=False)
        else:
            adata = adata[::2]
            train_quickly(adata, batch_key="batch", impute=False, key_added=key)
        assert self.names(adata) == self.names(fresh)

    def test_results_of_other_models_and_of_the_user_stay(self, used, train_quickly):
        adata, key = used
        train_quickly(adata, batch_key="batch", key_added="scvi_pyro_2", decoder="linear")
        scvip.tl.latent(adata, key="scvi_pyro_2")
        scvip.tl.impute(adata, key=key, key_added="mine")
        adata.obs[f"{key}_cluster"] = "0"
        train_quickly(adata, batch_key="batch", key_added=key)
        assert {"X_scvi_pyro_2", "X_scvi_pyro_2_var"} <= set(adata.obsm)
        assert {"scvi_pyro_2_imputed", "mine"} <= set(adata.layers)
        assert "scvi_pyro_2_loadings" in adata.varm
        assert {"scvi_pyro_2_uncertainty", f"{key}_cluster"} <= set(adata.obs)

    def test_a_failure_leaves_them_all(self, used, train_quickly, unchanged):
        adata, key = used
        before = adata.copy()
        with pytest.raises(RuntimeError, match="stop"):
            train_quickly(adata, callbacks=[Stop()], key_added=key)
        unchanged(adata, before)


def test_queries_get_the_loadings_of_the_reference_in_the_order_of_their_genes(small, train_quickly):
    train_quickly(small, batch_key="batch", decoder="linear")
    query = small[:, ::-1][:10].copy()
    del query.varm["scvi_pyro_loadings"], query.uns["scvi_pyro"]
    scvip.tl.map_query(query, small)
    expected = small.varm["scvi_pyro_loadings"].loc[query.var_names]
    pd.testing.assert_frame_equal(query.varm["scvi_pyro_loadings"], expected)
