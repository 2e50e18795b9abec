"""Training in several processes: same result, same bits, and an end for all where one ends.

Two processes on the CPU, which speak over gloo, from scripts that are started as users start them.
"""

import json
import os
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch
from torch import nn

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, devices, training

SCRIPT = """
    import json, os, signal, sys, time
    import anndata as ad
    import scanpy as sc
    import scanpy_scvipyro as scvip
    from pytorch_lightning import Callback
    from pytorch_lightning.utilities import rank_zero_only
    from scanpy_scvipyro import checkpoint

    counts, options, fault = json.loads(sys.argv[1])
    checkpoint.SECONDS_BETWEEN = 0.0
    sc.settings.verbosity = 3
    adata = ad.read_h5ad(counts)


    class Fault(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            if (trainer.global_rank, trainer.current_epoch) == (fault["rank"], fault["epoch"]):
                print("fault at", time.time(), flush=True)
                if fault["kind"] == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError("no space left on this node")


    callbacks = [Fault()] if fault else []
    scvip.tl.scvi_pyro(adata, batch_key="batch", callbacks=callbacks, progress_bar=False, accelerator="cpu", **options)
    if "then" in sys.argv:
        again = {"devices": options["devices"], "progress_bar": False, "accelerator": "cpu", "impute": False}
        scvip.tl.scanvi_pyro(adata, labels_key="known", init_from="scvi_pyro", max_epochs=2, batch_key="batch", **again)
    adata.write_h5ad(f"rank{rank_zero_only.rank}.h5ad")
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OPTIONS = {"devices": 2, "max_epochs": 12, "batch_size": 64}
QUICK = {"devices": 2, "max_epochs": 4, "batch_size": 8, "n_hidden": 8}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Run the script in a folder of its own, where it leaves the AnnData of each process."""

    def started(adata, options, *, launcher=(), fault=None, then=False):
        folder = tmp_path_factory.mktemp("processes")
        adata.write_h5ad(folder / "counts.h5ad")
        (folder / "train.py").write_text(textwrap.dedent(SCRIPT))
        launcher = launcher or [sys.executable]
        command = [*launcher, "train.py", json.dumps([str(folder / "counts.h5ad"), options, fault])]
        env = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "WORLD_SIZE")}
        ran = subprocess.run(
            command + ["then"] * then, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=600
        )
        end = time.time()  # of all processes: each holds the pipes of the output
        files = sorted(folder.glob("rank*.h5ad"))
        return SimpleNamespace(
            returncode=ran.returncode,
            output=ran.stdout + ran.stderr,
            seconds_since_fault=end - float(ran.stdout.partition("fault at ")[2].split()[0]) if fault else None,
            ranks={int(file.stem.removeprefix("rank")): ad.read_h5ad(file) for file in files},
        )

    return started


@pytest.fixture(scope="module")
def by_torchrun(start):
    adata = scvip.datasets.cell_mixtures()
    adata.obs["known"] = adata.obs["cell_type"].where(adata.obs["batch"] == "10x_3cl")
    run = start(adata, OPTIONS, launcher=TORCHRUN, then=True)
    assert run.returncode == 0, run.output
    return run


def assert_same_model(adata, other, key="scvi_pyro"):
    np.testing.assert_array_equal(adata.obsm[f"X_{key}"], other.obsm[f"X_{key}"])
    assert adata.uns[key]["history"].equals(other.uns[key]["history"])
    for name, value in adata.uns[key]["weights"].items():
        np.testing.assert_array_equal(value, other.uns[key]["weights"][name])


def test_two_processes_reach_the_elbo_of_one_with_the_same_minibatches(by_torchrun, mixtures):
    options = OPTIONS | {"devices": 1, "batch_size": 2 * OPTIONS["batch_size"]}
    scvip.tl.scvi_pyro(mixtures, batch_key="batch", impute=False, progress_bar=False, **options)
    one, two = (adata.uns["scvi_pyro"]["history"] for adata in (mixtures, by_torchrun.ranks[0]))
    # With the same seed, and so the same validation cells: 0.6, 0.9 and 1.1 nats apart for three seeds, where 6 to 7
    # nats are lost if the processes do not share their gradients.
    assert two["validation_elbo"].iloc[-1] == pytest.approx(one["validation_elbo"].iloc[-1], abs=3)
    assert two["learning_rate"].max() == pytest.approx(one["learning_rate"].max(), rel=1e-6)
    assert two["kl_weight"].tolist() == one["kl_weight"].tolist()  # as many steps


def test_the_same_seed_gives_the_same_bits_whoever_starts_the_processes(by_torchrun, start):
    adata = scvip.datasets.cell_mixtures()
    adata.obs["known"] = adata.obs["cell_type"].where(adata.obs["batch"] == "10x_3cl")
    by_lightning = start(adata, OPTIONS, then=True)
    assert by_lightning.returncode == 0, by_lightning.output
    for key in ("scvi_pyro", "scanvi_pyro"):
        assert_same_model(by_lightning.ranks[0], by_torchrun.ranks[0], key)


def test_all_processes_have_codes_and_model_and_the_first_has_the_imputed_counts(by_torchrun):
    first, second = by_torchrun.ranks[0], by_torchrun.ranks[1]
    for key in ("scvi_pyro", "scanvi_pyro"):
        assert_same_model(first, second, key)
        assert first.uns[key]["params"]["n_devices"] == 2
    for column in ("scanvi_pyro", "scanvi_pyro_probability", "scanvi_pyro_novelty"):
        assert first.obs[column].equals(second.obs[column])
    assert "scvi_pyro_imputed" in first.layers
    assert "scvi_pyro_imputed" not in second.layers


def test_the_first_process_speaks_for_all(by_torchrun):
    assert by_torchrun.output.count("    finished: added") == 2  # the two models that are trained
    assert "Traceback" not in by_torchrun.output


@pytest.mark.parametrize(
    ("launcher", "rank"),
    [
        # torchrun looks after 0.1 s by default, and may end the other before that has said why.
        pytest.param([*TORCHRUN, "--monitor-interval", "5"], 1, id="torchrun"),
        pytest.param((), 0, id="lightning, first", marks=pytest.mark.slow),
        pytest.param((), 1, id="lightning", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_ends_the_other_within_a_minute(start, small, launcher, rank):
    fault = {"rank": rank, "epoch": 1, "kind": "kill"}
    run = start(small, QUICK | {"max_epochs": 10_000, "train_size": 0.99}, launcher=launcher, fault=fault)
    assert run.returncode != 0
    assert run.seconds_since_fault < 60
    assert run.ranks == {}
    assert "another of the 2 processes of this training has ended" in run.output


@pytest.mark.parametrize("launcher", [TORCHRUN, ()], ids=["torchrun", "lightning"])
def test_an_error_in_one_process_ends_all_and_is_shown(start, small, launcher):
    fault = {"rank": 1, "epoch": 1, "kind": "raise"}
    run = start(small, QUICK | {"max_epochs": 10_000}, launcher=launcher, fault=fault)
    assert run.returncode != 0
    assert run.seconds_since_fault < 60
    assert run.ranks == {}
    assert "OSError: no space left on this node" in run.output


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_to_the_same_bits(start, small, tmp_path):
    options = QUICK | {"batch_size": 24, "n_prior_components": 2}  # so that there is something to align
    whole = start(small, options, launcher=TORCHRUN)
    options |= {"checkpoint": str(tmp_path / "run.ckpt")}
    broken = start(small, options, launcher=TORCHRUN, fault={"rank": 0, "epoch": 2, "kind": "kill"})
    assert broken.returncode != 0
    assert (tmp_path / "run.ckpt").exists()
    resumed = start(small, options, launcher=TORCHRUN)
    assert resumed.returncode == 0, resumed.output
    for rank in (0, 1):
        assert_same_model(resumed.ranks[rank], whole.ranks[rank])
    assert not (tmp_path / "run.ckpt").exists()


EACH_OPTION = """
    import json, sys
    import anndata as ad
    import scanpy_scvipyro as scvip
    from pytorch_lightning.utilities import rank_zero_only

    path, options = json.loads(sys.argv[1])
    sums = []
    for option in options:
        adata = ad.read_h5ad(path)
        fixed = {"max_epochs": 2, "n_hidden": 8, "devices": 2, "accelerator": "cpu", "progress_bar": False}
        scvip.tl.scvi_pyro(adata, batch_key="batch", **fixed | option)
        sums.append(adata.obsm["X_scvi_pyro"].sum().item())
    query = ad.read_h5ad(path)
    query.obs["batch"] = "another"
    scvip.tl.map_query(query, adata, max_epochs=2, progress_bar=False)  # on one device, in each process
    sums.append(query.obsm["X_scvi_pyro"].sum().item())
    open(f"sums{rank_zero_only.rank}.json", "w").write(json.dumps(sums))
"""


@pytest.mark.slow
def test_every_option_trains_in_two_processes_one_after_the_other(small, tmp_path):
    options = [
        {"library": "latent"},
        {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
        {"gene_likelihood": "poisson", "decoder": "linear"},
        {"batch_representation": "embedding", "encode_covariates": True},
        {"n_layers": 2, "dispersion": "gene-batch"},
        {"dispersion": "gene-label", "labels_key": "cell_type"},
        {"prior": "normal", "batch_alignment": 0.0, "encoder_normalization": "layer", "decoder_normalization": "none"},
        {"early_stopping": True, "early_stopping_patience": 1, "max_epochs": 8},
        {"precision": "bf16-mixed"},
        {"precision": "64-true", "train_size": 1},
        {"strategy": "ddp_find_unused_parameters_true"},
    ]
    small.write_h5ad(tmp_path / "small.h5ad")
    (tmp_path / "train.py").write_text(textwrap.dedent(EACH_OPTION))
    arguments = json.dumps([str(tmp_path / "small.h5ad"), options])
    ran = subprocess.run([*TORCHRUN, "train.py", arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    first, second = (json.loads((tmp_path / f"sums{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first) == len(options) + 1
    assert np.isfinite(first).all()


@pytest.mark.parametrize(("n_cells", "batch_size", "n_ranks"), [(90, 16, 2), (90, 7, 3), (7, 128, 3), (90, 3, 4)])
def test_processes_share_all_cells_in_equally_many_minibatches(small, n_cells, batch_size, n_ranks):
    small.obs["number"] = np.arange(small.n_obs, dtype=float)
    genes = np.ones(small.n_vars, dtype=bool)
    spec = data.describe(small, data.DataSpec(continuous_covariate_keys=["number"]), genes)
    cells = data.load(small, spec)
    first_pass, second_pass = [], []
    for rank in range(n_ranks):
        generator = torch.Generator().manual_seed(3)
        part = data.Minibatches(cells, torch.arange(n_cells), batch_size, generator, rank=rank, n_ranks=n_ranks)
        for seen in (first_pass, second_pass):
            seen.append([minibatch.continuous[:, 0].tolist() for minibatch in part])
            assert len(seen[-1]) == len(part)
    for seen in (first_pass, second_pass):
        assert len({len(minibatches) for minibatches in seen}) == 1
        minibatches = [minibatch for of_rank in seen for minibatch in of_rank]
        assert all(2 <= len(minibatch) <= batch_size for minibatch in minibatches)
        assert sorted(number for minibatch in minibatches for number in minibatch) == sorted(
            cells.continuous[:n_cells, 0].tolist()
        )
    assert set(first_pass[0][0]) != set(second_pass[0][0])


def test_statistics_of_batch_normalization_become_those_of_the_cells_of_all_processes():
    cells = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0)) * 2 + torch.tensor([[[0.0]], [[5.0]]])
    layers = [nn.BatchNorm1d(3, momentum=1.0) for _ in cells]
    for layer, own in zip(layers, cells, strict=True):
        layer(own)
    sent = []

    class Collects:
        def reduce(self, tensor, reduce_op):
            assert reduce_op == "mean"
            sent.append(tensor)
            return tensor

    for layer in layers:
        devices.share_statistics(layer, Collects())

    class Averages:
        def reduce(self, tensor, reduce_op):
            return torch.stack(sent).mean(dim=0)

    for layer in layers:
        devices.share_statistics(layer, Averages())
        torch.testing.assert_close(layer.running_mean, cells.mean(dim=(0, 1)))
        torch.testing.assert_close(layer.running_var, cells.var(dim=(0, 1)), rtol=2e-3, atol=0)


def test_no_two_processes_or_epochs_have_the_same_noise():
    seeds = {devices.seed_of_process(state, epoch, rank) for state in (0, 1) for epoch in (0, 1) for rank in (1, 2)}
    assert len(seeds) == 8


class TestRefusals:
    @pytest.fixture
    def by_torchrun(self, monkeypatch):
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}.items():
            monkeypatch.setenv(name, value)

    @pytest.fixture
    def by_slurm(self, monkeypatch):
        for name, value in {"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "2"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("SLURM_JOB_NAME", raising=False)

    @pytest.mark.usefixtures("by_torchrun")
    @pytest.mark.parametrize(("n_devices", "num_nodes"), [(1, 1), (2, 1), (4, 1), (1, 4)])
    def test_other_numbers_than_torchrun_started(self, small, train_quickly, unchanged, n_devices, num_nodes):
        before = small.copy()
        with pytest.raises(ValueError, match=r"torchrun started 4 processes, 2 of them on this .*Pass devices=2, num_"):
            train_quickly(small, devices=n_devices, num_nodes=num_nodes, accelerator="cpu")
        unchanged(small, before)

    @pytest.mark.usefixtures("by_slurm")
    def test_other_numbers_than_slurm_started(self, small, train_quickly):
        with pytest.raises(ValueError, match=r"srun started 8 processes, 4 of .* Pass devices=4, num_nodes=2"):
            train_quickly(small, devices=2, accelerator="cpu")

    @pytest.mark.usefixtures("by_slurm")
    def test_a_model_of_its_own_in_each_task_of_slurm_is_no_mistake(self):
        arguments = {"accelerator": "cpu", "num_nodes": 1, "strategy": "auto"}
        assert devices.checked(devices=1, **arguments) == (1, 1)

    @pytest.mark.usefixtures("by_slurm")
    def test_auto_is_what_was_started(self):
        arguments = {"accelerator": "cpu", "num_nodes": 2, "strategy": "auto"}
        assert devices.checked(devices="auto", **arguments) == (4, 8)

    @pytest.mark.parametrize(
        ("strategy", "why"),
        [
            ("ddp_notebook", r"would copy this process, .* start it by torchrun"),
            ("ddp_spawn", r"would copy this process"),
            ("fsdp", r"is not a choice: .* each device has all of it"),
            ("dpp", r"is not a choice: .* Did you mean 'ddp'\?"),
            (None, r"is not a choice"),
        ],
    )
    def test_other_strategies(self, small, train_quickly, unchanged, strategy, why):
        before = small.copy()
        with pytest.raises(ValueError, match=rf"strategy={strategy!r} {why}"):
            train_quickly(small, strategy=strategy)
        unchanged(small, before)

    @pytest.mark.parametrize("num_nodes", [0, 1.5, "two", None])
    def test_numbers_of_machines_that_are_none(self, small, train_quickly, num_nodes):
        with pytest.raises(ValueError, match=r"num_nodes=.* pass a whole number of at least 1"):
            train_quickly(small, num_nodes=num_nodes)

    def test_best_weights_on_ctrl_c(self, small, train_quickly, monkeypatch):
        monkeypatch.setattr(sys, "argv", [__file__])  # of pytest, it may be relative to another folder
        options = {"early_stopping": True, "keep_best_on_interrupt": True, "devices": 2, "accelerator": "cpu"}
        with pytest.raises(ValueError, match=r"keep_best_on_interrupt=True needs devices=1; .* checkpoint="):
            train_quickly(small, **options)

    def test_more_devices_than_cells(self, small, train_quickly, monkeypatch):
        monkeypatch.setattr(sys, "argv", [__file__])
        with pytest.raises(ValueError, match=r"each of 50 devices needs two cells to train on.*; pass devices=1"):
            train_quickly(small, devices=50, accelerator="cpu")

    @pytest.mark.parametrize("command", [["-i"], ["-c", None]], ids=["interactive", "-c"])
    def test_what_is_no_script(self, command):
        code = textwrap.dedent("""
            from scanpy_scvipyro import devices
            try: devices.checked(accelerator="cpu", devices=2, num_nodes=1, strategy="auto")
            except ValueError as error: print("refused:", error)

            print(devices.checked(accelerator="cpu", devices="auto", num_nodes=1, strategy="auto"))
        """)
        command = [sys.executable, *(code if part is None else part for part in command)]
        ran = subprocess.run(command, input=code, capture_output=True, text=True, check=False)
        assert "refused: devices=2, num_nodes=1 start a script once for each device" in ran.stdout
        assert "torchrun --nproc-per-node 2" in ran.stdout
        assert "(1, 1)" in ran.stdout


def test_the_number_of_devices_is_part_of_the_recipe(small, train_quickly):
    train_quickly(small, impute=False)
    assert small.uns["scvi_pyro"]["params"]["n_devices"] == 1
    assert training.recipe(1000, **_settings(), n_devices=4).n_devices == 4


def _settings():
    whole = {"max_epochs": 2, "n_epochs_kl_warmup": 0, "batch_size": 8, "early_stopping_patience": 1, "random_state": 0}
    return whole | {
        "kl_weight": 1.0,
        "learning_rate": 1e-3,
        "train_size": 0.9,
        "early_stopping": False,
        "keep_best_on_interrupt": False,
    }
