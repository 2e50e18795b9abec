"""The installed program, as pipelines start it: a process of its own, of which only files, output and code are seen.

Each start costs some seconds, so that runs are shared by what is asked of them.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

INSTALLED = Path(sys.executable).with_name("scanpy-scvipyro")
PROGRAM = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "scanpy_scvipyro"]
FIT = ["--batch-key", "batch", "--max-epochs", "1", "--n-hidden", "8", "--threads", "1"]


def run(*arguments, **options):
    """Run the program; its result, with output as text."""
    kept = {"capture_output": True} if "stderr" not in options and "stdout" not in options else {}
    return subprocess.run([*PROGRAM, *map(str, arguments)], check=False, text=True, **kept, **options)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def work(tmp_path_factory, _mixtures):
    """A folder with counts of three samples, in files with names that are not simple, and results of each command."""
    folder = tmp_path_factory.mktemp("müßig folder")
    for batch, part in zip(["ä 1", "b", "c"], np.array_split(np.arange(_mixtures.n_obs), 3), strict=True):
        _mixtures[part].write_h5ad(folder / f"{batch}.h5ad")
    return folder


@pytest.fixture(scope="module")
def fitted(work):
    """Three files as one, in a locale of C, from a folder that cannot be written to, without a home."""
    read_only = work / "read only"
    read_only.mkdir()
    read_only.chmod(0o555)
    out = work / "out"
    out.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in {"LANG", "NUMBA_CACHE_DIR"}}
    environment |= {"LC_ALL": "C", "HOME": "/proc/nowhere"}
    inputs = [work / "ä 1.h5ad", work / "b.h5ad", work / "c.h5ad"]
    ran = run(
        *("fit", *inputs, "-o", out / "größe.h5ad", "--batch-key", "sample", *FIT[2:], "--n-top-genes", "200"),
        *("--summary", out / "summary.json"),
        cwd="/proc" if os.getuid() == 0 and Path("/proc").exists() else read_only,  # root may write to any other
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    return out, ran


def test_fit_needs_no_home_no_locale_and_no_folder_to_write_to(fitted):
    out, ran = fitted
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert names_in(out) == ["größe.h5ad", "summary.json"]
    assert names_in(out.parent / "read only") == []
    adata = ad.read_h5ad(out / "größe.h5ad")
    assert adata.obs["sample"].value_counts().to_dict() == {"ä 1": 449, "b": 448, "c": 448}
    assert adata.obsm["X_scvi_pyro"].shape == (1345, 10)
    assert json.loads((out / "summary.json").read_text("utf-8"))["sizes"]["n_genes_modelled"] == 200


def test_stderr_that_is_no_terminal_gets_no_bars_and_no_colours(fitted):
    text = fitted[1].stderr
    assert "training scVI on 1345 cells and 200 genes" in text
    assert not {"\r", "\x1b", "%|"} & set(text)
    assert "Traceback" not in text
    assert "arning:" not in text


@pytest.mark.slow
def test_commands_go_on_where_others_stopped(fitted, work):
    """Model file, mapping, ranked genes, imputation, report, each by a process of its own."""
    model, trained = work / "model.safetensors", fitted[0] / "größe.h5ad"
    query = ad.read_h5ad(trained)[:40].copy()
    del query.uns["scvi_pyro"]
    query.write_h5ad(work / "new sample.h5ad")
    for arguments in (
        ("convert", trained, "-o", model),
        ("map", work / "new sample.h5ad", "--reference", model, "-o", work / "mapped.zarr"),
        ("impute", trained, "--out", work / "imputed.zarr", "--transform-batch", "b"),
        ("rank-genes", trained, "--groupby", "cell_type", "--n-samples", "50", "-o", work / "genes.csv"),
        ("report", trained, "-o", work / "page.html", "--max-cells", "60", "--quiet"),
    ):
        ran = run(*arguments)
        assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
        assert (ran.stderr == "") == ("--quiet" in arguments)
    codes = ad.read_h5ad(trained).obsm["X_scvi_pyro"][:40]
    np.testing.assert_allclose(ad.read_zarr(work / "mapped.zarr").obsm["X_scvi_pyro"], codes, rtol=0, atol=1e-5)
    assert ad.read_zarr(work / "imputed.zarr").shape == (1345, 200)
    assert set(pd.read_csv(work / "genes.csv")["group"]) == {"H1975", "H2228", "HCC827"}
    assert (work / "page.html").read_text().startswith("<!")


def test_the_same_seed_gives_the_same_files_whoever_listens(work):
    """The second run has no stdin and no stdout, and the reader of its messages has left."""
    first = run("annotate", work / "b.h5ad", "-o", work / "first.h5ad", "--labels-key", "cell_type", *FIT)
    assert first.returncode == 0, first.stderr
    arguments = ["annotate", "b.h5ad", "-o", "second.h5ad", "--labels-key", "cell_type", *FIT]
    read, write = os.pipe()
    os.close(read)
    # Without a buffer, nothing would be left to fail at exit.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *PROGRAM, *arguments]
    second = subprocess.run(command, check=False, cwd=work, stderr=write, env=environment)
    os.close(write)
    assert second.returncode == 0
    assert (work / "first.h5ad").read_bytes() == (work / "second.h5ad").read_bytes()
    assert ad.read_h5ad(work / "first.h5ad").obs["scanvi_pyro"].notna().all()


def test_a_reader_of_the_help_may_leave():
    command = ["sh", "-c", '"$@" 2>&1 | head -n 1', "sh", *PROGRAM, "--help"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ran.stdout.startswith("Usage:")
    assert (ran.stdout.count("\n"), ran.stderr) == (1, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_with_code_130_and_leave_nothing(work, empty_directory, number):
    arguments = [work / "b.h5ad", "-o", "out.h5ad", "--max-epochs", "100000", "--summary", "summary.json"]
    lines = []
    with subprocess.Popen(
        [*PROGRAM, "fit", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored where the tests run in the background
    ) as process:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("training scVI"):
                time.sleep(0.5)
                process.send_signal(number)
    assert process.returncode == 130, lines
    assert lines[-1] == "error: interrupted; unfinished output was removed.\n"
    assert names_in(empty_directory) == []


def test_a_full_disk_ends_with_code_3_and_leaves_the_old_output(work, empty_directory):
    Path("out.h5ad").write_text("old")
    ran = run(
        *("fit", work / "b.h5ad", "-o", "out.h5ad", "--overwrite", "--quiet", *FIT),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    assert ran.returncode == 3, ran.stderr
    assert ran.stderr == "error: no space left to write to: [Errno 27] File too large\n"
    assert Path("out.h5ad").read_text() == "old"
    assert names_in(empty_directory) == ["out.h5ad"]


def test_wrong_usage_and_bad_input_have_their_codes(work, empty_directory):
    wrong = run("fti", work / "b.h5ad")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    bad = run("fit", work / "b.h5ad", "-o", "out.h5ad", "--batch-key", "btch", "--quiet")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: batch_key='btch' is not in adata.obs. Did you mean 'batch'?")
    assert bad.stderr.count("\n") == 1
    assert names_in(empty_directory) == []


def test_help_and_completion_come_without_scanpy():
    script = "import sys, scanpy_scvipyro.cli; print(sorted({'scanpy', 'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"

    def completed(words):
        environment = os.environ | {
            "_SCANPY_SCVIPYRO_COMPLETE": "bash_complete",
            "COMP_WORDS": f"scanpy-scvipyro {words}",
            "COMP_CWORD": str(words.count(" ") + 1),
        }
        return [line.partition(",")[2] for line in run(env=environment).stdout.splitlines()]

    assert completed("ran") == ["rank-genes"]
    assert completed("fit --gene-likelihood z") == ["zinb"]


@pytest.mark.slow
def test_demo_finds_the_cell_lines_and_mixes_the_protocols(tmp_path):
    folder = tmp_path / "demo"
    folder.mkdir()
    ran = run("demo", folder)
    assert ran.returncode == 0, ran.stderr
    rows = {line[:42].strip(): line[42:].split() for line in ran.stdout.splitlines()}
    ari = [float(cell) for cell in rows["ARI with the cell lines (best: 1)"]]
    same = [float(cell) for cell in rows["neighbours of own protocol (mixed: 0.50)"]]
    assert ari[1] >= max(0.95, ari[0])
    assert same[1] < 0.75 < same[0]
    assert names_in(folder) == ["cell_mixtures.h5ad", "cell_mixtures.png"]
    assert ad.read_h5ad(folder / "cell_mixtures.h5ad").obs["leiden"].nunique() == 3
    from matplotlib import image

    pixels = image.imread(folder / "cell_mixtures.png")
    assert len({tuple(pixel) for pixel in pixels[::5, ::5, :3].reshape(-1, 3).round(1).tolist()}) > 10
