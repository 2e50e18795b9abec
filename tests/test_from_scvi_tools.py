"""Models trained by scvi-tools give the same numbers here. The slow tests need the extra 'bench'."""

import importlib.util
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, posterior, storage

needs_scvi_tools = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("scvi") is None, reason="needs scvi-tools: pip install -e '.[bench]'"),
    pytest.mark.filterwarnings("ignore"),  # scvi-tools' own
]

COVARIATES = {"categorical_covariate_keys": ["donor", "sex"], "continuous_covariate_keys": ["age", "stress"]}
EVERYTHING = {"n_layers": 2, "encode_covariates": True, "use_observed_lib_size": False, **COVARIATES}
CASES = {
    "nb": {"gene_likelihood": "nb"},
    "zinb": {"gene_likelihood": "zinb"},
    "poisson": {"gene_likelihood": "poisson"},
    "nb, gene-batch": {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    "nb, gene-label": {"gene_likelihood": "nb", "dispersion": "gene-label"},
    "nb, gene-cell": {"gene_likelihood": "nb", "dispersion": "gene-cell"},
    "zinb, gene-batch": {"gene_likelihood": "zinb", "dispersion": "gene-batch"},
    "zinb, gene-label": {"gene_likelihood": "zinb", "dispersion": "gene-label"},
    "zinb, gene-cell": {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
    "one batch": {"batch_key": None},
    "covariates": COVARIATES,
    "covariates, two layers": {"n_layers": 2, **COVARIATES},
    "covariates in the first of two layers": {"n_layers": 2, "deeply_inject_covariates": False, **COVARIATES},
    "encoded covariates": {"encode_covariates": True, **COVARIATES},
    "latent library": {"use_observed_lib_size": False},
    "nb, everything": {"gene_likelihood": "nb", **EVERYTHING},
    "zinb, everything": {"gene_likelihood": "zinb", "dispersion": "gene-batch", **EVERYTHING},
    "poisson, everything": {"gene_likelihood": "poisson", **EVERYTHING},
    "embedded batch": {"batch_representation": "embedding", **EVERYTHING},
    "wide embedding": {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 7}},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "both", "n_layers": 2},
    "batch norm in the encoder, layer norm in the decoder": {"use_batch_norm": "encoder", "use_layer_norm": "decoder"},
    "no norm": {"use_batch_norm": "none"},
    "no dropout": {"dropout_rate": 0.0, "n_layers": 2},
    "linear, nb": {"linear": True},
    "linear, zinb": {"linear": True, "gene_likelihood": "zinb"},
    "linear, poisson": {"linear": True, "gene_likelihood": "poisson"},
    "linear, gene-batch, observed library": {"linear": True, "dispersion": "gene-batch", "use_observed_lib_size": True},
    "linear, no norm, bias": {"linear": True, "use_batch_norm": False, "bias": True, "n_layers": 2},
    "linear, one batch": {"linear": True, "batch_key": None, "bias": True},
}
SETUP = ("batch_key", "labels_key", "categorical_covariate_keys", "continuous_covariate_keys")


def mixtures():
    adata = scvip.datasets.cell_mixtures()
    rng = np.random.default_rng(0)
    adata.obs["donor"] = pd.Categorical(rng.choice(["c", "a", "b"], adata.n_obs), categories=["c", "a", "b"])
    adata.obs["sex"] = rng.choice(["f", "m"], adata.n_obs)
    adata.obs["age"] = rng.normal(size=adata.n_obs)
    adata.obs["stress"] = rng.uniform(size=adata.n_obs)
    return adata


def train_peer(adata, *, linear=False, max_epochs=2, **options):
    import scvi

    scvi.settings.seed = 0
    options = {"batch_key": "batch", "labels_key": "cell_type"} | options
    setup = {name: options.pop(name) for name in SETUP if name in options}
    kind = scvi.model.LinearSCVI if linear else scvi.model.SCVI
    kind.setup_anndata(adata, **setup)
    peer = kind(adata, **options)
    peer.train(max_epochs=max_epochs, accelerator="cpu", enable_progress_bar=False, check_val_every_n_epoch=1)
    return peer


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES.keys())
def pair(request):
    """A model of scvi-tools, an AnnData with the converted model, the converted model, and all cells for either."""
    adata = mixtures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = train_peer(adata, **request.param)
        [tensors] = peer._make_data_loader(adata=adata, batch_size=adata.n_obs)
    peer.module.eval()
    scvip.get.from_scvi_tools(peer, adata)
    module, spec = storage.from_uns(adata, "scvi_pyro")
    return peer, adata, module, data.load(adata, spec).cells(torch.arange(adata.n_obs)), tensors


def same(actual, expected):
    np.testing.assert_allclose(actual.detach(), expected.detach(), rtol=1e-4, atol=1e-30)


class TestEqualToScviTools:
    pytestmark = needs_scvi_tools

    def test_latent_means_are_the_same(self, pair):
        peer, adata, *_ = pair
        np.testing.assert_allclose(adata.obsm["X_scvi_pyro"], peer.get_latent_representation(), rtol=1e-4, atol=1e-6)

    def test_decoder_outputs_are_the_same(self, pair):
        peer, _, module, cells, tensors = pair
        inferred = peer.module.inference(**peer.module._get_inference_input(tensors))
        theirs = peer.module.generative(**peer.module._get_generative_input(tensors, inferred))["px"]
        ours = module.likelihood(inferred["z"], inferred["library"].exp(), cells)
        if module.gene_likelihood == "poisson":
            same(ours.log_mean.exp(), theirs.rate)
            return
        same(ours.log_mean.exp(), theirs.mu)
        same(ours.log_inverse_dispersion.exp().expand(ours.batch_shape), theirs.theta)
        if module.gene_likelihood == "zinb":
            same(ours.dropout_logits.sigmoid(), theirs.zi_probs)

    def test_reconstruction_and_kl_of_each_cell_are_the_same(self, pair):
        peer, _, module, cells, tensors = pair
        # Both sample z, then the library size, in the same shapes: the same seed gives the same sample.
        torch.manual_seed(0)
        reconstruction, kl = posterior.elbo_terms(module, cells)
        torch.manual_seed(0)
        theirs = peer.module(tensors)[2]
        same(reconstruction, -theirs.reconstruction_loss["reconstruction_loss"])
        same(kl, sum(theirs.kl_local.values()))

    def test_imputed_counts_are_the_frequencies_of_scvi_tools_at_the_depth_of_the_cell(self, pair):
        peer, adata, _, _, tensors = pair
        inferred = peer.module.inference(**peer.module._get_inference_input(tensors))
        inferred["z"] = inferred["qz"].loc
        frequency = peer.module.generative(**peer.module._get_generative_input(tensors, inferred))["px"].scale
        same(torch.from_numpy(adata.layers["scvi_pyro_imputed"]), frequency * tensors["X"].sum(dim=1, keepdim=True))


class TestConverted:
    pytestmark = needs_scvi_tools

    @pytest.fixture(scope="class")
    def peer(self):
        adata = mixtures()
        return train_peer(adata, n_layers=2, **COVARIATES)

    def test_model_survives_a_file(self, peer, tmp_path):
        adata = mixtures()
        scvip.get.from_scvi_tools(peer, adata)
        adata.write_h5ad(tmp_path / "converted.h5ad")
        module = scvip.get.model(ad.read_h5ad(tmp_path / "converted.h5ad"))
        for name, value in scvip.get.model(adata).state_dict().items():
            assert torch.equal(value, module.state_dict()[name]), name

    def test_functions_for_trained_models_work_on_it(self, peer, tmp_path):
        reference = mixtures()
        scvip.get.from_scvi_tools(peer, reference)
        reference.write_h5ad(tmp_path / "converted.h5ad")
        reference = ad.read_h5ad(tmp_path / "converted.h5ad")
        query = mixtures()[::3].copy()
        scvip.tl.map_query(query, reference)
        np.testing.assert_allclose(query.obsm["X_scvi_pyro"], reference.obsm["X_scvi_pyro"][::3], rtol=1e-4, atol=1e-6)
        scvip.tl.impute(query, transform_batch="dropseq_3cl", key_added="as_dropseq", progress_bar=False)
        scvip.tl.latent(query, n_samples=2)
        scvip.tl.posterior_predictive(query, progress_bar=False)
        scvip.tl.score_cells(query, progress_bar=False)
        scvip.tl.rank_genes_groups(query, "cell_type", n_samples=100)
        expected = float(peer.get_elbo(peer.adata[::3]))  # of one sample of the code
        assert query.obs["scvi_pyro_elbo"].mean() == pytest.approx(expected, rel=0.003)

    def test_genes_may_stand_in_another_order_among_others(self, peer):
        adata = mixtures()
        scvip.get.from_scvi_tools(peer, adata)
        other = ad.concat([adata[:, ::-1], mixtures()[:, :5].copy()], axis=1, join="outer", merge="first")
        other.var_names = [*adata.var_names[::-1], *(f"other {i}" for i in range(5))]
        scvip.get.from_scvi_tools(peer, other)
        np.testing.assert_allclose(other.obsm["X_scvi_pyro"], adata.obsm["X_scvi_pyro"], rtol=1e-5, atol=1e-6)
        imputed = other.layers["scvi_pyro_imputed"]
        np.testing.assert_allclose(imputed[:, :-5][:, ::-1], adata.layers["scvi_pyro_imputed"], rtol=1e-4)
        assert np.isnan(imputed[:, -5:]).all()

    def test_model_after_architecture_surgery_knows_all_batches(self):
        import scvi

        adata = mixtures()
        is_query = (adata.obs["batch"] == "dropseq_3cl").to_numpy()
        reference = train_peer(adata[~is_query].copy(), max_epochs=1, encode_covariates=True)
        peer = scvi.model.SCVI.load_query_data(adata[is_query].copy(), reference)
        peer.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        scvip.get.from_scvi_tools(peer, adata)
        ours = adata.obsm["X_scvi_pyro"]
        np.testing.assert_allclose(ours[is_query], peer.get_latent_representation(), rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("n_batches", [3, 1])
    @pytest.mark.parametrize(
        "options",
        [
            {"n_layers": 2, "encode_covariates": True, **COVARIATES},
            {"dispersion": "gene-batch", "use_observed_lib_size": False, "n_layers": 2},
            {"dispersion": "gene-label", "batch_representation": "embedding"},
            {"linear": True, "gene_likelihood": "zinb", "bias": True},
        ],
        ids=["covariates", "latent library", "embedding", "linear"],
    )
    def test_categories_without_cells_are_left_out(self, options, n_batches):
        adata = mixtures()
        adata = adata[adata.obs["batch"].cat.codes < n_batches].copy()
        for key, unused in {"batch": "0 another lab", "cell_type": "unknown", "donor": "b2"}.items():
            names = sorted([*adata.obs[key].cat.categories, unused])
            adata.obs[key] = adata.obs[key].cat.set_categories(names)
        adata.obs["sex"] = pd.Categorical(["f"] * adata.n_obs, ["f", "m"])
        query = adata.copy()
        peer = train_peer(adata, **options)
        if n_batches == 1 and "batch_representation" in options:
            with pytest.raises(ValueError, match="embedding' of a single batch"):
                scvip.get.from_scvi_tools(peer, query)
            return
        scvip.get.from_scvi_tools(peer, query)
        stored = query.uns["scvi_pyro"]
        assert sorted(stored["categories"]["batch"]) == sorted(adata.obs["batch"].unique())
        theirs = peer.get_latent_representation()
        np.testing.assert_allclose(query.obsm["X_scvi_pyro"], theirs, rtol=1e-4, atol=1e-6)
        # Expected counts in all batches that have cells; scvi-tools takes averages over named batches, too.
        names = adata.obs["batch"].unique().tolist()
        scvip.tl.impute(query, transform_batch="all", library_size=1e4, progress_bar=False)
        [tensors] = peer._make_data_loader(adata=adata, batch_size=adata.n_obs)
        module = peer.module.eval()
        known = peer.registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"].tolist()
        expected = []
        for name in names:
            inferred = module.inference(**module._get_inference_input(tensors))
            inferred["z"] = inferred["qz"].loc
            inputs = module._get_generative_input(tensors, inferred) | {"transform_batch": known.index(name)}
            expected.append(module.generative(**inputs)["px"].scale)
        same(torch.from_numpy(query.layers["scvi_pyro_imputed"]), torch.stack(expected).mean(dim=0) * 1e4)

    def test_history_has_the_sign_of_the_elbo(self, peer):
        adata = mixtures()
        scvip.get.from_scvi_tools(peer, adata)
        history = adata.uns["scvi_pyro"]["history"]
        assert history.index.tolist() == [1, 2]
        np.testing.assert_allclose(history["validation_elbo"], -peer.history["elbo_validation"].to_numpy(float)[:, 0])
        np.testing.assert_allclose(history["train_kl"], peer.history["kl_local_train"].to_numpy(float)[:, 0])

    def test_copy_leaves_adata_unchanged(self, peer):
        adata = mixtures()
        changed = scvip.get.from_scvi_tools(peer, adata, copy=True, key_added="peer", impute=False)
        assert "peer" not in adata.uns
        assert set(changed.obsm) - set(adata.obsm) == {"X_peer"}
        assert not changed.layers

    def test_unknown_category_is_refused(self, peer):
        adata = mixtures()
        adata.obs["sex"] = adata.obs["sex"].replace("f", "x")
        with pytest.raises(ValueError, match="categories that the model was not trained on: 'x'"):
            scvip.get.from_scvi_tools(peer, adata)
        assert not adata.uns

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"gene_likelihood": "normal"}, "gene_likelihood='normal'"),
            ({"latent_distribution": "ln"}, "latent_distribution='ln'"),
            ({"log_variational": False}, "log_variational=False"),
            ({"use_layer_norm": "encoder"}, "use_batch_norm and use_layer_norm"),
            ({"batch_representation": "embedding", "batch_key": None}, "embedding' of a single batch"),
            ({"var_activation": torch.nn.functional.softplus}, "var_activation"),
            ({"extra_decoder_kwargs": {"activation_fn": torch.nn.Tanh}}, "extra_decoder_kwargs"),
        ],
    )
    def test_option_without_an_equal_is_refused_by_name(self, options, named):
        adata = mixtures()
        peer = train_peer(adata, max_epochs=1, **options)
        with pytest.raises(ValueError, match=named):
            scvip.get.from_scvi_tools(peer, mixtures())

    def test_size_factor_is_refused(self):
        import scvi

        adata = mixtures()
        scvi.model.SCVI.setup_anndata(adata, size_factor_key="stress")
        peer = scvi.model.SCVI(adata)
        peer.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
        with pytest.raises(ValueError, match="size_factor_key"):
            scvip.get.from_scvi_tools(peer, mixtures())

    def test_untrained_model_is_refused(self):
        import scvi

        adata = mixtures()
        scvi.model.SCVI.setup_anndata(adata)
        with pytest.raises(ValueError, match="has not been trained"):
            scvip.get.from_scvi_tools(scvi.model.SCVI(adata), adata)

    def test_other_model_is_refused(self):
        import scvi

        adata = mixtures()
        scvi.model.AmortizedLDA.setup_anndata(adata)
        with pytest.raises(TypeError, match="model is a AmortizedLDA"):
            scvip.get.from_scvi_tools(scvi.model.AmortizedLDA(adata), adata)


class TestLabels:
    pytestmark = needs_scvi_tools

    @pytest.fixture(
        scope="class",
        params=[{}, {"linear_classifier": True}, {"n_layers": 2, "use_batch_norm": "none"}],
        ids=["default", "linear classifier", "two layers, no norm"],
    )
    def pair(self, request):
        """A SCANVI of scvi-tools, and an AnnData with the converted model."""
        import scvi

        scvi.settings.seed = 0
        adata = mixtures()
        adata.obs["known"] = adata.obs["cell_type"].astype(str).where(np.arange(adata.n_obs) % 3 > 0, "?")
        scvi.model.SCANVI.setup_anndata(adata, labels_key="known", unlabeled_category="?", batch_key="batch")
        peer = scvi.model.SCANVI(adata, **request.param)
        peer.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
        scvip.get.from_scvi_tools(peer, adata, key_added="scanvi_pyro")
        return peer, adata

    def test_predictions_are_those_of_scvi_tools(self, pair):
        peer, adata = pair
        theirs, ours = peer.predict(soft=True), adata.obsm["scanvi_pyro_probabilities"]
        assert ours.columns.tolist() == theirs.columns.tolist()
        np.testing.assert_allclose(ours, theirs, atol=1e-4)

    def test_codes_are_those_of_scvi_tools(self, pair):
        peer, adata = pair
        np.testing.assert_allclose(adata.obsm["X_scanvi_pyro"], peer.get_latent_representation(), rtol=1e-4, atol=1e-5)

    def test_queries_are_predicted_without_labels(self, pair):
        _, adata = pair
        query = mixtures()[::3].copy()
        scvip.tl.map_query(query, adata, key="scanvi_pyro", impute=False)
        np.testing.assert_allclose(
            query.obsm["scanvi_pyro_probabilities"], adata.obsm["scanvi_pyro_probabilities"][::3], atol=1e-4
        )
        assert query.obs["scanvi_pyro_novelty"].between(0, 1).all()

    def test_cells_without_some_label_are_refused(self, pair):
        peer, adata = pair
        with pytest.raises(ValueError, match="has no cell of 'HCC827', which the model knows"):
            scvip.get.from_scvi_tools(peer, adata[adata.obs["known"] != "HCC827"].copy())


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"model is a str; pass a trained scvi.model.SCVI"):
        scvip.get.from_scvi_tools("model.pt", scvip.datasets.cell_mixtures())
