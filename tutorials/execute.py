"""Execute tutorials in place, and keep of their outputs what belongs into the repository.

python tutorials/execute.py            # all of them
python tutorials/execute.py 1_first_steps.ipynb
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def execute(path: Path) -> None:
    """Run all cells in the folder of the tutorials, then drop progress bars, warnings, times and versions."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if belongs(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def belongs(output: nbformat.NotebookNode) -> bool:
    """Widgets do not show in a stored notebook, and warnings name folders of the machine."""
    is_widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    return not is_widget and output.get("name") != "stderr"


if __name__ == "__main__":
    for tutorial in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        execute(tutorial)
