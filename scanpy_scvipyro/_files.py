"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def path_of(value: object, argument: str) -> Path:
    """Take what a user passes as a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{argument}={value!r} is no path; pass a string or a pathlib.Path.")
    return Path(value)


def replace(path: Path, content: bytes) -> None:
    """Write beside ``path``, then rename: whoever is interrupted, or fills the disk, leaves the old file as it was."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
