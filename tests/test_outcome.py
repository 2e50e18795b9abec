"""Training that has collapsed is told from training that has not, in the call itself and in the report."""

import anndata as ad
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scanpy as sc
import torch
from scipy import sparse, stats

from scanpy_scvipyro import data, outcome
from scanpy_scvipyro.model import SCVI


class Collapsed(SCVI):
    """Codes are the same for all cells."""

    def guide(self, cells, kl_weight=1.0):
        with pyro.plate("cells", len(cells.batch)):
            pyro.sample("z", dist.Normal(torch.zeros(len(cells.batch), self.n_latent), 1.0).to_event(1))


class Constant(SCVI):
    """Reads and explains nothing but the mean of all cells, badly."""

    def likelihood(self, z, library_size, cells):
        return super().likelihood(100 * z, library_size, cells)


@pytest.fixture
def fit(train_quickly):
    def train(adata, **options):
        train_quickly(adata, impute=False, **{"max_epochs": 40, "n_hidden": 32} | options)

    return train


class TestBaseline:
    @pytest.mark.parametrize("gene_likelihood", ["nb", "zinb", "poisson"])
    def test_it_is_the_likelihood_of_mean_frequencies_by_batch(self, small, gene_likelihood):
        spec = data.describe(small, data.DataSpec(batch_key="batch"), np.ones(40, dtype=bool))
        counts, batch = small.X.toarray().astype(float), small.obs["batch"].cat.codes.to_numpy()
        depth = counts.sum(axis=1, keepdims=True)
        frequency = np.empty((3, 40))
        for code in range(3):
            mean = (counts / depth)[batch == code].mean(axis=0) + 0.5 / counts[batch == code].sum()
            frequency[code] = mean / mean.sum()
        mean = depth * frequency[batch]
        theta = (mean**2).sum(axis=0) / ((counts - mean) ** 2 - mean).sum(axis=0)
        assert (theta > 0).all()
        expected = {
            "poisson": stats.poisson.logpmf(counts, mean),
        }.get(gene_likelihood, stats.nbinom.logpmf(counts, theta, theta / (theta + mean)))
        rows = np.array([3, 60, 7])
        computed = outcome.elbo_without_codes(data.load(small, spec), rows, gene_likelihood)
        assert computed == pytest.approx(expected[rows].sum(axis=1).mean(), rel=1e-4)

    def test_genes_without_overdispersion_or_counts_are_no_obstacle(self):
        counts = np.random.default_rng(0).poisson(3, (50, 4)).astype(np.float32)
        counts[:, 0], counts[:, 1] = 0, 3
        adata = ad.AnnData(sparse.csr_matrix(counts))
        cell_data = data.load(adata, data.describe(adata, data.DataSpec(), np.ones(4, dtype=bool)))
        assert np.isfinite(outcome.elbo_without_codes(cell_data, np.arange(50), "nb"))

    def test_size_factors_of_any_scale_give_the_same(self, small):
        values = []
        for scale in (1, 1e-4):
            small.obs["factor"] = scale * np.ravel(small.X.sum(axis=1))
            spec = data.describe(small, data.DataSpec(size_factor_key="factor"), np.ones(40, dtype=bool))
            values.append(outcome.elbo_without_codes(data.load(small, spec), np.arange(90), "nb"))
        assert values[1] == pytest.approx(values[0], rel=1e-4)


class TestInformation:
    def test_it_is_that_of_normal_codes(self):
        class Known(SCVI):
            def guide(self, cells, kl_weight=1.0):
                with pyro.plate("cells", len(cells.batch)):
                    mean = cells.library_size.expand(-1, 2)
                    pyro.sample("z", dist.Normal(mean, 2.0).to_event(1))

        depth = np.random.default_rng(0).integers(1, 9, 200).astype(np.float32)
        adata = ad.AnnData(depth[:, None])
        cell_data = data.load(adata, data.describe(adata, data.DataSpec(), np.ones(1, dtype=bool)))
        held = outcome.information(Known(1, n_latent=2), cell_data, np.arange(200))
        assert held == pytest.approx(2 * 0.5 * np.log(1 + depth.var() / 4), rel=1e-3)


class TestCall:
    def test_a_good_fit_is_not_warned_of(self, mixtures, warned, fit):
        fit(mixtures, batch_key="batch", n_hidden=128)
        assert warned() == []

    def test_codes_that_hold_nothing_are_warned_of(self, small, warned, fit):
        fit(small, module=Collapsed)
        (warning,) = (line for line in warned() if "latent codes hold next to nothing" in line)
        assert "They tell 0.00 nats per cell" in warning
        assert warning.endswith("See pl.report(adata, key='scvi_pyro').")

    def test_an_elbo_below_that_of_mean_expression_is_warned_of(self, small, warned, fit):
        fit(small, module=Constant, max_epochs=2, key_added="other")
        history, without = small.uns["other"]["history"], small.uns["other"]["elbo_without_codes"]
        assert history["validation_elbo"].iloc[-1] < without
        (warning,) = (line for line in warned() if "worse than one without latent codes" in line)
        assert f"Its ELBO is {history['validation_elbo'].iloc[-1]:.1f} nats per cell; {without:.1f} are" in warning
        assert warning.endswith("See pl.report(adata, key='other').")

    def test_a_batch_that_is_not_mixed_at_all_is_named(self, mixtures, warned, fit):
        # Four epochs without offsets do not bring the protocols together.
        fit(
            mixtures, batch_key="batch", max_epochs=4, batch_representation="one-hot", batch_offset=None, prior="normal"
        )
        (warning,) = (line for line in warned() if "not mixed at all" in line)
        assert "10x_3cl" in warning

    def test_batches_of_other_labels_are_right_to_stay_apart(self, mixtures, warned, fit):
        fit(mixtures, batch_key="cell_type", labels_key="cell_type")
        assert not [line for line in warned() if "not mixed at all" in line]

    def test_warnings_are_silent_at_verbosity_0(self, small, warned, fit):
        sc.settings.verbosity = 0
        fit(small, module=Collapsed)
        assert warned() == []


class TestStored:
    def test_the_best_epoch_counts_with_early_stopping(self):
        history = pd.DataFrame({"validation_elbo": [-9.0, -5.0, -8.0]})
        stored = {"history": history, "elbo_without_codes": -6.0, "params": {"early_stopping": True}}
        assert outcome.worthless(stored) == []
        (finding,) = outcome.worthless(stored | {"params": {}})
        assert "Its ELBO is -8.0 nats per cell; -6.0 are reached" in finding.found

    def test_models_stored_without_a_baseline_are_not_judged_by_it(self, trained_small):
        stored = dict(trained_small.uns["scvi_pyro"])
        del stored["elbo_without_codes"]
        assert outcome.worthless(stored) == []

    def test_the_baseline_survives_a_file(self, trained_small, tmp_path):
        trained_small.write_h5ad(tmp_path / "x.h5ad")
        read = ad.read_h5ad(tmp_path / "x.h5ad").uns["scvi_pyro"]["elbo_without_codes"]
        assert read == trained_small.uns["scvi_pyro"]["elbo_without_codes"]
