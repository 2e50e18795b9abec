"""What ``tl.scvi_pyro`` and its like do with their arguments."""

import numpy as np
import pytest

import scanpy_scvipyro as scvip


class TestLabelsThatTheModelDoesNotRead:
    @pytest.fixture(params=[{}, {"dispersion": "gene-label", "gene_likelihood": "poisson"}], ids=["gene", "Poisson"])
    def options(self, request):
        return {"batch_key": "batch", "labels_key": "cell_type"} | request.param

    def test_may_be_missing_for_some_cells(self, small, train_quickly, options):
        expected = train_quickly(small, copy=True, **options)
        small.obs.loc[small.obs_names[:30], "cell_type"] = np.nan
        train_quickly(small, **options)
        np.testing.assert_array_equal(small.obsm["X_scvi_pyro"], expected.obsm["X_scvi_pyro"])

    def test_may_be_missing_unknown_or_renamed_in_queries(self, small, train_quickly, options):
        train_quickly(small, **options)
        queries = [small.copy() for _ in range(3)]
        del queries[0].obs["cell_type"]
        queries[1].obs["cell_type"] = "other"
        queries[2].obs["cell_type"] = queries[2].obs["cell_type"].cat.rename_categories(str.lower)
        for query in queries:
            scvip.tl.latent(query)
            scvip.tl.map_query(query, small)
            np.testing.assert_array_equal(query.obsm["X_scvi_pyro"], small.obsm["X_scvi_pyro"])

    def test_are_what_plots_show_where_they_are(self, small, train_quickly, options, no_windows):
        train_quickly(small, **options)
        assert len(scvip.pl.integration(small, show=False)) == 4
        del small.obs["cell_type"]
        assert len(scvip.pl.integration(small, show=False)) == 2

    def test_must_be_a_column_all_the_same(self, small, train_quickly, options):
        with pytest.raises(KeyError, match="Did you mean 'cell_type'"):
            train_quickly(small, **options | {"labels_key": "celltype"})


def test_labels_that_the_model_reads_must_be_there(small, train_quickly):
    train_quickly(small, labels_key="cell_type", dispersion="gene-label")
    query = small.copy()
    query.obs["cell_type"] = "other"
    with pytest.raises(ValueError, match=r"categories that the model was not trained on: 'other'"):
        scvip.tl.latent(query)
    small.obs.loc[small.obs_names[:30], "cell_type"] = np.nan
    with pytest.raises(ValueError, match="30 missing values"):
        train_quickly(small, labels_key="cell_type", dispersion="gene-label")
