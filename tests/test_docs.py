"""Code in pages that are not run when the documentation is built. It needs the extra 'bench'."""

import importlib.util
import re
from pathlib import Path

import pytest
import scanpy as sc

import scanpy_scvipyro as scvip

PAGE = Path(__file__).parents[1] / "docs" / "coming_from_scvi_tools.md"


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not packaged with the tests")
@pytest.mark.skipif(importlib.util.find_spec("scvi") is None, reason="needs scvi-tools: pip install -e '.[bench]'")
@pytest.mark.filterwarnings("ignore")  # scvi-tools' own
def test_calls_side_by_side_run(small):
    """Both columns of the page, block by block, in one namespace."""
    import scvi

    small.layers["counts"] = small.X.copy()
    small.obs["batch"] = small.obs["batch"].cat.rename_categories(["a", "b", "c"])
    reference = scvip.tl.scvi_pyro(small, layer="counts", batch_key="batch", progress_bar=False, copy=True)
    scope = {"sc": sc, "scvi": scvi, "scvip": scvip, "adata": small, "query": small.copy(), "reference": reference}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        exec(block, scope)
    assert small.layers["normalized"].shape == small.shape
    assert scope["query"].obsm["X_scvi_pyro"].shape == scope["query"].obsm["X_scVI"].shape
