"""Precisions and accelerators: what training can have, and refusals that say what there is."""

from typing import get_args

import numpy as np
import pytest
import torch
from lightning_fabric.connector import _PRECISION_INPUT

import scanpy_scvipyro as scvip
from scanpy_scvipyro import hardware
from scanpy_scvipyro.model import SCVI

SEEN = set()


class Watched(SCVI):
    """Notes the types of counts and of their means."""

    def likelihood(self, z, library_size, cells):
        likelihood = super().likelihood(z, library_size, cells)
        SEEN.add((cells.counts.dtype, likelihood.log_mean.dtype))
        return likelihood


@pytest.fixture
def seen():
    SEEN.clear()
    return SEEN


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        (None, torch.float32),
        ("32-true", torch.float32),
        ("32", torch.float32),
        (32, torch.float32),
        ("64-true", torch.float64),
        ("64", torch.float64),
        (64, torch.float64),
        ("bf16-mixed", torch.float32),
        ("bf16", torch.float32),
        ("16-mixed", torch.float32),
        ("16", torch.float32),
        (16, torch.float32),
    ],
)
def test_counts_and_their_means_have_the_precision_asked_for(small, train_quickly, seen, precision, dtype):
    train_quickly(small, batch_key="batch", precision=precision, module=Watched, impute=False, max_epochs=1)
    assert seen == {(dtype, dtype)}


@pytest.mark.parametrize("options", [{}, {"gene_likelihood": "zinb", "dispersion": "gene-cell"}, {"library": "latent"}])
def test_results_of_double_precision_are_those_of_single_precision_in_float32(small, train_quickly, options):
    options = options | {"batch_key": "batch", "dropout_rate": 0, "prior": "normal"}
    single = train_quickly(small, copy=True, **options)
    double = train_quickly(small, precision="64-true", copy=True, **options)
    for adata in (single, double):
        assert adata.obsm["X_scvi_pyro"].dtype == adata.layers["scvi_pyro_imputed"].dtype == np.float32
        assert {w.dtype for w in adata.uns["scvi_pyro"]["weights"].values()} <= {np.dtype("f4"), np.dtype("i8")}
    columns = ["train_kl", "validation_kl"]  # which have no noise of samples
    histories = [adata.uns["scvi_pyro"]["history"][columns].loc[2] for adata in (single, double)]
    np.testing.assert_allclose(*histories, rtol=0.2)


def test_double_precision_leaves_the_default_type_of_torch_alone(small, train_quickly):
    train_quickly(small, precision="64-true")
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    ("precision", "why"),
    [
        ("16-true", "would round counts and weights to 16 bits or less"),
        ("bf16-true", "would round counts and weights to 16 bits or less"),
        ("transformer-engine", "would round counts and weights to 16 bits or less"),
        ("transformer-engine-float16", "would round counts and weights to 16 bits or less"),
        ("float32", "is not a choice"),
        (8, "is not a choice"),
    ],
)
def test_other_precisions_are_refused_with_those_there_are(small, train_quickly, unchanged, precision, why):
    before = small.copy()
    with pytest.raises(ValueError, match=rf"precision={precision!r} {why}; pass one of '32-true', '64-true', 'bf16-"):
        train_quickly(small, precision=precision)
    unchanged(small, before)


def test_every_precision_of_lightning_is_supported_or_refused():
    known = [name for part in get_args(_PRECISION_INPUT) for name in get_args(part)]
    supported = {"32-true", "32", 32, "64-true", "64", 64, "bf16-mixed", "bf16", "16-mixed", "16", 16}
    assert supported < set(known)
    for name in supported:
        hardware.precision_name(name)
    for name in set(known) - supported:
        with pytest.raises(ValueError, match=r"would round counts and weights to 16 bits or less"):
            hardware.precision_name(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what is said where there is no GPU")
@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "tpu", "xpu", "banana"])
def test_accelerators_that_are_not_there_are_refused_with_those_there_are(small, train_quickly, unchanged, accelerator):
    before = small.copy()
    with pytest.raises(ValueError, match=rf"accelerator='{accelerator}' was passed, but PyTorch finds none; .*'cpu'"):
        train_quickly(small, accelerator=accelerator)
    unchanged(small, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks what is said where there is no GPU")
def test_accelerators_that_are_not_there_are_refused_for_new_batches_too(trained_small, small, unchanged):
    small.obs["batch"] = "new"
    before = small.copy()
    with pytest.raises(ValueError, match=r"accelerator='gpu' was passed, but PyTorch finds none; there is: 'cpu'"):
        scvip.tl.map_query(small, trained_small, accelerator="gpu")
    unchanged(small, before)


@pytest.mark.parametrize("devices", [0, -1, [0], "0", "two", None])
def test_devices_that_the_cpu_does_not_have_are_refused(small, train_quickly, unchanged, devices):
    before = small.copy()
    with pytest.raises(ValueError, match=r"devices=.* does not fit 'cpu': .*; pass 1\."):
        train_quickly(small, accelerator="cpu", devices=devices)
    unchanged(small, before)


def test_devices_may_be_chosen_by_lightning(small, train_quickly):
    train_quickly(small, accelerator="cpu", devices="auto", impute=False)
    assert "scvi_pyro" in small.uns


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
def test_every_precision_gives_finite_results_on_a_gpu(small, train_quickly, precision):
    train_quickly(small, accelerator="gpu", precision=precision)
    assert np.isfinite(small.obsm["X_scvi_pyro"]).all()
    assert scvip.get.model(small).decoder.rate.weight.dtype == torch.float32
