"""Progress bars in notebooks; those of terminals are in ``test_training.py``."""

import nbformat
from nbclient import NotebookClient

CODE = """
import sys
sys.modules["ipywidgets"] = None  # as if it were not installed
from scanpy_scvipyro import _progress
with _progress.bar(3, "Counting", "step") as bar:
    bar.update(3)
"""


def test_a_notebook_without_ipywidgets_shows_a_bar_of_text_and_no_warning():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    NotebookClient(notebook).execute()
    shown = str(notebook.cells[0].outputs)
    assert "Counting: 100%" in shown
    assert "Warning" not in shown
