"""Runs that survive: the state of training in a file, from which the same call goes on."""

from __future__ import annotations

import hashlib
import json
import random
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from scanpy_scvipyro import _files

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytorch_lightning as pl
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI

ENTRY, FORMAT_VERSION = "scanpy_scvipyro checkpoint", 1
SECONDS_BETWEEN = 60.0


class Run(Checkpoint):
    """Writes the state of training at ends of epochs, at most once a minute, for Lightning to go on from.

    A checkpoint callback comes after all others and after the module, which may have found that training diverged.
    Lightning carries the state of module, optimizer, scheduler, data and callbacks; of this one, random generators.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.io = SafetensorsIO(path, identity)
        self.path, self.written, self.has_warned = path, time.monotonic(), False
        self.random_state: dict[str, Any] | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        is_due = time.monotonic() - self.written >= SECONDS_BETWEEN and not is_last
        if not trainer.strategy.reduce_boolean_decision(is_due, all=False):  # all processes take part, one writes
            return
        self.io.error = None
        trainer.save_checkpoint(self.path)
        if self.io.error is not None:
            msg = (
                f"checkpoint={str(self.path)!r} could not be written after epoch {trainer.current_epoch + 1}: "
                f"{self.io.error}; training goes on, and what was written before is kept."
            )
            if not self.has_warned:
                warnings.warn(msg, RuntimeWarning, stacklevel=1)
            self.has_warned = True
        self.written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        numpy_state: Any = np.random.get_state()  # noqa: NPY002  the generator that Pyro seeds
        return {
            "python": random.getstate(),
            "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.random_state = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.random_state is not None:
            random.setstate(self.random_state["python"])
            np.random.set_state(self.random_state["numpy"])  # noqa: NPY002
            torch.set_rng_state(self.random_state["torch"])
            if self.random_state["cuda"]:
                torch.cuda.set_rng_state_all(self.random_state["cuda"])


class SafetensorsIO(CheckpointIO):
    """Checkpoints of Lightning as safetensors, where Lightning itself would pickle them.

    That the file of a run cannot be written is kept as ``error``: raised in one of several processes, it would leave
    the others waiting.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self.identity = path, dict(identity)
        self.error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        tensors: dict[str, torch.Tensor] = {}
        header = {"format_version": FORMAT_VERSION, "identity": self.identity, "state": _to_json(checkpoint, tensors)}
        try:
            _files.replace(Path(path), save(tensors, metadata={ENTRY: json.dumps(header)}))
        except OSError as error:
            if Path(path) != self.path:
                raise
            self.error = error

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        header, tensors = _read(Path(path))
        return _from_json(header["state"], tensors)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def opened(path: str | Path, identity: Mapping[str, str]) -> Run:
    """Return the run to save, and to go on with if the file is there; refuse a file of another run."""
    file = Path(path)
    if not file.parent.is_dir():
        raise ValueError(
            f"checkpoint={str(file)!r} would be in a folder that does not exist; create {str(file.parent)!r}."
        )
    if file.exists():
        header, _ = _read(file)
        there, asked = header["identity"], dict(identity)
        other = [name for name in asked | there if asked.get(name) != there.get(name)]
        if other:
            differences = "; ".join(_difference(name, there.get(name), asked.get(name)) for name in other)
            msg = (
                f"checkpoint={str(file)!r} is of another run: {differences}. Make the same call to go on with it, or "
                "remove the file, or pass another path."
            )
            raise ValueError(msg)
    return Run(file, identity)


def identity(module: SCVI, data: CellData, genes: NDArray[np.str_], options: Mapping[str, Any]) -> dict[str, str]:
    """Return what must be the same to go on with a run: fingerprints of data and initial weights, options by name."""
    parts = {
        "batches, labels and covariates": (data.batch, data.label, data.categorical, data.continuous),
        "size factors": (data.library_size,),
        "initial weights": module.state_dict().values(),
    }
    fingerprints = {"the counts": _fingerprint(*_of_counts(data))}
    fingerprints |= {f"the {name}": _fingerprint(*(part.numpy() for part in parts[name])) for name in parts}
    fingerprints["the genes"] = _fingerprint("\n".join(genes.tolist()).encode())
    return {"module": type(module).__name__} | {name: repr(options[name]) for name in options} | fingerprints


def _of_counts(data: CellData) -> list[bytes]:
    """Digests that do not depend on how many cells are read at a time."""
    digests = [hashlib.blake2b() for _ in range(3)]
    for _, block in data.counts.blocks():
        for digest, part in zip(digests, (block.indptr.diff(), block.indices.int(), block.values), strict=True):
            digest.update(part.numpy().tobytes())
    return [digest.digest() for digest in digests]


def _fingerprint(*content: bytes | NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in content:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _difference(name: str, there: str | None, asked: str | None) -> str:
    return f"{name} are others" if name.startswith("the ") else f"{name} was {there}, and is {asked}"


def _read(file: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(file, "pt") as content:
            header = json.loads((content.metadata() or {})[ENTRY])
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        msg = f"checkpoint={str(file)!r} is no checkpoint of this package ({error}); pass another path, or remove it."
        raise ValueError(msg) from error
    if header["format_version"] != FORMAT_VERSION:
        msg = f"checkpoint={str(file)!r} was written by another version of this package; remove it, and train anew."
        raise ValueError(msg)
    return header, tensors


def _to_json(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Tensors go to ``tensors`` by number; the rest is JSON that keeps keys of any type, and tuples."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_to_json(key, tensors), _to_json(part, tensors)] for key, part in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_to_json(part, tensors) for part in value]}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"a callback's state holds a {type(value).__name__}, which checkpoint= does not store; leave that callback out."
    )


def _from_json(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_from_json(key, tensors): _from_json(part, tensors) for key, part in content}
    parts = [_from_json(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts
