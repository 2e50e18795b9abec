"""``tl.scvi_pyro``: every form of input, what is written where, refusals, and how good the results are."""

import threading

import anndata as ad
import numpy as np
import pandas as pd
import psutil
import pytest
import pytorch_lightning as pl
import scanpy as sc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

import scanpy_scvipyro as scvip


class MustNotTrain(pl.Callback):
    def setup(self, *args, **kwargs):
        pytest.fail("training started")


def leiden_ari(adata, truth, resolution):
    sc.pp.neighbors(adata, use_rep="X_scvi_pyro")
    sc.tl.leiden(adata, resolution=resolution, flavor="igraph", n_iterations=2)
    return adjusted_rand_score(adata.obs[truth], adata.obs["leiden"])


def same_batch_share(embedding, batch):
    """Share of the 20 nearest neighbours of a cell that come from its batch."""
    neighbors = NearestNeighbors(n_neighbors=20).fit(embedding).kneighbors(return_distance=False)
    batch = np.asarray(batch)
    return (batch[neighbors] == batch[:, None]).mean()


def pca_of_log_counts(adata):
    normalized = adata.copy()
    sc.pp.normalize_total(normalized)
    sc.pp.log1p(normalized)
    sc.pp.pca(normalized)
    return normalized.obsm["X_pca"]


def same_results(a, b, *, key="scvi_pyro"):
    np.testing.assert_array_equal(a.obsm[f"X_{key}"], b.obsm["X_scvi_pyro"])
    np.testing.assert_array_equal(a.layers[f"{key}_imputed"], b.layers["scvi_pyro_imputed"])
    np.testing.assert_array_equal(a.uns[key]["history"], b.uns["scvi_pyro"]["history"])
    for name, weight in b.uns["scvi_pyro"]["weights"].items():
        np.testing.assert_array_equal(a.uns[key]["weights"][name], weight)


@pytest.fixture(scope="module")
def fitted(_simulated):
    return scvip.tl.scvi_pyro(_simulated, batch_key="batch", max_epochs=60, progress_bar=False, copy=True)


class TestQuality:
    def test_cell_lines_are_found_across_protocols(self, trained):
        assert leiden_ari(trained, "cell_type", resolution=0.01) >= 0.95

    def test_protocols_are_mixed(self, trained):
        batch = trained.obs["batch"]
        mixed = (batch.value_counts(normalize=True) ** 2).sum()
        before = same_batch_share(pca_of_log_counts(trained), batch)
        after = same_batch_share(trained.obsm["X_scvi_pyro"], batch)
        assert before > 0.9
        # At least four fifths of the way from what it was to perfect mixing.
        assert (before - after) / (before - mixed) > 0.8

    def test_cells_are_embedded_by_cell_line_not_by_depth(self, trained):
        log_depth = np.log(np.ravel(trained.X.sum(axis=1)))
        latent = trained.obsm["X_scvi_pyro"]
        within = [trained.obs["cell_type"] == name for name in trained.obs["cell_type"].cat.categories]
        correlation = [np.abs(np.corrcoef(latent[cells].T, log_depth[cells])[-1, :-1]).max() for cells in within]
        assert max(correlation) < 0.6

    def test_simulated_groups_are_recovered(self, fitted):
        assert leiden_ari(fitted.copy(), "group", resolution=0.3) >= 0.95

    def test_simulated_batches_are_mixed_within_groups(self, fitted):
        for group in fitted.obs["group"].cat.categories:
            cells = fitted[fitted.obs["group"] == group]
            mixed = (cells.obs["batch"].value_counts(normalize=True) ** 2).sum()
            assert same_batch_share(cells.obsm["X_scvi_pyro"], cells.obs["batch"]) < mixed + 0.1

    def test_imputed_counts_are_closer_to_the_simulated_truth(self, fitted):
        def error(counts):
            return np.square(np.log1p(counts) - np.log1p(fitted.layers["mean"])).mean()

        assert error(fitted.layers["scvi_pyro_imputed"]) < 0.15 * error(fitted.X.toarray())

    def test_dispersion_is_close_to_the_simulated_truth(self, fitted):
        log_theta = fitted.uns["scvi_pyro"]["weights"]["log_inverse_dispersion"]
        expressed = np.ravel(fitted.X.mean(axis=0)) > 2
        # It was 2; what the decoder has not learnt yet counts as dispersion, too.
        assert 1.0 < np.median(np.exp(log_theta[expressed])) < 2.4

    @pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
    def test_imputed_counts_predict_held_out_counts(self, mixtures, gene_likelihood):
        mixtures = mixtures[mixtures.obs["batch"] != "10x_3cl"]
        counts = mixtures.X.toarray().astype(int)
        # A fifth of the counts: about as sparse as droplet data. The rest is independent of it, given the truth.
        seen = np.random.default_rng(0).binomial(counts, 0.2)
        held_out = counts - seen
        adata = ad.AnnData(sparse.csr_matrix(seen.astype(np.float32)), obs=mixtures.obs)
        scvip.tl.scvi_pyro(adata, batch_key="batch", gene_likelihood=gene_likelihood, max_epochs=30, progress_bar=False)
        frequency = pd.DataFrame(seen / seen.sum(axis=1, keepdims=True)).groupby(adata.obs["batch"].to_numpy())
        batch_mean = frequency.transform("mean").to_numpy() * seen.sum(axis=1, keepdims=True)

        def error(predicted):
            return (np.square(4 * predicted - held_out) / (held_out.mean(axis=0) + 0.1)).mean()

        imputed = error(adata.layers["scvi_pyro_imputed"])
        assert imputed < 0.65 * error(seen)
        assert imputed < 0.8 * error(batch_mean)


class TestResults:
    def test_shapes_and_types(self, trained_small):
        assert trained_small.obsm["X_scvi_pyro"].shape == (90, 10)
        assert trained_small.obsm["X_scvi_pyro"].dtype == np.float32
        assert trained_small.layers["scvi_pyro_imputed"].shape == trained_small.shape
        assert trained_small.layers["scvi_pyro_imputed"].dtype == np.float32
        assert {"params", "history", "weights"} <= set(trained_small.uns["scvi_pyro"])

    def test_nothing_else_is_changed(self, trained_small, small, unchanged):
        del trained_small.obsm["X_scvi_pyro"], trained_small.layers["scvi_pyro_imputed"]
        del trained_small.uns["scvi_pyro"]
        unchanged(trained_small, small)

    @pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
    def test_imputed_counts_sum_to_the_depth_of_each_cell(self, small, train_quickly, gene_likelihood):
        train_quickly(small, batch_key="batch", gene_likelihood=gene_likelihood)
        imputed = small.layers["scvi_pyro_imputed"]
        assert (imputed > 0).all()
        np.testing.assert_allclose(imputed.sum(axis=1), np.ravel(small.X.sum(axis=1)), rtol=1e-5)

    def test_imputed_counts_of_a_mask_are_nan_outside_and_sum_to_its_depth(self, small, train_quickly):
        mask = np.arange(small.n_vars) % 2 == 0
        small.var["chosen"] = mask
        train_quickly(small, mask_var="chosen")
        imputed = small.layers["scvi_pyro_imputed"]
        assert np.isnan(imputed[:, ~mask]).all()
        np.testing.assert_allclose(imputed[:, mask].sum(axis=1), np.ravel(small.X[:, mask].sum(axis=1)), rtol=1e-5)

    def test_a_mask_gives_the_result_of_the_subset(self, small, train_quickly):
        mask = np.arange(small.n_vars) % 2 == 0
        subset = small[:, mask].copy()
        train_quickly(small, mask_var=mask)
        train_quickly(subset)
        np.testing.assert_array_equal(small.obsm["X_scvi_pyro"], subset.obsm["X_scvi_pyro"])
        np.testing.assert_array_equal(small.layers["scvi_pyro_imputed"][:, mask], subset.layers["scvi_pyro_imputed"])

    def test_impute_false_writes_no_layer(self, small, trained_small, train_quickly):
        train_quickly(small, batch_key="batch", impute=False)
        assert set(small.layers) <= {None}  # X, in anndata 0.13
        np.testing.assert_array_equal(small.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])

    def test_key_added_names_all_results(self, small, trained_small, train_quickly):
        train_quickly(small, batch_key="batch", key_added="mine")
        assert (list(small.obsm), list(small.uns)) == (["X_mine"], ["mine"])
        assert "mine_imputed" in small.layers
        assert not any("scvi_pyro" in str(name) for name in small.layers)
        same_results(small, trained_small, key="mine")

    def test_returns_nothing_by_default(self, small, train_quickly):
        assert train_quickly(small) is None

    def test_copy_returns_a_changed_copy(self, small, trained_small, train_quickly, unchanged):
        before = small.copy()
        copied = train_quickly(small, batch_key="batch", copy=True)
        unchanged(small, before)
        same_results(copied, trained_small)

    def test_results_land_on_a_view(self, small, train_quickly):
        view = small[::2]
        expected = view.copy()
        with pytest.warns(ad.ImplicitModificationWarning):
            train_quickly(view, batch_key="batch")
        train_quickly(expected, batch_key="batch")
        assert not view.is_view
        same_results(view, expected)
        assert list(small.obsm) == []

    def test_copy_of_a_view_leaves_the_view_a_view(self, small, train_quickly):
        view = small[::2]
        copied = train_quickly(view, copy=True)
        assert view.is_view
        assert copied.obsm["X_scvi_pyro"].shape == (45, 10)

    def test_loadings_of_a_linear_decoder_are_those_of_its_genes(self, small, train_quickly):
        mask = np.arange(small.n_vars) % 2 == 0
        train_quickly(small, batch_key="batch", mask_var=mask, decoder="linear", n_latent=4)
        loadings = small.varm["scvi_pyro_loadings"]
        weight = small.uns["scvi_pyro"]["weights"]["decoder.rate.weight"]
        assert loadings.index.equals(small.var_names)
        np.testing.assert_array_equal(loadings.to_numpy()[mask], weight[:, :4])
        assert loadings.to_numpy().shape == (40, 4)
        assert np.isnan(loadings.to_numpy()[~mask]).all()

    def test_params_hold_what_was_passed_and_worked_out(self, small, train_quickly):
        train_quickly(small, batch_key="batch", n_latent=3, random_state=7, categorical_covariate_keys="cell_type")
        params = small.uns["scvi_pyro"]["params"]
        expected = {"batch_key": "batch", "n_latent": 3, "n_hidden": 8, "random_state": 7, "max_epochs": 2}
        assert expected.items() <= {name: params[name] for name in expected}.items()
        assert list(params["categorical_covariate_keys"]) == ["cell_type"]
        assert "layer" not in params

    def test_a_second_run_replaces_the_results_of_the_first(self, small, trained_small, train_quickly):
        train_quickly(small, batch_key="batch", random_state=3, n_latent=2)
        train_quickly(small, batch_key="batch")
        same_results(small, trained_small)


class TestReproducibility:
    def test_same_seed_gives_bitwise_the_same_result(self, small, trained_small, train_quickly):
        train_quickly(small, batch_key="batch")
        same_results(small, trained_small)

    @pytest.mark.parametrize("options", [{"gene_likelihood": "zinb", "early_stopping": True}, {"library": "latent"}])
    def test_same_seed_gives_the_same_result_with_other_options(self, small, train_quickly, options):
        first, second = (train_quickly(small, batch_key="batch", copy=True, **options) for _ in range(2))
        same_results(first, second)

    def test_another_seed_gives_another_result(self, small, trained_small, train_quickly):
        train_quickly(small, batch_key="batch", random_state=1)
        assert not np.allclose(small.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])

    def test_numpy_numbers_give_the_same_result_as_python_numbers(self, small, trained_small, train_quickly):
        train_quickly(
            small,
            batch_key="batch",
            random_state=np.int64(0),
            max_epochs=np.int32(2),
            n_hidden=np.int64(8),
            batch_size=np.int64(128),
            train_size=np.float64(0.9),
            dropout_rate=np.float64(0.1),
        )
        same_results(small, trained_small)

    def test_callbacks_are_not_changed(self, small, train_quickly):
        callbacks = [pl.Callback()]
        train_quickly(small, callbacks=callbacks, early_stopping=True)
        assert len(callbacks) == 1

    def test_training_works_in_a_thread(self, small, train_quickly):
        thread = threading.Thread(target=train_quickly, args=(small,), kwargs={"batch_key": "batch"})
        thread.start()
        thread.join()
        assert np.isfinite(small.obsm["X_scvi_pyro"]).all()


class TestInputForms:
    @pytest.mark.parametrize(
        "form", [sparse.csc_matrix, sparse.csr_array, sparse.csc_array, lambda m: m.toarray(), lambda m: m.toarray("F")]
    )
    def test_every_matrix_type_gives_the_same_result(self, small, trained_small, train_quickly, form):
        small.X = form(small.X)
        train_quickly(small, batch_key="batch")
        same_results(small, trained_small)

    @pytest.mark.parametrize("dtype", ["int32", "int64", "uint16", "uint64", "float64"])
    @pytest.mark.parametrize("is_sparse", [True, False])
    def test_every_number_type_gives_the_same_result(self, small, trained_small, train_quickly, dtype, is_sparse):
        small.X = (small.X if is_sparse else small.X.toarray()).astype(dtype)
        train_quickly(small, batch_key="batch")
        same_results(small, trained_small)

    @pytest.mark.parametrize("dtype", ["bool", "int8", "float16"])
    def test_narrow_number_types_give_the_result_of_float32(self, small, train_quickly, dtype):
        small.X = np.minimum(small.X.toarray(), 1 if dtype == "bool" else 100)
        narrow = small.copy()
        narrow.X = narrow.X.astype(dtype)
        for adata in (small, narrow):
            train_quickly(adata, batch_key="batch")
        same_results(narrow, small)

    def test_counts_in_a_layer_give_the_same_result(self, small, trained_small, train_quickly):
        small.layers["counts"] = small.X
        small.X = small.X * 0.7
        train_quickly(small, batch_key="batch", layer="counts")
        same_results(small, trained_small)

    def test_counts_in_a_layer_without_x(self, small, trained_small, train_quickly):
        without = ad.AnnData(obs=small.obs, var=small.var, layers={"counts": small.X})
        train_quickly(without, batch_key="batch", layer="counts")
        same_results(without, trained_small)

    @pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
    def test_stored_zeros_and_unsorted_indices_change_nothing(self, small, train_quickly, gene_likelihood):
        odd = small.copy()
        counts = small.X.toarray()
        columns = np.tile(np.arange(small.n_vars)[::-1], small.n_obs)
        indptr = np.arange(small.n_obs + 1) * small.n_vars
        odd.X = sparse.csr_matrix((counts[:, ::-1].ravel(), columns, indptr), shape=small.shape)
        for adata in (small, odd):
            train_quickly(adata, batch_key="batch", gene_likelihood=gene_likelihood)
        same_results(odd, small)
        np.testing.assert_array_equal(odd.X.indices, columns)
        np.testing.assert_array_equal(odd.X.data, counts[:, ::-1].ravel())

    def test_two_cells(self, small, train_quickly):
        two = small[[0, 50]].copy()
        train_quickly(two, batch_key="batch")
        assert np.isfinite(two.obsm["X_scvi_pyro"]).all()

    def test_one_gene(self, small, train_quickly):
        one = small[:, [np.ravel(small.X.sum(axis=0)).argmax()]].copy()
        sc.pp.filter_cells(one, min_counts=1)
        train_quickly(one)
        np.testing.assert_allclose(one.layers["scvi_pyro_imputed"], one.X.toarray(), rtol=1e-5)

    def test_one_batch_gives_the_result_of_no_batch(self, small, train_quickly):
        small.obs["same"] = "a"
        with_key = train_quickly(small, batch_key="same", copy=True)
        train_quickly(small)
        same_results(with_key, small)

    def test_a_batch_with_one_cell(self, small, train_quickly):
        small.obs["batch"] = ["single"] + ["other"] * (small.n_obs - 1)
        train_quickly(small, batch_key="batch", library="latent", dispersion="gene-batch")
        assert np.isfinite(small.obsm["X_scvi_pyro"]).all()
        assert np.isfinite(small.layers["scvi_pyro_imputed"]).all()

    def test_batches_of_two_cells(self, small, train_quickly):
        small.obs["batch"] = np.arange(small.n_obs) // 2
        train_quickly(small, batch_key="batch")
        assert np.isfinite(small.obsm["X_scvi_pyro"]).all()

    def test_categories_that_do_not_occur_change_nothing(self, small, trained_small, train_quickly):
        small.obs["batch"] = small.obs["batch"].cat.add_categories(["a", "z"])
        small.obs["batch"] = small.obs["batch"].cat.reorder_categories(sorted(small.obs["batch"].cat.categories))
        train_quickly(small, batch_key="batch")
        same_results(small, trained_small)
        assert len(small.obs["batch"].cat.categories) == 5

    @pytest.mark.parametrize("decoder", ["nonlinear", "linear"])
    def test_gene_names_may_repeat(self, small, train_quickly, decoder):
        small.var_names = ["same"] * 3 + small.var_names[3:].tolist()
        with pytest.warns(UserWarning, match="not unique"):  # anndata's, at each copy
            copied = train_quickly(small, decoder=decoder, copy=True)
        assert scvip.get.model(copied).n_genes == small.n_vars

    @pytest.mark.parametrize("n_cells", [17, 33])
    def test_a_last_minibatch_of_one_cell_is_avoided(self, small, train_quickly, n_cells):
        cells = small[:n_cells].copy()
        train_quickly(cells, train_size=1, batch_size=16)
        assert np.isfinite(cells.obsm["X_scvi_pyro"]).all()

    def test_minibatches_of_two_cells_and_an_odd_number_of_cells(self, small, train_quickly):
        cells = small[:7].copy()
        train_quickly(cells, train_size=1, batch_size=2)
        assert np.isfinite(cells.obsm["X_scvi_pyro"]).all()

    def test_very_deep_cells(self, small, train_quickly):
        small.X = small.X * 5000
        train_quickly(small, gene_likelihood="zinb")
        assert np.isfinite(small.layers["scvi_pyro_imputed"]).all()

    @given(
        seed=st.integers(0, 10**6),
        shape=st.tuples(st.integers(2, 30), st.integers(1, 12)),
        sparsity=st.floats(0, 0.95),
        mean=st.sampled_from([0.5, 5, 500]),
        form=st.sampled_from([sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.asarray]),
        dtype=st.sampled_from(["int32", "uint16", "float32", "float64"]),
        n_batches=st.integers(1, 4),
        batch_size=st.integers(2, 40),
        gene_likelihood=st.sampled_from(["nb", "zinb", "poisson"]),
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_random_counts_train_and_stay_as_they_are(
        self, unchanged, seed, shape, sparsity, mean, form, dtype, n_batches, batch_size, gene_likelihood
    ):
        rng = np.random.default_rng(seed)
        counts = rng.poisson(mean, shape) * (rng.random(shape) >= sparsity)
        counts[counts.sum(axis=1) == 0, 0] = 1
        obs = pd.DataFrame({"batch": rng.integers(n_batches, size=shape[0]).astype(str)})
        obs.index = obs.index.astype(str)
        adata = ad.AnnData(form(counts.astype(dtype)), obs=obs)
        before = adata.copy()
        trained = scvip.tl.scvi_pyro(
            adata,
            batch_key="batch",
            batch_size=batch_size,
            gene_likelihood=gene_likelihood,
            max_epochs=1,
            n_hidden=4,
            progress_bar=False,
            copy=True,
        )
        unchanged(adata, before)
        assert np.isfinite(trained.obsm["X_scvi_pyro"]).all()
        np.testing.assert_allclose(trained.layers["scvi_pyro_imputed"].sum(axis=1), counts.sum(axis=1), rtol=1e-4)


class TestRefusals:
    """Before training, and with ``adata`` as it was. What the messages say is tested with ``_validate``."""

    @pytest.mark.parametrize(
        ("spoil", "arguments", "error", "message"),
        [
            (lambda a: a.X.__setitem__((0, 0), -1), {}, ValueError, "negative values"),
            (lambda a: a.X.__setitem__((0, 0), np.nan), {}, ValueError, "NaN or infinite"),
            (lambda a: a.X.__setitem__((0, 0), np.inf), {}, ValueError, "NaN or infinite"),
            (lambda a: a.X.__setitem__((0, 0), 0.5), {}, ValueError, "not whole numbers"),
            (lambda a: a.X.__setitem__(0, 0), {}, ValueError, "have no counts"),
            (None, {"layer": "counts"}, KeyError, "layer='counts' is not in adata.layers"),
            (None, {"batch_key": "Batch"}, KeyError, "Did you mean 'batch'"),
            (None, {"labels_key": "celltype"}, KeyError, "Did you mean 'cell_type'"),
            (None, {"size_factor_key": "size"}, KeyError, "size_factor_key='size'"),
            (None, {"categorical_covariate_keys": ["donor"]}, KeyError, "categorical_covariate_keys='donor'"),
            (None, {"continuous_covariate_keys": ["age"]}, KeyError, "continuous_covariate_keys='age'"),
            (None, {"continuous_covariate_keys": "cell_type"}, ValueError, "must be numeric"),
            (None, {"categorical_covariate_keys": ["batch", "batch"]}, ValueError, "names a key twice"),
            (None, {"mask_var": "hvg"}, KeyError, "mask_var='hvg'"),
            (lambda a: a.obs.__setitem__("batch", None), {"batch_key": "batch"}, ValueError, "90 missing values"),
            (None, {"n_hiden": 3}, TypeError, "Did you mean 'n_hidden'"),
            (None, {"n_latent": 0}, ValueError, "n_latent=0"),
            (None, {"batch_size": 1}, ValueError, "batch_size=1"),
            (None, {"gene_likelihood": "normal"}, ValueError, "is not a choice"),
            (None, {"dispersion": "gene-label"}, ValueError, "pass labels_key="),
            (None, {"batch_key": "batch", "batch_offset": None}, ValueError, "needs offsets.*pass 'one-hot'"),
            (None, {"early_stopping": True, "train_size": 1}, ValueError, "needs validation cells"),
            (None, {"keep_best_on_interrupt": True}, ValueError, "needs early_stopping=True"),
            (None, {"accelerator": "abacus"}, ValueError, "abacus"),
            (None, {"precision": "7"}, ValueError, "7"),
        ],
    )
    def test_bad_input_is_refused(self, small, unchanged, spoil, arguments, error, message):
        small.X = small.X.toarray()
        if spoil:
            spoil(small)
        before = small.copy()
        with pytest.raises(error, match=message):
            scvip.tl.scvi_pyro(small, callbacks=[MustNotTrain()], **arguments)
        for adata in (small, before):
            adata.X = np.nan_to_num(adata.X, nan=-7)  # NaN equals nothing
        unchanged(small, before)

    @pytest.mark.parametrize("shape", [(0, 40), (1, 40), (90, 0)])
    def test_too_few_cells_or_genes_are_refused(self, small, shape):
        with pytest.raises(ValueError, match="at least"):
            scvip.tl.scvi_pyro(small[: shape[0], : shape[1]].copy(), callbacks=[MustNotTrain()])

    def test_all_but_adata_must_be_named(self, small):
        with pytest.raises(TypeError, match="positional argument"):
            scvip.tl.scvi_pyro(small, "batch")

    def test_an_imputed_layer_larger_than_the_free_memory_is_refused(self, small, unchanged, monkeypatch):
        before = small.copy()
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
        with pytest.raises(MemoryError, match=r"the imputed layer would take 0\.0 GiB, and 0\.0 GiB .* impute=False"):
            scvip.tl.scvi_pyro(small, callbacks=[MustNotTrain()])
        unchanged(small, before)

    def test_without_imputed_layer_little_memory_is_enough(self, small, train_quickly, monkeypatch):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
        train_quickly(small, impute=False)
        assert "X_scvi_pyro" in small.obsm
