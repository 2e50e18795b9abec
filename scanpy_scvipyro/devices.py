"""Training in several processes, one for each device: who starts them, and what they agree on."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pytorch_lightning.accelerators import AcceleratorRegistry
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from scanpy_scvipyro._validate import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
_TORCHRUN = "torchrun --nproc-per-node 2 script.py (or another number of devices)"


def lightnings_strategy(asked: str | Strategy, n_devices: int) -> str | Strategy:
    """Return DDP for several devices, or what was asked for.

    In each step and each evaluation, DDP by default gives all processes the buffers of the first. Here they are the
    statistics of batch normalization, which :func:`share_statistics` averages.
    """
    if isinstance(asked, Strategy) or (asked == "auto" and n_devices == 1):
        return asked
    finds_unused = asked == "ddp_find_unused_parameters_true"
    return DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=finds_unused)


def checked(
    *, accelerator: str, devices: int | str | list[int], num_nodes: int, strategy: str | Strategy
) -> tuple[int | str | list[int], int]:
    """Return ``devices`` for Lightning, and the number of devices of all machines.

    ``"auto"`` is as many as torchrun or SLURM started processes on this machine, else as Lightning has it. Refused is
    what cannot be started, or would wait for processes that nobody starts.
    """
    started = _started()
    if not isinstance(strategy, Strategy) and strategy not in STRATEGIES:
        raise ValueError(f"strategy={strategy!r} {_why_not(strategy)}")
    kind: Any = AcceleratorRegistry[accelerator]["accelerator"]
    if devices == "auto":
        devices = started.on_machine if started else kind.auto_device_count() if _is_script() else 1
    n_devices = len(kind.get_parallel_devices(kind.parse_devices(devices)))
    n_in_all = n_devices * num_nodes
    # With srun, several programs may train one model each.
    is_one_of_several = started is not None and (n_in_all > 1 or started.by == "torchrun")
    if started is not None and is_one_of_several and (n_devices, n_in_all) != (started.on_machine, started.in_all):
        msg = (
            f"{started.by} started {started.in_all} processes, {started.on_machine} of them on this machine; "
            f"devices={devices}, num_nodes={num_nodes} need {n_in_all}. Pass devices={started.on_machine}, "
            f"num_nodes={started.in_all // started.on_machine}, or start as many."
        )
        raise ValueError(msg)
    if n_in_all > 1 and started is None and "LOCAL_RANK" not in os.environ and not _is_script():
        msg = (
            f"devices={devices}, num_nodes={num_nodes} start a script once for each device, and this is a notebook, an "
            "interactive session, python -c, or a script that has left the folder it was started in. Write a script, "
            f"and start it by {_TORCHRUN}; or pass devices=1."
        )
        raise ValueError(msg)
    return devices, n_in_all


def _why_not(strategy: object) -> str:
    if any(part in str(strategy) for part in ("fork", "notebook", "spawn")):
        return (
            "would copy this process, with its threads and all data; a copy may wait forever for threads that it does "
            f"not have. Write a script, and start it by {_TORCHRUN}; or pass devices=1."
        )
    return (
        f"is not a choice: the model is small, so that each device has all of it. {did_you_mean(strategy, STRATEGIES)}"
    )


def is_first(n_devices: int) -> bool:
    """Whether this is the process that speaks and writes for all."""
    return n_devices == 1 or rank_zero_only.rank == 0  # type: ignore[attr-defined]


class Started(NamedTuple):
    """Processes that somebody started together."""

    by: str
    on_machine: int
    in_all: int


def _started() -> Started | None:
    """Return the processes that torchrun or SLURM started, and this one is of; ``None`` where it is alone."""
    env = os.environ
    if distributed.is_available() and distributed.is_torchelastic_launched():
        return Started("torchrun", int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"]))
    if int(env.get("SLURM_NTASKS", 1)) > 1 and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        n_tasks = int(env["SLURM_NTASKS"])
        n_nodes = int(env.get("SLURM_NNODES", 1))
        return Started("srun", int(env.get("SLURM_NTASKS_PER_NODE", n_tasks // n_nodes)), n_tasks)
    return None


def _is_script() -> bool:
    """Whether this program can be started again from its file."""
    if hasattr(sys, "ps1") or sys.flags.interactive:
        return False
    main = sys.modules["__main__"]
    return getattr(main, "__spec__", None) is not None or Path(sys.argv[0]).is_file()


def seed_of_process(random_state: int, epoch: int, rank: int) -> int:
    """Seed of the noise of one process in one epoch: no two have the same, and none depends on what was before."""
    return int(np.random.SeedSequence([random_state, epoch, rank]).generate_state(1)[0])


@torch.no_grad()
def share_statistics(module: nn.Module, strategy: Strategy) -> None:
    """Give batch normalization, in all processes, the running statistics of the cells of all.

    In training, each process normalizes by its own minibatch. The variance of all cells is that within processes and
    that between them.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            mean, variance = layer.running_mean.double(), layer.running_var.double()
            moments = strategy.reduce(torch.stack([mean, variance + mean.square()]), reduce_op="mean")
            layer.running_mean.copy_(moments[0])
            layer.running_var.copy_(moments[1] - moments[0].square())


@contextlib.contextmanager
def ended_together(n_devices: int) -> Iterator[None]:
    """End all processes where one ends: connections are closed, and the others say what it means."""
    try:
        yield
    except BaseException as error:
        if n_devices == 1:
            raise
        if distributed.is_initialized():
            distributed.destroy_process_group()  # else the others would wait until they hit the timeout
        is_lost = isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
        if not is_lost:
            raise
        msg = (
            f"another of the {n_devices} processes of this training has ended, or does not answer; its own error, if "
            "it had one, stands in its output. Training ends here, too."
        )
        raise RuntimeError(msg) from error
