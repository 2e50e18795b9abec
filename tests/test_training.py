"""Training: recipe, history, best weights, divergence, interruption, and no traces left behind."""

import contextlib
import io
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pyro
import pytest
import pytorch_lightning as pl
import scanpy as sc
import torch

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, posterior, training
from scanpy_scvipyro.model import SCVI

SETTINGS = {
    "max_epochs": 10,
    "kl_weight": 1.0,
    "n_epochs_kl_warmup": None,
    "learning_rate": 4e-3,
    "batch_size": 128,
    "train_size": 0.9,
    "early_stopping": False,
    "early_stopping_patience": 20,
    "keep_best_on_interrupt": False,
    "random_state": 0,
}
LIGHTNING_LOGGERS = ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning")


class Interrupts(pl.Callback):
    """Ctrl-C at the start of an epoch, counted from 1."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch + 1 == self.epoch:
            raise KeyboardInterrupt


class PressesCtrlC(pl.Callback):
    """The signal itself, in the middle of the first epoch."""

    def on_train_batch_end(self, *args):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def listens_to_ctrl_c():
    """Python's handler of Ctrl-C, which jobs in the background of a shell start without."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


class InterruptsSetup(pl.Callback):
    """Ctrl-C before the first epoch, from which Lightning does not recover the handler of the signal."""

    def setup(self, trainer, pl_module, stage):
        raise KeyboardInterrupt


class Poisons(pl.Callback):
    """Weights become NaN after a minibatch of an epoch, counted from 1."""

    def __init__(self, epoch, minibatch=0):
        self.epoch, self.minibatch = epoch, minibatch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch + 1 == self.epoch and batch_idx % trainer.num_training_batches == self.minibatch:
            pl_module.module.decoder.rate.weight.data.fill_(float("nan"))


class SpoilsEachEpoch(pl.Callback):
    """After the given epoch, every epoch leaves worse weights behind: the best are known to be those before."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.current_epoch + 1 > self.epoch:
            pl_module.module.decoder.rate.bias.data[0] += 3


class Fails(pl.Callback):
    def on_train_end(self, trainer, pl_module):
        raise OSError("disk full")


def global_state():
    """What a call must not change for the caller."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state().tolist(),
        "pyro settings": pyro.settings.get(),
        "parameters": dict(pyro.get_param_store()),
        "validation": torch.distributions.Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "warnings": list(warnings.filters),
        "logging": [(logging.getLogger(name).level, logging.getLogger(name).handlers) for name in LIGHTNING_LOGGERS],
        "SIGINT": signal.getsignal(signal.SIGINT),
        "environment": dict(os.environ),
        "verbosity": sc.settings.verbosity,
    }


def test_recipe_warms_the_kl_divergence_up_over_the_first_third_by_default():
    assert training.recipe(1000, **SETTINGS | {"max_epochs": 30}).n_epochs_kl_warmup == 10
    assert training.recipe(1000, **SETTINGS | {"n_epochs_kl_warmup": 0}).n_epochs_kl_warmup == 0


def test_recipe_chooses_epochs_by_default():
    chosen = training.recipe(1000, **SETTINGS | {"max_epochs": None})
    assert chosen.max_epochs == training.default_max_epochs(1000)


@pytest.mark.parametrize(
    ("n_cells", "n_devices", "passed", "batch_size", "learning_rate"),
    [
        (1_000, 1, {}, 256, 0.008),
        (100_000, 1, {}, 1024, 0.032),
        (1_000, 2, {}, 256, 0.016),
        (100_000, 4, {}, 1024, 0.064),
        (1_000, 1, {"batch_size": 64}, 64, 0.008),
        (1_000, 2, {"batch_size": 64}, 64, 0.008),
        (100_000, 1, {"batch_size": 512}, 512, 0.016),
        (100_000, 4, {"learning_rate": 0.001}, 1024, 0.001),
    ],
)
def test_the_learning_rate_follows_the_minibatches_of_all_devices(
    n_cells, n_devices, passed, batch_size, learning_rate
):
    settings = SETTINGS | {"batch_size": None, "learning_rate": None} | passed
    chosen = training.recipe(n_cells, **settings, n_devices=n_devices)
    assert (chosen.batch_size, chosen.learning_rate) == (batch_size, pytest.approx(learning_rate))


@pytest.mark.parametrize("n_cells", [2, 1_000, 100_000, 10_000_000])
def test_default_epochs_are_usable_for_any_number_of_cells(n_cells):
    assert 10 <= training.default_max_epochs(n_cells) <= 400


def test_more_cells_take_fewer_epochs_and_more_steps():
    n_cells = np.unique(np.geomspace(100, 1e7, 300).astype(int))
    epochs = np.array([training.default_max_epochs(n) for n in n_cells])
    assert (np.diff(epochs) <= 0).all()
    assert (np.diff(epochs[::20] * n_cells[::20]) >= 0).all()
    assert epochs[-1] == 10


def test_early_stopping_without_validation_cells_is_refused():
    with pytest.raises(ValueError, match=r"needs validation cells; train_size=1 leaves none of 100, lower it"):
        training.recipe(100, **SETTINGS | {"early_stopping": True, "train_size": 1})


def test_keeping_the_best_without_early_stopping_is_refused():
    with pytest.raises(ValueError, match=r"keep_best_on_interrupt=True needs early_stopping=True"):
        training.recipe(100, **SETTINGS | {"keep_best_on_interrupt": True})


def test_history_has_a_row_per_epoch_and_adds_up(trained_small):
    history = trained_small.uns["scvi_pyro"]["history"]
    assert history.index.name == "epoch"
    assert history.index.tolist() == [1, 2]
    for part in ("train", "validation"):
        elbo = history[f"{part}_reconstruction"] - history[f"{part}_kl"]
        np.testing.assert_allclose(history[f"{part}_elbo"], elbo)
    assert (history[["train_kl", "validation_kl"]] > 0).all(axis=None)


def test_history_without_validation_cells_has_the_training_elbo(small, train_quickly):
    train_quickly(small, train_size=1)
    columns = small.uns["scvi_pyro"]["history"].columns
    assert "train_elbo" in columns
    assert "validation_elbo" not in columns


def test_training_raises_the_elbo(trained):
    elbo = trained.uns["scvi_pyro"]["history"]["validation_elbo"]
    assert elbo.iloc[-1] > elbo.iloc[0] + 10


def test_kl_weight_rises_to_its_value_within_the_warmup(small, train_quickly):
    train_quickly(small, max_epochs=4, kl_weight=2.0, n_epochs_kl_warmup=2, batch_size=16)
    weight = small.uns["scvi_pyro"]["history"]["kl_weight"]
    assert 1.0 <= weight.loc[1] < 1.2
    assert weight.loc[2:].tolist() == [2, 2, 2]


def test_kl_weight_is_the_same_throughout_without_warmup(small, train_quickly):
    train_quickly(small, kl_weight=1.0, n_epochs_kl_warmup=0)
    assert small.uns["scvi_pyro"]["history"]["kl_weight"].tolist() == [1, 1]


def test_learning_rate_makes_one_cycle(small, train_quickly):
    train_quickly(small, max_epochs=20, learning_rate=1e-3, batch_size=16)
    rate = small.uns["scvi_pyro"]["history"]["learning_rate"]
    assert rate.max() == pytest.approx(1e-3, rel=0.1)
    assert 1 < rate.idxmax() < 10
    assert rate.iloc[-1] < 1e-6


class Rates(pl.Callback):
    """Learning rates of the last step, by parameter."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        names = {id(parameter): name for name, parameter in pl_module.module.named_parameters()}
        groups = trainer.optimizers[0].param_groups
        self.rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}


class Told(pl.Callback):
    """What training tells the module: how far the KL weight has risen, by step, and the number of cells."""

    def __init__(self):
        self.warmup = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.warmup.append(pl_module.module.warmup)
        self.n_cells = pl_module.module.n_cells


def test_the_module_is_told_of_the_warmup_and_of_the_number_of_cells(small, train_quickly):
    train_quickly(small, n_epochs_kl_warmup=1, batch_size=16, callbacks=(told := Told()))
    n_steps = len(told.warmup) // 2
    assert told.warmup == pytest.approx([min(1, (step + 1) / n_steps) for step in range(2 * n_steps)])
    assert told.warmup[0] < 1
    assert told.n_cells == 0.9 * small.n_obs  # that are trained on


@pytest.mark.parametrize(("representation", "speed"), [("one-hot", 1), ("offset", 20)])
def test_offsets_learn_faster_where_they_lead(small, train_quickly, representation, speed):
    rates = Rates()
    train_quickly(small, batch_key="batch", batch_representation=representation, callbacks=rates)
    offset = rates.rates.pop("offset")
    assert len(set(rates.rates.values())) == 1
    assert offset == pytest.approx(speed * rates.rates["encoder.loc.weight"])
    params = small.uns["scvi_pyro"]["params"]
    assert (params["offset_speed"], params["n_epochs_kl_warmup"]) == (speed, 0)


def test_early_stopping_gives_back_the_weights_of_the_best_epoch(mixtures, train_quickly):
    options = {"batch_key": "batch", "early_stopping": True, "early_stopping_patience": 3, "batch_size": 512}
    options["prior"] = "normal"  # whose divergence has a closed form
    train_quickly(mixtures, max_epochs=20, n_hidden=32, callbacks=[SpoilsEachEpoch(4)], **options)
    history = mixtures.uns["scvi_pyro"]["history"]
    assert history["validation_elbo"].idxmax() == 4
    assert history.index[-1] == 7

    spec = data.DataSpec(batch_key="batch")
    genes = np.ones(mixtures.n_vars, dtype=bool)
    cell_data = data.load(mixtures, data.describe(mixtures, spec, genes), genes)
    held_out = data.CellDataModule(cell_data, train_size=0.9, batch_size=512, random_state=0).split.validation
    module = scvip.get.model(mixtures)
    with torch.no_grad():
        terms = [torch.stack(posterior.elbo_terms(module, cell_data.cells(held_out))) for _ in range(50)]
    draws = torch.stack(terms).mean(dim=2)
    reconstruction, kl = draws.mean(dim=0).tolist()
    # The divergence is analytic; the reconstruction of an epoch is measured with one sample per cell.
    assert kl == pytest.approx(history.loc[4, "validation_kl"], rel=1e-4)
    assert reconstruction == pytest.approx(
        history.loc[4, "validation_reconstruction"], abs=5 * draws[:, 0].std().item()
    )


def test_early_stopping_that_never_stops_still_gives_the_best_weights(small, train_quickly):
    train_quickly(small, max_epochs=4, early_stopping=True, callbacks=[SpoilsEachEpoch(2)])
    spoilt = small.copy()
    train_quickly(spoilt, max_epochs=4, callbacks=[SpoilsEachEpoch(2)])
    assert small.uns["scvi_pyro"]["history"].index[-1] == 4
    bias = [scvip.get.model(a).decoder.rate.bias.max().item() for a in (small, spoilt)]
    assert bias[1] > bias[0] + 1


@pytest.mark.parametrize("epoch", [1, 3])
def test_divergence_is_an_error_that_names_the_epoch(small, train_quickly, unchanged, epoch):
    before = small.copy()
    with pytest.raises(RuntimeError, match=rf"diverged in epoch {epoch} of 5: .*Try a lower learning_rate .*0\.002"):
        train_quickly(small, max_epochs=5, learning_rate=2e-3, batch_size=128, callbacks=[Poisons(epoch)])
    unchanged(small, before)


def test_divergence_in_the_last_step_is_an_error(small, train_quickly, unchanged):
    before = small.copy()
    with pytest.raises(RuntimeError, match="diverged in epoch 2 of 2"):
        train_quickly(small, max_epochs=2, batch_size=128, callbacks=[Poisons(2)])
    unchanged(small, before)


@pytest.mark.parametrize("callback", [Interrupts(1), Interrupts(2), PressesCtrlC()], ids=["first", "second", "signal"])
@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_ctrl_c_is_a_keyboard_interrupt_and_leaves_adata_unchanged(small, train_quickly, unchanged, callback):
    before = small.copy()
    with pytest.raises(KeyboardInterrupt):
        train_quickly(small, batch_key="batch", callbacks=[callback])
    unchanged(small, before)


def test_ctrl_c_keeps_the_best_weights_if_asked(small, train_quickly):
    options = {"early_stopping": True, "max_epochs": 9}
    train_quickly(small, keep_best_on_interrupt=True, callbacks=[Interrupts(4)], **options)
    assert small.uns["scvi_pyro"]["history"].index.tolist() == [1, 2, 3]
    assert np.isfinite(small.obsm["X_scvi_pyro"]).all()


def test_ctrl_c_with_early_stopping_alone_keeps_nothing(small, train_quickly, unchanged):
    before = small.copy()
    with pytest.raises(KeyboardInterrupt):
        train_quickly(small, early_stopping=True, max_epochs=9, callbacks=[Interrupts(4)])
    unchanged(small, before)


def test_ctrl_c_before_any_weights_were_kept_is_a_keyboard_interrupt(small, train_quickly):
    with pytest.raises(KeyboardInterrupt):
        train_quickly(small, early_stopping=True, keep_best_on_interrupt=True, callbacks=[Interrupts(1)])


def test_errors_of_callbacks_pass_and_leave_adata_unchanged(small, train_quickly, unchanged):
    before = small.copy()
    with pytest.raises(OSError, match="disk full"):
        train_quickly(small, callbacks=[Fails()])
    unchanged(small, before)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, None),
        ({"n_latent": 0}, ValueError),
        ({"callbacks": [Fails()]}, OSError),
        ({"callbacks": [Poisons(1)]}, RuntimeError),
        ({"callbacks": [Interrupts(2)]}, KeyboardInterrupt),
        ({"callbacks": [PressesCtrlC()]}, KeyboardInterrupt),
        ({"callbacks": [InterruptsSetup()]}, KeyboardInterrupt),
        ({"callbacks": [Interrupts(2)], "early_stopping": True, "keep_best_on_interrupt": True}, None),
    ],
    ids=["success", "refusal", "error", "divergence", "interrupt", "signal", "setup", "kept"],
)
@pytest.mark.parametrize("is_validating", [True, False])
@pytest.mark.usefixtures("listens_to_ctrl_c")
def test_no_global_state_is_changed(small, train_quickly, caplog, arguments, error, is_validating):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    pyro.get_param_store()["mine"] = torch.ones(2)
    for i, name in enumerate(LIGHTNING_LOGGERS):
        caplog.set_level(11 + i, logger=name)
    with pyro.validation_enabled(is_validate=is_validating):
        before = global_state()
        with pytest.raises(error) if error else contextlib.nullcontext():
            train_quickly(small, batch_key="batch", **arguments)
        after = global_state()
    pyro.clear_param_store()
    for name, value in before.items():
        assert after[name] == value, name


def test_the_callers_random_state_does_not_change_the_result(small, train_quickly):
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        results.append(train_quickly(small, batch_key="batch", copy=True).obsm["X_scvi_pyro"])
    np.testing.assert_array_equal(*results)


def test_the_callers_pyro_settings_do_not_change_the_result(small, trained_small, train_quickly):
    with pyro.settings.context(module_local_params=False), pyro.validation_enabled():
        train_quickly(small, batch_key="batch")
    np.testing.assert_array_equal(small.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])


def test_the_callers_default_dtype_is_no_obstacle(small, trained_small, train_quickly):
    torch.set_default_dtype(torch.float64)
    try:
        train_quickly(small, batch_key="batch")
        module = scvip.get.model(trained_small)
    finally:
        torch.set_default_dtype(torch.float32)
    assert small.obsm["X_scvi_pyro"].dtype == small.layers["scvi_pyro_imputed"].dtype == np.float32
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


def test_gradients_switched_off_by_the_caller_do_not_stop_training(small, trained_small, train_quickly):
    with torch.no_grad():
        train_quickly(small, batch_key="batch")
    np.testing.assert_array_equal(small.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])


def test_no_files_are_written(small, train_quickly, empty_directory):
    train_quickly(small, early_stopping=True)
    assert list(empty_directory.iterdir()) == []


def test_files_are_written_where_asked_for(small, train_quickly, tmp_path, empty_directory):
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger

    logger = CSVLogger(tmp_path / "logs")
    train_quickly(small, logger=logger, callbacks=[ModelCheckpoint(tmp_path / "checkpoints")])
    assert "validation_elbo" in (tmp_path / "logs/lightning_logs/version_0/metrics.csv").read_text()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    assert list(empty_directory.iterdir()) == []


class Reads(pl.Callback):
    def on_train_epoch_end(self, trainer, *args):
        self.metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_a_callback_and_a_logger_are_told_the_terms_of_the_elbo(small, train_quickly, tmp_path):
    train_quickly(small, callbacks=(reads := Reads()))
    terms = {
        name: value
        for name, value in small.uns["scvi_pyro"]["history"].iloc[-1].items()
        if name.startswith(("train", "val"))
    }
    assert reads.metrics == pytest.approx(terms)
    train_quickly(small, logger=pl.loggers.CSVLogger(tmp_path))
    header = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()[0]
    assert terms.keys() <= set(header.split(","))


class Counts(pl.Callback):
    def __init__(self):
        self.n_epochs = 0

    def on_train_epoch_end(self, *args):
        self.n_epochs += 1


def test_one_callback_is_as_good_as_a_list_and_none_is_none(small, train_quickly):
    alone, listed = Counts(), Counts()
    train_quickly(small, callbacks=alone)
    train_quickly(small, callbacks=[listed])
    train_quickly(small, callbacks=None, logger=None)
    assert alone.n_epochs == listed.n_epochs == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"callbacks": Counts}, TypeError, r"callbacks has the class Counts itself"),
        ({"callbacks": ["early_stopping"]}, TypeError, r"callbacks has 'early_stopping'; pass an instance"),
        ({"logger": "csv"}, TypeError, r"logger has 'csv'; pass an instance of a Logger"),
        ({"logger": pl.loggers.CSVLogger}, TypeError, r"logger has the class CSVLogger itself"),
        ({"module": "SCVI"}, TypeError, r"module is an instance of str; pass SCVI, or a class of your own"),
        ({"module": SCVI(10)}, TypeError, r"module is an instance of SCVI; pass"),
        ({"module": torch.nn.Linear}, TypeError, r"module is the class Linear; pass"),
        ({"impute": "no"}, ValueError, r"impute='no' was passed; pass True or False"),
    ],
)
def test_what_lightning_would_trip_over_is_refused_before_any_work(
    small, train_quickly, unchanged, empty_directory, arguments, error, message
):
    before = small.copy()
    with pytest.raises(error, match=message):
        train_quickly(small, **arguments)
    unchanged(small, before)
    assert list(empty_directory.iterdir()) == []


def test_a_progress_bar_of_lightning_takes_the_place_of_ours(small, train_quickly, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train_quickly(small, callbacks=pl.callbacks.TQDMProgressBar(), progress_bar=True)
    shown = capsys.readouterr()
    assert "Epoch 1" in shown.out + shown.err
    assert "ELBO=" not in shown.err


def test_nothing_is_printed_at_verbosity_0(tmp_path):
    script = """
        import scanpy as sc, scanpy_scvipyro as scvip
        sc.settings.verbosity = 0
        adata = scvip.datasets.cell_mixtures()[:50].copy()
        scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=1)
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, check=False, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_messages_at_higher_verbosity_say_what_was_added(small, train_quickly):
    verbosity, logfile = sc.settings.verbosity, sc.settings.logfile
    sc.settings.verbosity, sc.settings.logfile = "hint", io.StringIO()
    try:
        train_quickly(small, batch_key="batch")
        message = sc.settings.logfile.getvalue()
    finally:
        sc.settings.verbosity, sc.settings.logfile = verbosity, logfile
    assert "training scVI on 90 cells and 40 genes" in message
    assert "finished: added" in message
    assert "(0:00:" in message
    for added in ("'X_scvi_pyro'", "'scvi_pyro_imputed'", "'scvi_pyro'"):
        assert added in message
    assert "GPU" not in message


def test_progress_shows_epochs_and_elbo(small, train_quickly, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train_quickly(small, progress_bar=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert f"ELBO={small.uns['scvi_pyro']['history']['validation_elbo'].iloc[-1]:.1f}" in shown


@pytest.mark.parametrize(("verbosity", "is_shown"), [("error", False), ("warning", True)])
def test_progress_is_shown_by_default_unless_verbosity_is_0(
    small, train_quickly, capsys, monkeypatch, verbosity, is_shown
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    before = sc.settings.verbosity
    sc.settings.verbosity = verbosity
    try:
        train_quickly(small, progress_bar=None)
    finally:
        sc.settings.verbosity = before
    assert ("2/2" in capsys.readouterr().err) == is_shown


def test_the_loss_is_the_negative_elbo_per_cell(small):
    genes = np.ones(small.n_vars, dtype=bool)
    cell_data = data.load(small, data.describe(small, data.DataSpec(), genes), genes)
    module = SCVI(small.n_vars).eval()
    plan = training.TrainingPlan(module, training.recipe(90, **SETTINGS))
    cells = cell_data.cells(torch.arange(90))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = plan.loss(cells) / 90
        torch.manual_seed(0)
        reconstruction, kl = posterior.elbo_terms(module, cells)
    assert loss.item() == pytest.approx(-(reconstruction - kl).mean().item(), rel=1e-5)


def test_isolated_random_state_is_given_back_after_an_error():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with contextlib.suppress(OSError), training.isolated_random_state(0):
        torch.rand(5)
        raise OSError
    assert torch.equal(torch.rand(2), expected)
