"""Calls from several threads give what they give in one, and leave nothing behind; wrong arguments are refused."""

import inspect
import io
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import matplotlib.pyplot as plt
import numpy as np
import pytest
import pytorch_lightning as pl
import scanpy as sc
import torch
from pyro.poutine.runtime import _PYRO_STACK
from pyro.settings import get as pyro_settings
from pyro.util import get_rng_state

import scanpy_scvipyro as scvip
from scanpy_scvipyro import _public

N_THREADS = 4


def at_once(*calls):
    """Results, or errors, of calls that start together, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def started(call):
        barrier.wait()
        try:
            return call()
        except Exception as error:  # noqa: BLE001, told to the test
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(started, calls))


def global_state():
    python, numpy = get_rng_state()["random"], get_rng_state()["numpy"]
    settings = {name: value for name, value in pyro_settings().items() if not callable(value)}
    random = (python, [np.asarray(part).tolist() for part in numpy], torch.get_rng_state().tolist())
    return random, list(_PYRO_STACK), settings, list(warnings.filters), torch.get_num_threads()


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = global_state()
    yield
    assert global_state() == before


@pytest.fixture
def train(train_quickly):
    def call(adata, **options):
        options = {"batch_key": "batch", "n_latent": 3, "copy": True} | options
        return train_quickly(adata, **options)

    return call


def codes(adata):
    return adata.obsm["X_scvi_pyro"]


def points(ax):
    plt.close(ax.figure)
    return ax.collections[0].get_offsets().data


QUERIES = {
    "latent": lambda a, s: scvip.tl.latent(a, n_samples=3, random_state=s, copy=True).obsm["X_scvi_pyro_samples"],
    "impute": lambda a, s: scvip.tl.impute(a, n_samples=3, random_state=s, copy=True).layers["scvi_pyro_imputed"],
    "map_query": lambda a, _: codes(scvip.tl.map_query(a, a, copy=True)),
    "score_cells": lambda a, s: scvip.tl.score_cells(a, random_state=s, copy=True).obs["scvi_pyro_elbo"],
    "posterior_predictive": lambda a, s: (
        scvip.tl.posterior_predictive(a, random_state=s, copy=True).layers["scvi_pyro_simulated"].toarray()
    ),
    "rank_genes_groups": lambda a, s: scvip.tl.rank_genes_groups(
        a, "cell_type", n_samples=50, random_state=s, copy=True
    ).uns["rank_genes_groups_scvi_pyro"]["scores"]["H1975"],
    "gene_correlations": lambda a, s: scvip.tl.gene_correlations(a, random_state=s).to_numpy(),
    "model": lambda a, _: scvip.get.model(a).decoder.rate.weight.detach().numpy(),
    "plot": lambda a, s: points(scvip.pl.posterior_predictive(a, statistics="zeros", random_state=s, show=False)),
}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_gives_the_results_of_one_thread(trained_small, query, no_windows):
    alone = [QUERIES[query](trained_small, seed) for seed in range(N_THREADS)]
    for _ in range(10):
        together = at_once(*(lambda seed=seed: QUERIES[query](trained_small, seed) for seed in range(N_THREADS)))
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(one, other)


def test_training_gives_the_results_of_one_thread(small, train):
    alone = [codes(train(small, random_state=seed)) for seed in range(N_THREADS)]
    for _ in range(5):
        together = at_once(*(lambda seed=seed: train(small, random_state=seed) for seed in range(N_THREADS)))
        for one, other in zip(together, alone, strict=True):
            np.testing.assert_array_equal(codes(one), other)


def test_training_queries_and_plots_mix(small, trained_small, train, no_windows):
    calls = [lambda: codes(train(small)), *(lambda ask=ask: ask(trained_small, 0) for ask in QUERIES.values())]
    alone = [call() for call in calls]
    for _ in range(3):
        for one, other in zip(at_once(*calls), alone, strict=True):
            np.testing.assert_array_equal(one, other)


class Fails(pl.Callback):
    """Fails in the middle of an epoch, or of a step that the optimizer takes."""

    def __init__(self, hook):
        setattr(self, hook, self.fail)

    def fail(self, *args, **kwargs):
        raise RuntimeError("it failed")


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_before_zero_grad", "on_validation_start", "on_fit_end"])
def test_a_failure_in_one_thread_leaves_the_others_alone(small, trained_small, train, hook):
    alone = codes(train(small))
    latent = QUERIES["latent"](trained_small, 0)
    for _ in range(3):
        failed, trained, asked, refused = at_once(
            lambda: train(small, callbacks=[Fails(hook)]),
            lambda: train(small),
            lambda: QUERIES["latent"](trained_small, 0),
            lambda: scvip.tl.latent(small),
        )
        assert str(failed) == "it failed"
        assert isinstance(refused, KeyError)
        np.testing.assert_array_equal(codes(trained), alone)
        np.testing.assert_array_equal(asked, latent)


class Asks(pl.Callback):
    """Asks another model while one is trained, as a monitor may."""

    def __init__(self, adata):
        self.adata, self.results = adata, []

    def on_train_epoch_end(self, *args):
        self.results.append(QUERIES["latent"](self.adata, 0))


def test_callbacks_may_call_functions_of_this_package(small, trained_small, train):
    asks, alone = Asks(trained_small), codes(train(small))
    np.testing.assert_array_equal(codes(train(small, callbacks=[asks])), alone)
    assert len(asks.results) == 2
    np.testing.assert_array_equal(asks.results[1], QUERIES["latent"](trained_small, 0))


PUBLIC = [
    function
    for room in (scvip.tl, scvip.pl, scvip.get, scvip)
    for name in getattr(room, "__all__", vars(room))
    if callable(function := getattr(room, name)) and function.__module__.startswith("scanpy_scvipyro.")
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: f"{function.__module__}.{function.__name__}")
def test_every_public_function_waits_for_its_turn(function):
    errors = []

    def call():
        try:
            function()
        except TypeError as error:  # it needs arguments
            errors.append(error)

    with _public.turn():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join()
    assert "required" in str(errors[0])


def test_waiting_is_told(trained_small):
    verbosity, logfile = sc.settings.verbosity, sc.settings.logfile
    sc.settings.verbosity, sc.settings.logfile = "info", (log := io.StringIO())
    try:
        with _public.turn():
            thread = threading.Thread(target=scvip.get.model, args=(trained_small,))
            thread.start()
            thread.join(0.05)
        thread.join()
    finally:
        sc.settings.verbosity, sc.settings.logfile = verbosity, logfile
    assert log.getvalue() == "waiting for a call in another thread\n"


def test_unknown_argument_is_refused_with_the_nearest():
    @_public.public
    def scvi_pyro(adata, *, n_hidden=1, batch_key=None):
        return n_hidden

    assert scvi_pyro(None, n_hidden=3) == 3
    with pytest.raises(TypeError, match=r"^scvi_pyro\(\) has no argument 'n_hiden'\. Did you mean 'n_hidden'\?"):
        scvi_pyro(None, n_hiden=3)


FUNCTIONS = {
    f"{space.__name__.split('.')[-1]}.{name}": function
    for space in (scvip.tl, scvip.pl, scvip.get)
    for name, function in vars(space).items()
    if callable(function) and not name.startswith("_") and function.__module__.startswith("scanpy_scvipyro")
}
SWITCHES = [
    (name, parameter)
    for name, function in FUNCTIONS.items()
    for parameter in ("impute", "copy", "progress_bar", "pts", "show", "return_fig", "early_stopping")
    if parameter in inspect.signature(function).parameters
]


@pytest.mark.parametrize(("name", "switch"), SWITCHES)
@pytest.mark.parametrize("value", ["no", 1, np.array([True, False])], ids=str)
def test_switches_take_true_and_false_only(name, switch, value):
    function = FUNCTIONS[name]
    with pytest.raises(ValueError, match=rf"^{switch}={re.escape(repr(value))} was passed; pass True or False"):
        function(None, **{switch: value})
    with pytest.raises((TypeError, KeyError)) as refused:  # the first argument
        function(None, **{switch: np.True_})
    assert switch not in str(refused.value)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_no_anndata_is_refused_by_name(name, trained_small):
    function = FUNCTIONS[name]
    needed = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    others = {p.name: "cell_type" for p in needed if p.kind is p.KEYWORD_ONLY}
    positional = [None if p.name == "adata" else trained_small for p in needed if p.kind is not p.KEYWORD_ONLY]
    with pytest.raises(TypeError, match=r"^(adata is a NoneType|model is a AnnData)"):
        function(*positional, **others)
