"""Importing the package is fast, since what is heavy is imported when first needed."""

import subprocess
import sys

import pytest

import scanpy_scvipyro as scvip

HEAVY = ("torch", "pyro", "pytorch_lightning", "lightning", "torchmetrics", "tqdm.notebook", "rich", "typer")


def test_importing_the_package_imports_nothing_heavy():
    # scanpy itself imports some of them where they are installed.
    script = (
        "import scanpy, sys; before = set(sys.modules); import scanpy_scvipyro; "
        f"print(sorted(set({HEAVY}) & (set(sys.modules) - before)))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, text=True)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


def test_public_names_are_there():
    for name in scvip.__all__:
        assert getattr(scvip, name).__doc__
    assert {"tl", "pl", "get", "datasets"} <= set(scvip.__all__)
    assert scvip.__version__.count(".") == 2


@pytest.mark.parametrize("namespace", ["tl", "pl", "get", "datasets"])
def test_public_functions_are_documented_with_an_example(namespace):
    functions = [
        value
        for name, value in vars(getattr(scvip, namespace)).items()
        if callable(value) and not name.startswith("_") and value.__module__.startswith("scanpy_scvipyro")
    ]
    assert functions
    assert [f.__name__ for f in functions if ">>> " not in (f.__doc__ or "")] == []
