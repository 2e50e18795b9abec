"""What this process may use of the machine: processors and memory, within the limits of containers and schedulers."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOUNTED, _OF_THIS_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def n_processors() -> int:
    """Processors that this process may run on (``taskset``), or that its quota of time is worth (cgroups)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    worth = [math.ceil(quota / period) for quota, period in _quotas() if 0 < quota < math.inf]
    return max(1, min([allowed, *worth]))


def free_memory() -> int:
    """Bytes that are free on this machine and within the limits of this process."""
    import psutil

    free = [float(psutil.virtual_memory().available)]
    for folder in _cgroups("memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if numbers := _numbers(folder / limit):
                # What was read from files counts as used, and is given back when memory is short.
                free.append(numbers[0] - sum(_numbers(folder / used)[:1]) + _statistic(folder / "memory.stat", cached))
    return max(0, int(min(free)))


def _quotas() -> Iterator[tuple[float, float]]:
    """Yield processor time per period, both in microseconds."""
    for folder in _cgroups("cpu"):
        v1 = (*_numbers(folder / "cpu.cfs_quota_us"), *_numbers(folder / "cpu.cfs_period_us"))
        for found in (_numbers(folder / "cpu.max"), v1):
            if len(found) == 2:
                yield found[0], found[1]


def _cgroups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process and of those above it, whose limits hold as well, in versions 1 and 2."""
    try:
        lines = _OF_THIS_PROCESS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for root in {_MOUNTED, _MOUNTED / controllers, _MOUNTED / controller} if controllers else {_MOUNTED}:
            own = root / path.strip("/")
            yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.is_dir())


def _numbers(file: Path) -> list[float]:
    try:
        return [math.inf if word == "max" else float(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []


def _statistic(file: Path, name: str) -> float:
    try:
        return next(float(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name} "))
    except (OSError, StopIteration):
        return 0.0
