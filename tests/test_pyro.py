"""The model is an ordinary Pyro program: it can be traced, predicted from, trained with other ELBOs, and subclassed."""

import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroParam
from torch import nn

import scanpy_scvipyro as scvip
from scanpy_scvipyro.model import SCVI, Cells

DOCUMENTED = Path(__file__).parents[1] / "docs" / "write_your_own_model.md"
needs_documentation = pytest.mark.skipif(not DOCUMENTED.exists(), reason="docs/ is not packaged with the tests")


@pytest.fixture
def cells():
    """Twelve cells of two batches with Poisson counts of eight genes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counts = torch.poisson(torch.rand(12, 8) * 9)
    none = torch.zeros(12, 0)
    code = torch.arange(12) % 2
    return Cells(counts.to_sparse().coalesce(), counts.sum(dim=1, keepdim=True), code, code, none.long(), none)


def untrained(*, module=SCVI, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = module(8, 2, n_hidden=8, n_latent=3, **options).eval()
    if model.library == "latent":
        model.library_loc.fill_(3.5)
    return model


def sample_sites(program, *arguments):
    nodes = poutine.trace(program).get_trace(*arguments).nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and name != "cells"}


class TestSites:
    def test_model_has_the_sites_of_the_equations(self, cells):
        sites = sample_sites(untrained().model, cells)
        assert {name: site["is_observed"] for name, site in sites.items()} == {"z": False, "x": True}

    def test_latent_library_size_is_a_site(self, cells):
        sites = sample_sites(untrained(library="latent").model, cells)
        assert list(sites) == ["z", "library_size", "x"]

    def test_guide_has_the_latent_sites_of_the_model(self, cells):
        module = untrained(library="latent")
        assert list(sample_sites(module.guide, cells)) == ["z", "library_size"]

    def test_every_cell_is_independent(self, cells):
        for site in sample_sites(untrained(library="latent").model, cells).values():
            assert [frame.name for frame in site["cond_indep_stack"]] == ["cells"]
            assert site["fn"].batch_shape == (12,)

    @pytest.mark.parametrize(
        ("options", "likelihood"),
        [
            ({"gene_likelihood": "nb"}, "NegativeBinomial"),
            ({"gene_likelihood": "zinb"}, "ZeroInflatedNegativeBinomial"),
            ({"gene_likelihood": "poisson"}, "Poisson"),
        ],
    )
    def test_counts_follow_the_chosen_likelihood(self, cells, options, likelihood):
        counts = sample_sites(untrained(**options).model, cells)["x"]["fn"]
        assert type(counts.base_dist).__name__ == likelihood
        assert counts.event_shape == (8,)

    def test_prior_is_standard_normal(self, cells):
        prior = sample_sites(untrained().model, cells)["z"]["fn"]
        z = torch.randn(12, 3)
        expected = torch.distributions.Normal(0, 1).log_prob(z).sum(dim=1)
        torch.testing.assert_close(prior.log_prob(z), expected)

    def test_mixture_prior_is_the_weighted_sum_of_its_components(self):
        module = untrained(prior="mixture", n_prior_components=4)
        with torch.no_grad():
            module.prior_logits.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
        z = torch.randn(5, 3)
        weights = module.prior_logits.softmax(0)
        parts = [
            weight * torch.distributions.Normal(loc, log_scale.exp()).log_prob(z).sum(dim=1).exp()
            for weight, loc, log_scale in zip(weights, module.prior_loc, module.prior_log_scale)
        ]
        torch.testing.assert_close(module.prior().log_prob(z), sum(parts).log())

    def test_mean_is_library_size_times_softmax(self, cells):
        module = untrained()
        z = torch.randn(12, 3)
        mean = module.likelihood(z, cells.library_size, cells).mean
        torch.testing.assert_close(mean.sum(dim=1, keepdim=True), cells.library_size)

    def test_kl_weight_scales_the_latent_variables_alone(self, cells):
        module = untrained(library="latent")
        scales = {name: site["scale"] for name, site in sample_sites(module.model, cells, 0.25).items()}
        assert scales == {"z": 0.25, "library_size": 0.25, "x": 1.0}


class TestPredictive:
    def test_prior_predictive_draws_all_sites(self, cells):
        drawn = Predictive(untrained(library="latent").model, num_samples=5)(cells._replace(counts=None))
        assert {name: value.shape for name, value in drawn.items()} == {
            "z": (5, 12, 3),
            "library_size": (5, 12, 1),
            "x": (5, 12, 8),
        }

    def test_prior_predictive_counts_have_the_mean_of_the_likelihood(self, cells):
        module = untrained(gene_likelihood="poisson")
        drawn = Predictive(module.model, num_samples=500)(cells._replace(counts=None))
        total = drawn["x"].sum(dim=-1).mean(dim=0)  # Poisson with mean library size: its sd is 7 at most
        assert (total - cells.library_size[:, 0]).abs().max() < 5 * 7 / 500**0.5

    def test_posterior_predictive_draws_codes_from_the_guide(self, cells):
        module = untrained()
        module.encoder.log_variance.bias.data.fill_(-20.0)
        drawn = Predictive(poutine.uncondition(module.model), guide=module.guide, num_samples=50)(cells)
        mean = sample_sites(module.guide, cells)["z"]["fn"].mean
        assert (drawn["z"] - mean).abs().max() < 0.1  # the floor of the standard deviation is 0.01

    def test_posterior_predictive_counts_are_drawn_anew(self, cells):
        drawn = Predictive(poutine.uncondition(untrained().model), guide=untrained().guide, num_samples=2)(cells)
        assert not torch.equal(drawn["x"][0], drawn["x"][1])

    def test_samples_of_the_guide_pass_through_the_model(self, cells):
        module = untrained()
        codes = Predictive(module.guide, num_samples=4)(cells)
        assert Predictive(module.model, posterior_samples=codes)(cells._replace(counts=None))["x"].shape == (4, 12, 8)


@pytest.mark.parametrize(
    "options",
    [{}, {"library": "latent", "gene_likelihood": "zinb"}, {"prior": "mixture", "n_prior_components": 3}],
    ids=["default", "latent library", "mixture prior"],
)
def test_trace_elbo_has_the_same_gradient_in_expectation(cells, options):
    module = untrained(**options)

    def gradients(elbo):
        draws = []
        loss = elbo()(module.model, module.guide)
        for seed in range(400):
            torch.manual_seed(seed)
            module.zero_grad()
            loss(cells, kl_weight=0.7).backward()
            draws.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]))
        return torch.stack(draws)

    with torch.random.fork_rng(devices=[]):
        # Same seeds, same samples: what differs is the analytic and the sampled KL divergence.
        difference = gradients(Trace_ELBO) - gradients(TraceMeanField_ELBO)
    error = difference.std(dim=0) / len(difference) ** 0.5
    # Gradients that agree sample by sample differ by rounding.
    rounding = 1e-3
    assert (difference.mean(dim=0).abs() <= 5 * error + rounding).all()


class TestSubclass:
    @needs_documentation
    def test_student_t_prior_takes_less_than_ten_lines(self):
        [code] = re.findall(r"^class StudentT.*?(?=\n\n\n)", DOCUMENTED.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert len(code.splitlines()) < 10

    @needs_documentation
    def test_documented_examples_run(self):
        """The code of the page, block by block, in one namespace."""
        scope = {}
        for block in re.findall(r"```python\n(.*?)```", DOCUMENTED.read_text(), flags=re.DOTALL):
            exec(block, scope)
        assert type(scope["model"]).__name__ == "SCVI"
        assert scope["posterior_samples"]["x"].shape == (3, 100, 701)

    def test_prior_of_a_subclass_is_trained_and_recovered(self, small, train_quickly):
        train_quickly(small, module=StudentT)
        prior = scvip.get.model(small, module=StudentT).prior()
        assert type(prior.base_dist).__name__ == "StudentT"

    def test_codes_move_to_the_prior_of_a_subclass(self, mixtures):
        scvip.tl.scvi_pyro(mixtures, module=Shifted, max_epochs=10, n_epochs_kl_warmup=0, progress_bar=False)
        assert mixtures.obsm["X_scvi_pyro"].mean() > 2

    def test_missing_class_is_asked_for(self, small, train_quickly):
        train_quickly(small, module=StudentT)
        with pytest.raises(ValueError, match="module=StudentT"):
            scvip.get.model(small)

    def test_constrained_parameters_are_trained_and_recovered(self, small, train_quickly):
        train_quickly(small, module=LearntScale)
        assert scvip.get.model(small, module=LearntScale).prior_scale.item() != pytest.approx(0.5)

    def test_what_all_cells_share_is_trained_and_left_out_of_the_elbo_of_cells(self, small, train_quickly):
        train_quickly(small, module=Shared)
        plain = train_quickly(small, copy=True)
        assert scvip.get.model(small, module=Shared).shared_loc.item() > 0
        difference = small.uns["scvi_pyro"]["history"]["train_elbo"] - plain.uns["scvi_pyro"]["history"]["train_elbo"]
        assert difference.abs().max() < 100  # the shared term is 5e5 nats


class StudentT(SCVI):
    def prior(self):
        loc = self.decoder.rate.weight.new_zeros(self.n_latent)
        return dist.StudentT(3.0, loc, 1.0).to_event(1)


class Shifted(SCVI):
    def prior(self):
        return dist.Normal(4.0, torch.ones(self.n_latent)).to_event(1)


class LearntScale(SCVI):
    def __init__(self, n_genes, n_batches=1, **options):
        super().__init__(n_genes, n_batches, **options)
        self.prior_scale = PyroParam(torch.tensor(0.5), constraint=dist.constraints.positive)

    def prior(self):
        return dist.Normal(torch.zeros(self.n_latent), self.prior_scale).to_event(1)


class Shared(SCVI):
    def __init__(self, n_genes, n_batches=1, **options):
        super().__init__(n_genes, n_batches, **options)
        self.shared_loc = nn.Parameter(torch.tensor(0.0))

    def model(self, cells, kl_weight=1.0):
        pyro.sample("shared", dist.Normal(1e3, torch.tensor(1.0)))
        return super().model(cells, kl_weight)

    def guide(self, cells, kl_weight=1.0):
        pyro.sample("shared", dist.Normal(self.shared_loc, 0.1))
        super().guide(cells, kl_weight)


class TestIsolation:
    def test_two_models_share_no_parameter(self):
        first, second = untrained(), untrained()
        before = {name: value.clone() for name, value in second.state_dict().items()}
        for parameter in first.parameters():
            parameter.data.add_(1.0)
        assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())

    def test_training_one_model_leaves_another_alone(self, trained_small, small, train_quickly):
        model = scvip.get.model(trained_small)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_quickly(small, batch_key="batch", random_state=1)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("module", [None, LearntScale], ids=["SCVI", "with a PyroParam"])
    def test_global_parameter_store_stays_empty(self, small, train_quickly, module):
        pyro.clear_param_store()
        train_quickly(small, batch_key="batch", module=module)
        model = scvip.get.model(small, module=module)
        model.prior().sample()
        assert list(pyro.get_param_store().keys()) == []

    def test_parameters_of_the_user_stay_in_the_store(self, small, train_quickly):
        pyro.clear_param_store()
        mine = pyro.param("mine", torch.tensor(1.0))
        train_quickly(small)
        assert list(pyro.get_param_store().keys()) == ["mine"]
        assert pyro.param("mine") is mine
        pyro.clear_param_store()
