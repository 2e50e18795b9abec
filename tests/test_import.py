"""Importing the package is fast, since what is heavy is imported when first needed."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

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


def test_imports_go_one_way():
    """No file imports another that imports it, directly or not: neither for types, nor in functions."""
    package = Path(scvip.__file__).parent
    names = {path: ".".join(path.relative_to(package.parent).with_suffix("").parts) for path in package.rglob("*.py")}
    graph = {}
    for path, name in names.items():
        imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        named = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
        graph[name] = (named | {node.module for node in imports}) & set(names.values())
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names them
