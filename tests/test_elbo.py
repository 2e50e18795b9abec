"""The loss is Pyro's, and computing it never waits for its value."""

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import TraceMeanField_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

from scanpy_scvipyro import _log_prob, csr, data
from scanpy_scvipyro.elbo import MeanFieldELBO
from scanpy_scvipyro.model import SCVI
from scanpy_scvipyro.scanvi import SCANVI

MODELS = {
    "normal": (SCVI, {"prior": "normal"}),
    "mixture": (SCVI, {"prior": "mixture", "batch_alignment": 30.0}),
    "latent library": (SCVI, {"library": "latent", "gene_likelihood": "zinb"}),
    "labels": (SCANVI, {"n_labels": 3}),
}
# What makes the host wait for a GPU: reading a value, and results whose size depends on values.
WAITS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
    torch.ops.aten._coalesce.default,
}


class Noted(TorchDispatchMode):
    """Notes operations that would wait."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation in WAITS or (operation is torch.ops.aten.repeat_interleave.Tensor and "output_size" not in kwargs):
            self.waits.append(operation)
        return operation(*args, **kwargs)


@pytest.fixture
def cells(small):
    spec = data.describe(small, data.DataSpec(batch_key="batch", labels_key="cell_type"), small.X.sum(0).A1 >= 0)
    return data.load(small, spec)


@pytest.fixture(params=MODELS)
def module(request, cells):
    kind, options = MODELS[request.param]
    with torch.random.fork_rng(), pyro.settings.context(module_local_params=True):
        torch.manual_seed(0)
        yield kind(cells.n_genes, 3, dropout_rate=0.0, **options)


def test_loss_and_gradients_are_those_of_pyro(module, cells):
    results = []
    for elbo in (TraceMeanField_ELBO(), MeanFieldELBO()):
        torch.manual_seed(1)
        loss = elbo(module.model, module.guide)(cells.cells(torch.arange(90)), kl_weight=0.7)
        results.append((loss.detach(), torch.autograd.grad(loss, list(module.parameters()))))
    (loss, gradients), (our_loss, our_gradients) = results
    torch.testing.assert_close(our_loss, loss)
    for ours, theirs in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_several_particles_are_averaged_and_auxiliary_sites_count():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide():
        u = pyro.sample("u", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(u, 0.5))

    results = []
    for elbo in (TraceMeanField_ELBO(num_particles=3), MeanFieldELBO(num_particles=3)):
        loc = torch.tensor(0.3, requires_grad=True)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            loss = elbo.differentiable_loss(model, guide)
        results.append((loss.item(), torch.autograd.grad(loss, loc)[0].item()))
    assert results[0] == pytest.approx(results[1])


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Take out what CPUs do alone: blocks of cells, and a look at codes before they become one-hot."""

    def one_hot(codes, n):
        return (codes[:, None] == torch.arange(n)).long()

    monkeypatch.setattr(_log_prob, "_blocks", lambda shape, _: [_log_prob._Block(..., shape, slice(None), 0)])
    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_training_step_never_waits_for_a_value(module, cells):
    loss_of = MeanFieldELBO()(module.model, module.guide)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)
    cells = cells.to(torch.device("cpu"))  # as it is on a GPU, which then knows the number of counts of each cell
    minibatches = data.Minibatches(cells, torch.arange(90), 30, torch.Generator().manual_seed(0))
    with pyro.validation_enabled(is_validate=False):
        for minibatch in minibatches:
            with Noted() as noted:
                loss = loss_of(minibatch, kl_weight=0.7) / len(minibatch.batch)
                loss.backward()
                optimizer.step()
            assert noted.waits == []


def test_a_minibatch_on_the_device_is_the_same_without_waiting_for_its_size(cells, monkeypatch):
    monkeypatch.setattr(csr, "_MAX_VIEW", 0)  # a shortcut that hosts alone have
    rows = torch.arange(0, 90, 3)
    with Noted() as noted:
        expected = cells.cells(rows)
    assert len(noted.waits) == 1  # so that the next can fail
    moved = cells.to(torch.device("cpu"))
    with Noted() as noted:
        minibatch = moved.cells(rows)
    # The one value that is read is the sum of numbers that the host has.
    assert noted.waits == [torch.ops.aten._local_scalar_dense.default]
    for part, other in zip(minibatch[1:], expected[1:], strict=True):
        assert torch.equal(part, other)
    assert torch.equal(minibatch.counts.to_dense(), expected.counts.to_dense())
