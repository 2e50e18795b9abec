"""Importing the package is fast, since what is heavy is imported when first needed."""

import subprocess
import sys

import pytest

import scanpy_scvipyro as scvip


def run(script):
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:scanpy_scvipyro", "-c", script],
        capture_output=True,
        check=False,
        text=True,
    )


def test_importing_the_package_imports_nothing_heavy():
    heavy = "('torch', 'pyro', 'pytorch_lightning', 'lightning', 'torchmetrics', 'tqdm.notebook', 'rich', 'typer')"
    # scanpy itself imports some of them where they are installed.
    script = (
        f"import scanpy, sys; before = set(sys.modules); import scanpy_scvipyro; added = set(sys.modules) - before; \
print([name for name in {heavy} if name in added])"
    )
    ran = run(script)
    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")


def test_what_is_imported_lazily_is_imported_by_the_call():
    script = "import scanpy_scvipyro as scvip, sys; adata = scvip.datasets.cell_mixtures()[:20].copy(); \
scvip.tl.scvi_pyro(adata, max_epochs=1, progress_bar=False); print('pyro' in sys.modules)"
    assert run(script).stdout.strip() == "True"


def test_public_names_are_there():
    for name in scvip.__all__:
        assert getattr(scvip, name).__doc__
    assert {"tl", "get", "datasets"} <= set(scvip.__all__)
    assert scvip.__version__.count(".") == 2


@pytest.mark.parametrize("namespace", ["tl", "get", "datasets"])
def test_public_functions_are_documented_with_an_example(namespace):
    functions = [
        value
        for name, value in vars(getattr(scvip, namespace)).items()
        if callable(value) and not name.startswith("_") and value.__module__.startswith("scanpy_scvipyro")
    ]
    assert functions
    assert [f.__name__ for f in functions if ">>> " not in (f.__doc__ or "")] == []
