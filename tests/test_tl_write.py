"""What linear decoders and batch embeddings add to an AnnData."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, storage


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
