"""Which precisions and accelerators there are to train with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import AcceleratorRegistry

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
_ALIASES = {"32": "32-true", "64": "64-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def precision_name(precision: str | int | None) -> str:
    """Lightning's name of a precision; refuses those that the counts would not survive."""
    name = "32-true" if precision is None else _ALIASES.get(str(precision), str(precision))
    if name not in PRECISIONS:
        # bfloat16 rounds counts above 256, float16 those above 2048. By validation ELBO, float16 is 420 nats worse.
        is_low = name in ("16-true", "bf16-true", "transformer-engine", "transformer-engine-float16")
        why = "would round counts and weights to 16 bits or less" if is_low else "is not a choice"
        raise ValueError(f"precision={precision!r} {why}; pass one of {', '.join(map(repr, PRECISIONS))}.")
    return name


def accelerator_name(accelerator: str, devices: int | str | Sequence[int]) -> str:
    """Lightning's name of an accelerator; refuses those, and numbers of devices, that this machine does not have."""
    kinds: dict[str, Any] = {name: AcceleratorRegistry[name]["accelerator"] for name in AcceleratorRegistry}
    present = sorted(name for name, kind in kinds.items() if kind.is_available())
    # Apple's GPUs are not chosen unasked: minibatches are sparse, and nobody has tried them there.
    choices = {"auto": ["cuda", "cpu"], "gpu": ["cuda", "mps"]}.get(accelerator, [accelerator])
    found = [name for name in choices if name in present]
    if not found:
        msg = (
            f"accelerator={accelerator!r} was passed, but PyTorch finds none; there is: "
            f"{', '.join(map(repr, present))}. Pass 'auto', or install the build of PyTorch for your device."
        )
        raise ValueError(msg)
    if devices != "auto":
        try:
            parsed = kinds[found[0]].parse_devices(devices)
        except (MisconfigurationException, TypeError, ValueError) as error:
            lightnings = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"devices={devices!r} does not fit {found[0]!r}: {lightnings}; pass 1.") from error
        if not parsed:
            raise ValueError(f"devices={devices!r} asks for no device; pass 1.")
    return found[0]
