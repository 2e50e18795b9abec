"""Every pair of values of two options of the model trains together."""

from itertools import combinations, product

import numpy as np
import pytest

import scanpy_scvipyro as scvip

OPTIONS = {
    "gene_likelihood": ["nb", "zinb", "poisson"],
    "dispersion": ["gene", "gene-batch", "gene-label", "gene-cell"],
    "library": ["observed", "latent", "size factor"],
    "batch_key": ["batch", None],
    "covariates": ["none", "categorical", "continuous", "both"],
    "encode_covariates": [False, True],
    "deeply_inject_covariates": [True, False],
    "batch_representation": ["one-hot", "embedding", "offset"],
    "n_batch_embedding": [5, 1],
    "batch_offset": [0, 0.5, None],
    "n_latent": [10, 1],
    "n_hidden": [128, 3],
    "n_layers": [1, 2, 3],
    "dropout_rate": [0.1, 0],
    "activation": ["relu", "gelu", "silu", "leaky_relu", "tanh"],
    "encoder_normalization": ["batch", "layer", "none"],
    "decoder_normalization": ["batch", "layer", "none"],
    "decoder": ["nonlinear", "linear"],
    "prior": ["mixture", "normal"],
    "n_prior_components": [50, 1],
    "encoder_input": ["log_normalized", "log_counts"],
    "batch_alignment": [200, 0],
    "mask_var": [None, "highly_variable"],
}


def pairwise(options):
    """Settings, few but together covering each pair of values of two options: greedy, of the best of 50 candidates."""
    rng = np.random.default_rng(0)

    def pairs(row):
        return set(combinations([(name, str(row[name])) for name in options], 2))

    missing = {pair for a, b in combinations(options, 2) for pair in pairs_of(options, a, b)}
    rows = []
    while missing:
        (first, second), *_ = sorted(missing)
        candidates = []
        for _ in range(50):
            row = {name: values[rng.integers(len(values))] for name, values in options.items()}
            for name, text in (first, second):
                row[name] = next(value for value in options[name] if str(value) == text)
            candidates.append(row)
        rows.append(max(candidates, key=lambda row: len(pairs(row) & missing)))
        missing -= pairs(rows[-1])
    return rows


def pairs_of(options, a, b):
    return {((a, str(x)), (b, str(y))) for x, y in product(options[a], options[b])}


ROWS = pairwise(OPTIONS)


def arguments(row):
    """What to pass to ``tl.scvi_pyro``, from a row."""
    passed = {name: value for name, value in row.items() if name not in ("covariates", "library")}
    passed["labels_key"] = "cell_type"
    if row["batch_representation"] == "offset":
        passed["batch_offset"] = row["batch_offset"] or 0
    if row["library"] == "size factor":
        passed["size_factor_key"] = "size"
    else:
        passed["library"] = row["library"]
    if row["covariates"] in ("categorical", "both"):
        passed["categorical_covariate_keys"] = ["donor", "sex"]
    if row["covariates"] in ("continuous", "both"):
        passed["continuous_covariate_keys"] = ["age"]
    return passed


def test_rows_cover_every_pair():
    for a, b in combinations(OPTIONS, 2):
        assert {((a, str(row[a])), (b, str(row[b]))) for row in ROWS} == pairs_of(OPTIONS, a, b)


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_options_train_together(mixtures, row):
    rng = np.random.default_rng(0)
    mixtures.obs["donor"] = rng.choice(["a", "b", "c"], mixtures.n_obs)
    mixtures.obs["sex"] = rng.choice(["f", "m"], mixtures.n_obs)
    mixtures.obs["age"] = rng.normal(size=mixtures.n_obs)
    mixtures.obs["size"] = np.asarray(mixtures.X.sum(axis=1)).ravel() / 1000
    mixtures.var["highly_variable"] = np.asarray(mixtures.X.sum(axis=0)).ravel() > 500
    scvip.tl.scvi_pyro(mixtures, **arguments(row), max_epochs=2, progress_bar=False)

    modelled = mixtures.var["highly_variable"].to_numpy() if row["mask_var"] else np.ones(mixtures.n_vars, dtype=bool)
    latent, imputed = mixtures.obsm["X_scvi_pyro"], mixtures.layers["scvi_pyro_imputed"]
    assert latent.shape == (mixtures.n_obs, row["n_latent"])
    assert np.isfinite(latent).all()
    assert imputed.shape == mixtures.shape
    assert np.isfinite(imputed[:, modelled]).all()
    assert (imputed[:, modelled] >= 0).all()
    assert np.isnan(imputed[:, ~modelled]).all()
    assert np.isfinite(mixtures.uns["scvi_pyro"]["history"]).all(axis=None)
    assert all(np.isfinite(value).all() for value in mixtures.uns["scvi_pyro"]["weights"].values())
    assert ("scvi_pyro_loadings" in mixtures.varm) == (row["decoder"] == "linear")
    embedded = row["batch_representation"] == "embedding" and row["batch_key"]
    assert ("batch_embedding" in mixtures.uns["scvi_pyro"]) == bool(embedded)
    assert scvip.get.model(mixtures).n_latent == row["n_latent"]


def test_latent_library_with_size_factors_is_refused(mixtures):
    mixtures.obs["size"] = 1.0
    with pytest.raises(ValueError, match="pass one of the two"):
        scvip.tl.scvi_pyro(mixtures, library="latent", size_factor_key="size")
