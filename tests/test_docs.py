"""Code in pages that are not run when the documentation is built. Some needs the extra 'bench'."""

import importlib.util
import re
import shutil
import subprocess
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


@pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not packaged with the tests")
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_job_script_parses_and_asks_for_a_task_for_each_gpu():
    script = PAGE.parent / "_static" / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\S+)", script.read_text()))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert f"num_nodes={asked['nodes']}" in (PAGE.parent / "scaling.md").read_text()
