from __future__ import annotations

import re
from importlib.metadata import version

import anndata as ad
import numpy as np
import pytest
import typer
from matplotlib import image
from typer.testing import CliRunner

from scanpy_scvipyro import cli
from scanpy_scvipyro.cli import app


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo")
    return directory, CliRunner(env={"COLUMNS": "120"}).invoke(app, ["demo", str(directory)])


def test_demo_finds_the_cell_lines_and_mixes_the_protocols(demo):
    _, result = demo
    assert result.exit_code == 0, result.output
    rows = {line.split("│")[1].strip(): line.split("│")[2:4] for line in result.output.splitlines() if "│" in line}
    ari = [float(cell) for cell in rows["ARI with the cell lines (best: 1)"]]
    same = [float(cell) for cell in next(v for k, v in rows.items() if k.startswith("neighbours"))]
    assert ari[1] >= max(0.95, ari[0])
    assert same[1] < 0.75 < same[0]


def test_demo_writes_what_scanpy_reads(demo):
    directory, _ = demo
    adata = ad.read_h5ad(directory / "cell_mixtures.h5ad")
    assert {"X_pca", "X_scvi_pyro"} <= set(adata.obsm)
    assert adata.obs["leiden"].nunique() == 3


def test_demo_draws_a_picture_with_colours(demo):
    directory, _ = demo
    pixels = image.imread(directory / "cell_mixtures.png")
    assert len({tuple(pixel) for pixel in pixels[::5, ::5, :3].reshape(-1, 3).round(1).tolist()}) > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such_directory"], "error: 'no_such_directory' is not a directory"),
        (["--max-epochs", "0"], "error: max_epochs=0 was passed; pass a whole number of at least 1."),
        (["--random-state", "-1"], "error: random_state=-1 was passed"),
    ],
)
def test_bad_input_ends_with_code_1_and_one_line(arguments, message, tmp_path, monkeypatch):
    directory = tmp_path / "empty"
    directory.mkdir()
    monkeypatch.chdir(directory)
    result = CliRunner().invoke(app, ["demo", *arguments])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(directory.iterdir())


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_report_writes_a_page_on_a_file(trained_small, file_format, tmp_path):
    data, page = tmp_path / f"trained.{file_format}", tmp_path / "page.html"
    getattr(trained_small, f"write_{file_format}")(data)
    result = CliRunner().invoke(app, ["report", str(data), "-o", str(page), "--labels-key", "cell_type"])
    assert (result.exit_code, result.stdout) == (0, f"wrote {page}\n")
    assert "3 in &#39;cell_type&#39;" in page.read_text()


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ("nowhere.h5ad", [], "error: 'nowhere.h5ad' does not exist; name an .h5ad or .zarr"),
        ("text.h5ad", [], "error: could not read 'text.h5ad' as AnnData"),
        ("empty", [], "error: could not read 'empty' as AnnData"),
        ("trained.h5ad", ["--key", "scvi"], "error: key='scvi' is not in adata.uns"),
        (
            "trained.h5ad",
            ["--labels-key", "celltype"],
            "error: labels_key='celltype' is not in adata.obs. Did you mean",
        ),
        ("trained.h5ad", ["-o", "nowhere/page.html"], "error: path='nowhere/page.html' is in a directory"),
        ("trained.h5ad", ["--max-cells", "0"], "error: max_cells=0 was passed"),
    ],
)
def test_report_refuses_bad_input_with_code_1_and_one_line(trained_small, data, arguments, message, empty_directory):
    trained_small.write_h5ad("trained.h5ad")
    (empty_directory / "text.h5ad").write_text("no HDF5")
    (empty_directory / "empty").mkdir()
    result = CliRunner().invoke(app, ["report", data, *arguments])
    assert result.exit_code == 1
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert not list(empty_directory.glob("*.html"))


def test_a_model_of_ones_own_class_is_sent_to_python(trained_small, empty_directory):
    trained_small.uns["scvi_pyro"]["module"] = "Mine"
    trained_small.write_h5ad("trained.h5ad")
    result = CliRunner().invoke(app, ["report", "trained.h5ad"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: 'scvi_pyro' is a model of a class Mine of your own")
    assert "scanpy_scvipyro.pl.report(adata, module=Mine)" in result.stderr
    assert result.stderr.count("\n") == 1


def test_errors_while_working_end_with_code_1_and_one_line(trained_small, empty_directory):
    trained_small.uns["scvi_pyro"]["weights"]["log_inverse_dispersion"][:] = np.nan
    trained_small.write_h5ad("trained.h5ad")
    result = CliRunner().invoke(app, ["report", "trained.h5ad"])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("training diverged\n  in epoch 3"), "error: training diverged in epoch 3\n"),
        (KeyError("key='a' is not there"), "error: key='a' is not there\n"),
        (MemoryError(), "error: MemoryError\n"),
        (PermissionError(13, "Permission denied", "page.html"), "error: [Errno 13] Permission denied: 'page.html'\n"),
    ],
)
def test_any_error_of_data_or_machine_is_one_line(error, line, capsys):
    with pytest.raises(typer.Exit) as ended, cli._errors_in_one_line():
        raise error
    assert (ended.value.exit_code, capsys.readouterr().err) == (1, line)


def test_help_explains_commands_and_options():
    runner = CliRunner(env={"COLUMNS": "120", "NO_COLOR": "1"})
    assert "demo" in runner.invoke(app, ["--help"]).output
    text = re.sub(r"\x1b\[[0-9;]*m", "", runner.invoke(app, ["demo", "--help"]).output)
    for word in ("three cell lines", "--max-epochs", "--random-state", "cell_mixtures.png"):
        assert word in text


def test_version_is_that_of_the_package():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"{version('scanpy-scvipyro')}\n")
