"""Runs that are interrupted, and go on."""

import resource
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import save_file

import scanpy_scvipyro as scvip
from scanpy_scvipyro import checkpoint

OPTIONS = {"batch_key": "batch", "n_hidden": 8, "max_epochs": 6, "batch_size": 16, "progress_bar": False}


class StopInEpoch(Callback):
    """Ctrl-C in the middle of an epoch, counted from 0."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 2:
            raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def _write_each_epoch(monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.ckpt"


def stopped(adata, path, epoch=3, **options):
    with pytest.raises(KeyboardInterrupt):
        scvip.tl.scvi_pyro(adata, **OPTIONS | options, checkpoint=path, callbacks=[StopInEpoch(epoch)])
    assert path.exists()


def assert_same_run(adata, expected):
    np.testing.assert_array_equal(adata.obsm["X_scvi_pyro"], expected.obsm["X_scvi_pyro"])
    stored, other = adata.uns["scvi_pyro"], expected.uns["scvi_pyro"]
    assert stored["history"].equals(other["history"])
    for name, value in stored["weights"].items():
        np.testing.assert_array_equal(value, other["weights"][name])


KILLED = """
    import os, signal, sys
    import anndata as ad
    import torch
    from pytorch_lightning.callbacks import Callback
    import scanpy_scvipyro as scvip
    from scanpy_scvipyro import checkpoint

    torch.set_num_threads(1)
    checkpoint.SECONDS_BETWEEN = 0.0
    place, data, path = sys.argv[1:]

    class Killer(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if place == "epoch" and trainer.current_epoch == 3 and batch_idx == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        def on_train_epoch_start(self, trainer, pl_module):
            if place == "start" and trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    n_writes = 0
    fsync = os.fsync

    def killing_fsync(descriptor):
        global n_writes
        n_writes += 1
        if place == "file" and n_writes == 3:
            os.ftruncate(descriptor, 1000)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = killing_fsync
    scvip.tl.scvi_pyro(ad.read_h5ad(data), **{options}, checkpoint=path, callbacks=[Killer()])
"""


@pytest.mark.parametrize("place", ["epoch", "start", "file"])
def test_a_killed_run_goes_on_to_the_same_bits(small, tmp_path, path, place):
    small.write_h5ad(tmp_path / "small.h5ad")
    script = textwrap.dedent(KILLED).replace("{options}", repr(OPTIONS))
    ran = subprocess.run([sys.executable, "-c", script, place, tmp_path / "small.h5ad", path], check=False)
    assert ran.returncode == -signal.SIGKILL
    assert path.exists()
    assert (tmp_path / ".run.ckpt.part").exists() == (place == "file")

    expected = small.copy()
    scvip.tl.scvi_pyro(expected, **OPTIONS)
    scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path)
    assert_same_run(small, expected)
    assert not path.exists()
    assert not (tmp_path / ".run.ckpt.part").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"early_stopping": True, "train_size": 0.7},
        {"library": "latent", "prior": "mixture", "gene_likelihood": "zinb", "n_layers": 2},
    ],
    ids=["early stopping", "latent library"],
)
def test_ctrl_c_is_such_an_interruption(small, path, options):
    expected = small.copy()
    scvip.tl.scvi_pyro(expected, **OPTIONS | options)
    stopped(small, path, **options)
    scvip.tl.scvi_pyro(small, **OPTIONS | options, checkpoint=path)
    assert_same_run(small, expected)


def test_a_run_goes_on_where_it_was(small, path):
    stopped(small, path)
    epochs = []

    class Epochs(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            epochs.append(trainer.current_epoch)

    scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path, callbacks=[Epochs()])
    assert epochs == [3, 4, 5]


def test_a_second_interruption_is_no_other(small, path):
    expected = small.copy()
    scvip.tl.scvi_pyro(expected, **OPTIONS)
    stopped(small, path, epoch=2)
    stopped(small, path, epoch=4)
    scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path)
    assert_same_run(small, expected)


def test_the_file_is_written_at_most_once_a_minute(small, path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 60.0)
    with pytest.raises(KeyboardInterrupt):
        scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path, callbacks=[StopInEpoch(3)])
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"n_latent": 5}, "n_latent was 10, and is 5"),
        ({"max_epochs": 7}, "max_epochs was 6, and is 7"),
        ({"random_state": 1}, "random_state was 0, and is 1"),
        ({"batch_key": None}, "the batches, labels and covariates are others"),
    ],
)
def test_a_run_of_other_options_is_refused_with_the_difference(small, path, unchanged, change, difference):
    stopped(small, path)
    before = small.copy()
    with pytest.raises(ValueError, match=rf"is of another run: .*{difference}"):
        scvip.tl.scvi_pyro(small, **OPTIONS | change, checkpoint=path)
    unchanged(small, before)
    assert path.exists()


def test_a_run_of_other_counts_is_refused(small, path):
    stopped(small, path)
    small.X[0, 0] += 1
    with pytest.raises(ValueError, match="is of another run: the counts are others; the size factors are others"):
        scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path)


def test_a_run_of_other_genes_is_refused(small, path):
    stopped(small, path)
    small.var_names = [*small.var_names[:-1], "other"]
    with pytest.raises(ValueError, match="is of another run: the genes are others"):
        scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path)


def test_a_file_of_something_else_is_refused_and_kept(small, path):
    path.write_text("precious")
    with pytest.raises(ValueError, match="is no checkpoint of this package"):
        scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path)
    assert path.read_text() == "precious"
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of this package"):
        scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path)
    save_file({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of this package"):
        scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path)


def test_a_folder_that_is_not_there_is_refused(small, tmp_path):
    with pytest.raises(ValueError, match="folder that does not exist"):
        scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=tmp_path / "nowhere" / "run.ckpt")


def test_a_full_disk_warns_and_keeps_the_last_good_file(small, path, tmp_path):
    expected = small.copy()
    scvip.tl.scvi_pyro(expected, **OPTIONS)
    stopped(small, path, epoch=1)
    good = path.read_bytes()
    seen = []

    class Look(Callback):
        def on_train_end(self, trainer, pl_module):
            seen.append(path.read_bytes())

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.warns(RuntimeWarning, match=r"could not be written after epoch 2: .* training goes on"):
            scvip.tl.scvi_pyro(small, **OPTIONS, checkpoint=path, callbacks=[Look()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert seen == [good]
    assert_same_run(small, expected)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == []
