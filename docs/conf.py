"""Configuration of Sphinx: ``sphinx-build -W --keep-going docs docs/_build/html`` needs no network."""

from __future__ import annotations

import os
import shutil
import typing
import warnings
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING

from docutils import nodes
from math_core import LatexToMathML

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

project = "scanpy_scvipyro"
author = "The scanpy_scvipyro developers"
copyright = author  # noqa: A001, a name of Sphinx
release = version = version_of("scanpy-scvipyro")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinxcontrib.bibtex",
    "scanpydoc.definition_list_typed_field",
    "scanpydoc.elegant_typehints",
]
exclude_patterns = ["_build", "_templates", "**/.ipynb_checkpoints"]
nitpicky = True  # a reference within these pages that leads nowhere is an error, and one to other projects is not
nitpick_ignore_regex = [(r"py:.*", r"(?!scanpy_scvipyro).*")]

# sphinx_autodoc_typehints 3.6 with Sphinx 9
warnings.filterwarnings("ignore", message=".*_RstSnippetParser.set_application")

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# Sphinx takes pages from below its own folder only. In the repository, tutorials link to pages beside their folder.
_tutorials = Path(__file__).parent / "tutorials"
shutil.rmtree(_tutorials, ignore_errors=True)
_tutorials.mkdir()
for _notebook in (_tutorials.parents[1] / "tutorials").glob("*.ipynb"):
    (_tutorials / _notebook.name).write_text(_notebook.read_text("utf-8").replace("](../docs/", "](../"), "utf-8")

# Pages written as notebooks are run at each build, so that what they say stays true. Tutorials are stored with their
# outputs, and run in their own time.
nb_execution_mode = "force"
nb_execution_excludepatterns = ["tutorials/*"]
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # of a cell that takes seconds: builds share machines with heavier work
nb_merge_streams = True
nb_output_stderr = "remove-warn"

# API
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # sphinx_autodoc_typehints writes them
napoleon_google_docstring = False
napoleon_numpy_docstring = True
typehints_document_rtype = False  # the sections "Returns" say more

# Types in signatures are imported for type checkers only; here, they are for readers, too. Packages that we use come
# first, since their own such imports may go in circles.
for _module in ("anndata", "matplotlib.pyplot", "pyro", "pytorch_lightning", "scanpy", "torch"):
    import_module(_module)
typing.TYPE_CHECKING = True
import_module("scanpy_scvipyro")
typing.TYPE_CHECKING = False

# Links to other projects need the network: only where the pages are built for readers.
if os.environ.get("DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "pyro": ("https://docs.pyro.ai/en/stable/", None),
        "python": ("https://docs.python.org/3", None),
        "pytorch_lightning": ("https://lightning.ai/docs/pytorch/stable/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

# HTML
copybutton_exclude = ".linenos, .gp, .go"  # prompts and outputs of examples
html_theme = "scanpydoc"
html_title = "scanpy_scvipyro"
html_theme_options = {"navbar_persistent": [], "use_download_button": False}  # one search field, in the side bar
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["custom.css"]
html_show_copyright = False

# Formulas become MathML, which browsers draw themselves: no scripts from elsewhere, and nothing to wait for.
html_math_renderer = "mathml"
myst_update_mathjax = False
_mathml = LatexToMathML()


def _inline_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_mathml.convert_with_local_state(node.astext(), displaystyle=False))
    raise nodes.SkipNode


def _block_math(self: HTML5Translator, node: nodes.math_block) -> None:
    # Docstrings write aligned formulas as Sphinx's math directive does, without an environment.
    latex = node.astext()
    if "\\\\" in latex and "\\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    self.body.append(f'<div class="formula">{_mathml.convert_with_local_state(latex, displaystyle=True)}</div>')
    raise nodes.SkipNode


def _link_from_tutorials(_: Sphinx, page: str, source: list[str]) -> None:
    # Tutorials lie beside these pages, not below them, for those who read them in the repository.
    if page.startswith("tutorials/"):
        source[0] = source[0].replace("](../docs/", "](../")


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas."""
    app.connect("source-read", _link_from_tutorials)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
