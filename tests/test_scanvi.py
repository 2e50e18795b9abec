"""The generative model of scANVI."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO

from scanpy_scvipyro.model import SCVI, Cells
from scanpy_scvipyro.scanvi import SCANVI

N_LABELS, N_FREE = 3, 2


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((8, 6), 2.0), generator=generator)
    return Cells(
        counts=counts.to_sparse(),
        library_size=counts.sum(dim=1, keepdim=True),
        batch=torch.zeros(8, dtype=torch.int64),
        label=torch.tensor([0, 1, 2, 3, 0, 1, 0, 0]),
        categorical=torch.zeros(8, 0, dtype=torch.int64),
        continuous=torch.zeros(8, 0),
    )


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = SCANVI(6, n_labels=N_LABELS, n_prior_components=N_FREE, n_latent=2, n_hidden=4)
    with torch.no_grad():
        module.prior_logits.normal_()
        module.prior_log_scale.normal_(std=0.3)
    return module.eval()


def component(module, i):
    return dist.Normal(module.prior_loc[i], module.prior_log_scale[i].exp()).to_event(1)


def test_prior_of_cells_without_label_sums_over_all_labels_and_free_components(module):
    z = torch.randn(5, 2)
    weight = module.prior_logits.softmax(dim=0)
    expected = sum(weight[i] * component(module, i).log_prob(z).exp() for i in range(N_LABELS + N_FREE)).log()
    torch.testing.assert_close(module.prior(torch.zeros(5, dtype=torch.int64)).log_prob(z), expected)


@pytest.mark.parametrize("label", [1, 2, 3])
def test_prior_of_a_labelled_cell_is_the_density_of_its_label(module, label):
    z = torch.randn(5, 2)
    torch.testing.assert_close(
        module.prior(torch.full((5,), label)).log_prob(z), component(module, label - 1).log_prob(z)
    )


def test_elbo_is_that_of_enumerating_the_labels(module, cells):
    unlabelled = cells._replace(label=torch.zeros_like(cells.label))

    def enumerated(cells):
        with pyro.plate("cells", len(cells.batch)):
            y = pyro.sample("y", dist.Categorical(logits=module.prior_logits), infer={"enumerate": "parallel"})
            loc, scale = module.prior_loc[y], module.prior_log_scale[y].exp()
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            likelihood = module.likelihood(z, cells.library_size, cells)
            pyro.sample("x", likelihood.to_event(1), obs=cells.counts.to_dense())

    torch.manual_seed(1)
    expected = TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated, module.guide, unlabelled)
    torch.manual_seed(1)
    assert TraceMeanField_ELBO().loss(module.model, module.guide, unlabelled) == pytest.approx(expected, rel=1e-5)


def test_gradients_of_all_parameters_are_finite_and_reach_densities_and_classifier(module, cells):
    module.train()
    TraceMeanField_ELBO().differentiable_loss(module.model, module.guide, cells).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert gradients["prior_loc"].abs().sum(dim=1).gt(0).all()
    assert gradients["classifier_logits.weight"].abs().sum() > 0


def test_labels_are_scored_by_the_logits_of_the_classifier_with_one_softmax(module, cells):
    with torch.no_grad():
        module.classifier_logits.weight.mul_(1000)
    trace = poutine.trace(poutine.replay(module.model, poutine.trace(module.guide).get_trace(cells))).get_trace(cells)
    labelled = cells.label > 0
    logits = module.classify(trace.nodes["z"]["value"])
    expected = -torch.nn.functional.cross_entropy(logits[labelled], cells.label[labelled] - 1, reduction="none")
    torch.testing.assert_close(trace.nodes["y"]["fn"].log_prob(trace.nodes["y"]["value"])[labelled], expected)
    assert expected.max() > np.log(0.99)  # of three labels, twice a softmax gives 0.58 at most


def test_cells_without_label_say_nothing_of_the_classifier(module, cells):
    trace = poutine.trace(module.model).get_trace(cells)
    trace.compute_log_prob()
    assert (trace.nodes["y"]["log_prob"][cells.label == 0] == 0).all()


def test_trace_lists_code_label_and_counts(module, cells):
    trace = poutine.trace(module.model).get_trace(cells)
    assert (trace.stochastic_nodes, trace.observation_nodes) == (["cells", "z"], ["y", "x"])


def test_batches_are_aligned_whatever_the_labels(cells):
    torch.manual_seed(0)
    module = SCANVI(6, 2, n_labels=N_LABELS, n_prior_components=N_FREE, n_latent=2, n_hidden=4, batch_alignment=1.0)
    many = [torch.cat([part.to_dense()] * 10) for part in cells]  # a component of a few cells is not aligned
    cells = Cells(*many)._replace(batch=torch.arange(80) % 2)
    penalties = []
    for label in (cells.label, torch.zeros_like(cells.label)):  # of half of the cells, and of none
        torch.manual_seed(1)
        guide = poutine.trace(module.guide).get_trace(cells)
        trace = poutine.trace(poutine.replay(module.model, guide)).get_trace(cells._replace(label=label))
        trace.compute_log_prob()
        penalties.append(trace.nodes["alignment"]["log_prob"])
    assert penalties[0].abs().sum() > 0
    torch.testing.assert_close(penalties[0], penalties[1])


def test_offsets_have_the_prior_of_scvi_whatever_the_kl_weight(cells):
    options = {"n_latent": 2, "n_hidden": 4, "batch_representation": "offset"}
    module = SCANVI(6, 2, n_labels=N_LABELS, n_prior_components=N_FREE, **options)
    module.n_cells = 500
    site = poutine.trace(module.model).get_trace(cells, kl_weight=0.3).nodes["offset_prior"]
    expected = dist.Normal(0, 0.5).log_prob(torch.zeros(2, 6)).sum() / 500  # offsets start at 0
    torch.testing.assert_close(site["scale"] * site["fn"].log_prob(site["value"]), expected.expand(len(cells.batch)))


def test_few_labels_count_as_much_as_if_every_cell_had_one(module, cells):
    module.weigh_labels(cells.label)
    trace = poutine.trace(module.model).get_trace(cells)
    assert float(trace.nodes["y"]["scale"]) == len(cells.label) / 4


def test_training_goes_on_from_the_weights_and_the_mixture_of_an_unsupervised_model(module):
    unsupervised = SCVI(6, n_latent=2, n_hidden=4, prior="mixture", n_prior_components=N_FREE)
    densities = module.prior_loc[:N_LABELS].clone()
    module.continue_from(unsupervised.state_dict())
    torch.testing.assert_close(module.prior_loc, torch.cat([densities, unsupervised.prior_loc]))
    torch.testing.assert_close(module.encoder.loc.weight, unsupervised.encoder.loc.weight)
