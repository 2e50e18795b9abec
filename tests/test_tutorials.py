"""The tutorials run from the first cell to the last, on the data that they name."""

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parents[1] / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.ipynb"))
NEED_DATA = [path for path in TUTORIALS if "datasets.cell_mixtures" not in path.read_text()]


@pytest.fixture
def execute(tmp_path):
    """Run a notebook where it finds what stands beside it, and leaves nothing behind."""
    folder = shutil.copytree(FOLDER, tmp_path / "tutorials", ignore=shutil.ignore_patterns("*.ipynb"))

    def run(notebook):
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()

    return run


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path, request, execute):
    if path in NEED_DATA:
        request.getfixturevalue("data_directory")
    execute(nbformat.read(path, as_version=4))


@pytest.mark.slow
@pytest.mark.parametrize("path", NEED_DATA, ids=lambda path: path.stem)
def test_a_tutorial_without_its_data_says_what_to_do_in_its_first_cell(path, execute, tmp_path, monkeypatch):
    monkeypatch.setenv("SCVIPYRO_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SCVIPYRO_DATA_URL", raising=False)
    first = nbformat.read(path, as_version=4)
    first.cells = [cell for cell in first.cells if cell.cell_type == "code"][:1]
    with pytest.raises(CellExecutionError, match=r"was not found\. Looked for .* set SCVIPYRO_DATA_URL"):
        execute(first)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_is_stored_with_pictures_and_without_paths_of_a_machine(path):
    text = path.read_text()
    assert len(text) < 1_000_000
    assert not [folder for folder in ("/home/", "/root/", "/tmp/", "site-packages") if folder in text]
    cells = nbformat.reads(text, 4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert any("image/png" in output.get("data", {}) for output in outputs)
