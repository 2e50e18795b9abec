"""What this process may use: of real limits where there are any, and of made folders of cgroups."""

import os

import psutil
import pytest

from scanpy_scvipyro import _machine


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Write files of cgroups: ``cgroups("0::/a/b", {"a/cpu.max": "max 100000"})``."""

    def write(own, files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        (tmp_path / "self").write_text(own)
        monkeypatch.setattr(_machine, "_MOUNTED", tmp_path)
        monkeypatch.setattr(_machine, "_OF_THIS_PROCESS", tmp_path / "self")

    return write


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    memory = type("Memory", (), {"available": 10**12})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "max 100000\n"}, 64),
        ("0::/", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/job/step", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, 4),
        ("4:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 64),
        ("4:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpu:/of_host", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_processors_are_those_of_the_quota(own, files, expected, cgroups, many):
    cgroups(own, files)
    assert _machine.n_processors() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_processors_are_those_of_taskset():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert _machine.n_processors() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {}, 10**12),
        ("0::/", {"memory.max": "max", "memory.current": "5"}, 10**12),
        (
            "0::/a",
            {"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": "anon 1\ninactive_file 200\n"},
            500,
        ),
        ("0::/a/b", {"a/memory.max": "100", "a/memory.current": "700", "a/b/memory.max": "max"}, 0),
        ("7:memory:/x", {"memory/x/memory.limit_in_bytes": "1000", "memory/x/memory.usage_in_bytes": "400"}, 600),
    ],
)
def test_free_memory_is_what_the_limit_leaves(own, files, expected, cgroups, many):
    cgroups(own, files)
    assert _machine.free_memory() == expected


def test_a_machine_without_cgroups_has_all_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(_machine, "_OF_THIS_PROCESS", tmp_path / "nowhere")
    assert _machine.n_processors() >= 1
    assert _machine.free_memory() > 0
