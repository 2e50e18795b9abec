"""``tl.impute``: the numbers, where they go, and what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import pytest
import torch

import scanpy_scvipyro as scvip


def impute(adata, **arguments):
    """Impute and return the layer."""
    scvip.tl.impute(adata, key_added="asked", progress_bar=False, **arguments)
    return adata.layers["asked"]


@pytest.fixture(scope="module")
def with_latent_library(_small, train_quickly):
    return train_quickly(_small, batch_key="batch", library="latent", copy=True)


class TestValues:
    def test_defaults_give_what_training_wrote(self, trained):
        written = trained.layers["scvi_pyro_imputed"].copy()
        scvip.tl.impute(trained, progress_bar=False)
        np.testing.assert_array_equal(trained.layers["scvi_pyro_imputed"], written)

    def test_one_batch_for_all_cells_equals_decoding_by_hand(self, trained, by_hand):
        hand = by_hand(trained)
        expected = 1e4 * hand.frequencies(hand.posterior().mean, batch=1)
        batch = trained.obs["batch"].cat.categories[1]
        np.testing.assert_allclose(impute(trained, transform_batch=batch, library_size=1e4), expected, rtol=1e-4)

    def test_several_batches_are_averaged(self, trained, by_hand):
        hand = by_hand(trained)
        z = hand.posterior().mean
        expected = hand.cells.library_size.numpy() * (hand.frequencies(z, 0) + hand.frequencies(z, 2)) / 2
        batches = trained.obs["batch"].cat.categories[[0, 2]]
        np.testing.assert_allclose(impute(trained, transform_batch=list(batches)), expected, rtol=1e-4)

    def test_all_batches_are_averaged(self, trained_small, by_hand):
        hand = by_hand(trained_small)
        z = hand.posterior().mean
        expected = np.mean([hand.frequencies(z, batch) for batch in range(3)], axis=0)
        np.testing.assert_allclose(impute(trained_small, transform_batch="all", library_size=1), expected, rtol=1e-4)

    def test_latent_library_size_is_the_posterior_mean(self, with_latent_library, by_hand):
        adata = with_latent_library.copy()
        hand = by_hand(adata)
        with torch.no_grad():
            level = hand.posterior("library_size").mean.numpy()
        expected = level * hand.frequencies(hand.posterior().mean)
        np.testing.assert_allclose(impute(adata, library_size="latent"), expected, rtol=1e-4)

    def test_samples_are_averaged(self, trained_small, by_hand):
        hand = by_hand(trained_small)
        draws = np.stack([hand.frequencies(hand.posterior().sample()) for _ in range(500)])
        error = draws.std(axis=0) * np.sqrt(2 / 500)
        difference = impute(trained_small, n_samples=500, library_size=1) - draws.mean(axis=0)
        assert np.abs(difference / error).max() < 6

    def test_quantiles_hold_their_share_of_the_posterior(self, trained_small, by_hand):
        hand = by_hand(trained_small)
        scvip.tl.impute(trained_small, n_samples=400, statistic=[0.1, 0.9], library_size=1, key_added="range")
        draws = np.stack([hand.frequencies(hand.posterior().sample()) for _ in range(400)])
        below = (draws < trained_small.layers["range_q0.1"]).mean()
        above = (draws > trained_small.layers["range_q0.9"]).mean()
        assert (below, above) == (pytest.approx(0.1, abs=0.01), pytest.approx(0.1, abs=0.01))

    def test_median_is_the_middle_quantile(self, trained_small):
        median = impute(trained_small, n_samples=21, statistic="median").copy()
        np.testing.assert_array_equal(median, impute(trained_small, n_samples=21, statistic=0.5))

    @pytest.mark.parametrize("library_size", ["observed", "latent"])
    def test_samples_of_a_cell_do_not_depend_on_the_cells_beside_it(self, with_latent_library, library_size):
        adata = with_latent_library.copy()
        everything = impute(adata, n_samples=5, library_size=library_size)
        some = impute(adata[[60, 3]].copy(), n_samples=5, library_size=library_size)
        np.testing.assert_allclose(some, everything[[60, 3]], rtol=1e-5)

    @pytest.mark.parametrize("scale", [1e-6, 1, 1e6])
    def test_cells_sum_to_the_number_asked_for_also_with_size_factors_of_any_scale(self, small, train_quickly, scale):
        small.obs["factor"] = scale * np.linspace(0.5, 2, small.n_obs)
        train_quickly(small, batch_key="batch", size_factor_key="factor", impute=False)
        for batch in (None, "all"):
            for options in ({}, {"n_samples": 3}):
                imputed = impute(small, transform_batch=batch, library_size=1e4, **options)
                np.testing.assert_allclose(imputed.sum(axis=1), 1e4, rtol=1e-4)

    def test_size_factors_keep_the_shares_of_the_genes(self, small, train_quickly):
        small.obs["factor"] = np.linspace(0.5, 2, small.n_obs)
        train_quickly(small, size_factor_key="factor", impute=False)
        observed, fixed = impute(small).copy(), impute(small, library_size=100)
        np.testing.assert_allclose(fixed / 100, observed / observed.sum(axis=1, keepdims=True), rtol=1e-4)

    def test_same_seed_gives_the_same_samples_and_another_seed_others(self, trained_small):
        first = impute(trained_small, n_samples=2).copy()
        assert np.array_equal(impute(trained_small, n_samples=2), first)
        assert not np.allclose(impute(trained_small, n_samples=2, random_state=1), first)


class TestGenes:
    def test_genes_not_asked_for_are_nan(self, trained_small):
        everything = impute(trained_small).copy()
        asked = trained_small.var_names[[7, 3]]
        some = impute(trained_small, genes=asked.tolist())
        is_asked = trained_small.var_names.isin(asked)
        np.testing.assert_array_equal(some[:, is_asked], everything[:, is_asked])
        assert np.isnan(some[:, ~is_asked]).all()

    def test_genes_not_modelled_are_nan(self, small, train_quickly):
        mask = np.arange(small.n_vars) % 2 == 0
        train_quickly(small, mask_var=mask, impute=False)
        imputed = impute(small)
        np.testing.assert_array_equal(np.isnan(imputed).all(axis=0), ~mask)
        np.testing.assert_allclose(imputed[:, mask].sum(axis=1), small[:, mask].X.sum(axis=1).A1, rtol=1e-4)

    def test_genes_are_found_by_name_in_any_order(self, trained_small):
        straight = impute(trained_small).copy()
        reversed_ = trained_small[:, ::-1].copy()
        np.testing.assert_allclose(impute(reversed_)[:, ::-1], straight, rtol=1e-5)

    @pytest.mark.filterwarnings("ignore:Variable names are not unique")
    def test_genes_of_duplicate_names_cannot_be_chosen(self, small, train_quickly):
        small.var_names = [*small.var_names[:-1], small.var_names[0]]
        train_quickly(small)
        with pytest.raises(ValueError, match=r"duplicate names.*var_names_make_unique\(\) and train again"):
            impute(small, genes=[small.var_names[0]])


class TestStore:
    def test_store_holds_what_the_layer_would(self, trained, tmp_path):
        layer = impute(trained, transform_batch="all", n_samples=2).copy()
        scvip.tl.impute(trained, transform_batch="all", n_samples=2, out=tmp_path / "x.zarr")
        stored = ad.io.read_zarr(tmp_path / "x.zarr")
        np.testing.assert_array_equal(stored.X, layer)
        assert stored.obs_names.equals(trained.obs_names)

    def test_store_holds_the_genes_asked_for_and_each_quantile(self, trained, tmp_path):
        genes = trained.var_names[[5, 2]].tolist()
        arguments = {"n_samples": 20, "statistic": [0.25, 0.75], "genes": genes}
        scvip.tl.impute(trained, out=tmp_path / "x.zarr", **arguments)
        scvip.tl.impute(trained, key_added="range", **arguments)
        stored = ad.io.read_zarr(tmp_path / "x.zarr")
        assert stored.var_names.tolist() == genes
        for name in ("q0.25", "q0.75"):
            np.testing.assert_array_equal(stored.layers[name], trained[:, genes].layers[f"range_{name}"])

    def test_nothing_is_written_into_adata(self, trained_small, tmp_path, unchanged):
        before = trained_small.copy()
        scvip.tl.impute(trained_small, out=tmp_path / "x.zarr")
        unchanged(trained_small, before)

    def test_what_exists_is_not_overwritten(self, trained_small, tmp_path):
        (tmp_path / "x.zarr").write_text("precious")
        with pytest.raises(FileExistsError, match="remove it, or pass another path"):
            scvip.tl.impute(trained_small, out=tmp_path / "x.zarr")
        assert (tmp_path / "x.zarr").read_text() == "precious"

    def test_failure_leaves_no_half_written_store(self, trained_small, tmp_path):
        trained_small.obs["unwritable"] = pd.Timedelta(1, "s")
        folder = tmp_path / "results"
        folder.mkdir()
        with pytest.raises(Exception, match=r"writing key.*unwritable"):
            scvip.tl.impute(trained_small, out=folder / "x.zarr")
        assert not list(folder.iterdir())


class TestManners:
    def test_copy_is_returned_and_the_original_left_alone(self, trained_small, unchanged):
        before = trained_small.copy()
        copy = scvip.tl.impute(trained_small, key_added="new", copy=True)
        assert "new" in copy.layers
        unchanged(trained_small, before)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"key": "scvi"}, KeyError, "train a model first.*Did you mean 'scvi_pyro'"),
            ({"transform_batch": "10x"}, KeyError, "Did you mean '10x_3cl'"),
            ({"transform_batch": []}, ValueError, "at least one batch"),
            ({"genes": ["no such gene"]}, KeyError, "which the model was not trained on"),
            ({"genes": []}, ValueError, "genes is empty"),
            ({"library_size": "Observed"}, ValueError, "pass 'observed', 'latent', or a number"),
            ({"library_size": "latent"}, ValueError, "takes library sizes as observed"),
            ({"library_size": 0}, ValueError, "positive number"),
            ({"library_size": None}, ValueError, "positive number"),
            ({"n_samples": 0}, ValueError, "whole number of at least 1"),
            ({"library_size": True}, ValueError, "library_size=True was passed; pass a positive number"),
            ({"out": 3}, TypeError, r"out=3 is no path; pass a string or a pathlib\.Path"),
            ({"key": ["scvi_pyro"]}, TypeError, r"key=\['scvi_pyro'\] was passed; pass the name of one model"),
            ({"statistic": "mode"}, ValueError, "'mean', 'median', or quantiles"),
            ({"statistic": 1.5, "n_samples": 10}, ValueError, "numbers from 0 to 1"),
            ({"statistic": ["0.5"], "n_samples": 10}, ValueError, "numbers from 0 to 1"),
            ({"statistic": "median"}, ValueError, "n_samples"),
            ({"statistic": [0.1234567, 0.1234568], "n_samples": 10}, ValueError, "alike to six digits"),
            ({"out": "missing/x.zarr"}, ValueError, "folder that does not exist"),
            ({"out": "x.zarr", "copy": True}, ValueError, "leave copy and key_added out"),
            ({"n_sample": 3}, TypeError, "Did you mean 'n_samples'"),
        ],
    )
    def test_refusals_say_what_to_do_and_change_nothing(self, trained_small, unchanged, arguments, error, message):
        before = trained_small.copy()
        with pytest.raises(error, match=message):
            scvip.tl.impute(trained_small, **arguments)
        unchanged(trained_small, before)

    def test_a_batch_is_refused_for_a_model_without_batches(self, small, train_quickly):
        train_quickly(small)
        with pytest.raises(ValueError, match="trained without batches"):
            scvip.tl.impute(small, transform_batch="10x_3cl")

    def test_a_layer_larger_than_the_free_memory_is_refused(self, trained_small, monkeypatch):
        class Full:
            available = 100

        monkeypatch.setattr(psutil, "virtual_memory", Full)
        with pytest.raises(MemoryError, match="pass out="):
            scvip.tl.impute(trained_small)
