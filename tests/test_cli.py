"""The command line in this process: options, inputs, outputs, and what is said where something is wrong."""

from __future__ import annotations

import contextlib
import errno
import gzip
import inspect
import json
import os
import resource
import signal
import tomllib
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import click
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from click.testing import CliRunner
from scipy import sparse
from scipy.io import mmwrite

import scanpy_scvipyro as scvip
from scanpy_scvipyro import pl, tl
from scanpy_scvipyro.cli import _exit, _inputs, _options, _outputs, _surroundings, app
from scanpy_scvipyro.cli._listed import SUMMARIES
from scanpy_scvipyro.cli.commands import COMMANDS

QUICK = ["--max-epochs", "2", "--n-hidden", "8"]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def there():
    return sorted(path.name for path in Path().iterdir())


@pytest.fixture
def counts(small, empty_directory):
    small.write_h5ad("counts.h5ad")
    return small


@pytest.fixture
def fitted(trained_small, empty_directory):
    trained_small.write_h5ad("fitted.h5ad")
    return trained_small


# Options


@pytest.mark.parametrize(
    ("name", "function", "not_written"),
    [
        ("fit", tl.scvi_pyro, {"module", "logger", "callbacks", "progress_bar", "copy"}),
        ("annotate", tl.scanvi_pyro, {"module", "logger", "callbacks", "progress_bar", "copy"}),
        ("map", tl.map_query, {"adata_ref", "module", "progress_bar", "copy"}),
        ("impute", tl.impute, {"module", "progress_bar", "copy"}),
        ("rank-genes", tl.rank_genes_groups, {"module", "progress_bar", "copy"}),
        ("abundance", tl.differential_abundance, {"copy"}),
        ("report", pl.report, {"path", "module"}),
        ("convert", scvip.write_model, {"path"}),
    ],
)
def test_every_keyword_is_an_option_with_the_same_default(name, function, not_written):
    options = {param.name for param in COMMANDS[name].params}
    keywords = [p for p in inspect.signature(function).parameters.values() if p.name not in {"adata", *not_written}]
    assert {p.name for p in keywords} <= options
    assert not_written.isdisjoint(options)

    output = {"convert": "x.safetensors", "report": "x.html"}.get(name, "x.h5ad")
    required = [part for p in keywords if p.default is p.empty for part in (f"--{p.name.replace('_', '-')}", "x")]
    required += ["--reference", "x"] if name == "map" else []
    values = COMMANDS[name].make_context(name, ["in.h5ad", "-o", output, *required]).params
    passed = _options.arguments_of(function, values, without=not_written)
    for keyword in keywords:
        if keyword.default is not keyword.empty:
            assert passed.get(keyword.name, keyword.default) == keyword.default


@pytest.mark.parametrize(
    ("annotation", "name", "expected"),
    [
        ("int", "n", (int,)),
        ("Literal['a', 'b'] | float", "n", ("a", "b", float)),
        ("Iterable[str] | str | None", "n", (str,)),
        ("GeneLikelihood", "gene_likelihood", ("nb", "zinb", "poisson")),
        ("NDArray[np.bool_] | str | None", "n", (str,)),
        ("type[SCVI] | None", "module", ()),
        ("Callback | Iterable[Callback] | None", "callbacks", ()),
    ],
)
def test_annotations_are_read_as_they_are_written(annotation, name, expected):
    kind = _options.kind_of(annotation, name)
    assert (*kind.choices, *kind.types) == expected
    assert kind.is_writable == bool(expected)


def test_one_value_is_passed_as_itself_and_several_as_a_list():
    parse = COMMANDS["impute"].make_context
    for given, expected in (
        ([], "mean"),
        (["--statistic", "median"], "median"),
        (["--statistic", "0.5"], 0.5),
        (["--statistic", "0.1", "--statistic", "0.9"], [0.1, 0.9]),
    ):
        values = parse("impute", ["in.h5ad", "-o", "out.h5ad", *given]).params
        assert _options.arguments_of(tl.impute, values)["statistic"] == expected


def test_none_is_written_as_a_word_where_it_is_not_the_default():
    values = COMMANDS["fit"].make_context("fit", ["in.h5ad", "-o", "out.h5ad", "--batch-offset", "none"]).params
    assert _options.arguments_of(tl.scvi_pyro, values)["batch_offset"] is None


@pytest.mark.parametrize("name", SUMMARIES)
def test_help_has_an_example_and_fits_80_columns(name):
    text = done(name, "--help").output
    assert max(map(len, text.splitlines())) <= 80
    assert SUMMARIES[name].split(":")[0][:40] in text
    assert f"Example:\n  scanpy-scvipyro {name}" in text
    assert "--config" in text
    assert not {"``", ":func:", ":cite:", ":class:", ":math:"} & set(text.split())
    assert "`" not in text


def test_help_of_the_program_lists_commands_and_exit_codes():
    text = done("--help").output
    assert max(map(len, text.splitlines())) <= 80
    for word in (*SUMMARIES, "130", "--version"):
        assert word in text
    assert list(COMMANDS) == list(SUMMARIES)


def test_version_is_that_of_the_package():
    assert done("--version").output == f"{version('scanpy-scvipyro')}\n"


# Settings from a file


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(counts):
    Path("run.toml").write_text(
        'batch-key = "batch"\nmode = "vanilla"\n[fit]\nmax_epochs = 9\nn_hidden = 8\nimpute = false\n'
        'categorical_covariate_keys = "cell_type"\ninput = ["counts.h5ad"]\noutput = "out.h5ad"\n'
        "[report]\nmax_cells = 30\n"
    )
    done("fit", "--config", "run.toml", "--max-epochs", "1")
    params = ad.read_h5ad("out.h5ad").uns["scvi_pyro"]["params"]
    assert (params["batch_key"], params["max_epochs"], params["n_hidden"]) == ("batch", 1, 8)
    assert params["categorical_covariate_keys"].tolist() == ["cell_type"]
    assert "scvi_pyro_imputed" not in ad.read_h5ad("out.h5ad").layers


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[fit]\nn_latnt = 3", "'n_latnt' is no option. Did you mean 'n_latent'?"),
        ("[fit]\ngroupby = 'a'", "'groupby' is no option."),
        ("n_latnt = 3", "'n_latnt' is no option."),
        ("[fti]\nn_latent = 3", "[fti] is no command. Did you mean 'fit'?"),
        ("n_latent = 'many'", "'many' is not a valid integer"),
        ("gene_likelihood = 'nbb'", "'nbb' is not one of"),
        ("layer = ['a', 'b']", "'layer' takes one value, and ['a', 'b'] is a list."),
        ("n_latent =", "'run.toml' is no TOML"),
    ],
)
def test_wrong_settings_in_a_file_are_wrong_usage(toml, message, empty_directory):
    Path("run.toml").write_text(toml)
    result = call("fit", "in.h5ad", "-o", "out.h5ad", "--config", "run.toml")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


# Wrong usage, bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "counts.h5ad"], "Missing option '--output'"),
        (["fit", "-o", "out.h5ad"], "Missing argument 'INPUT...'"),
        (["fit", "counts.h5ad", "-o", "out.csv"], "'out.csv' ends in none of: .h5ad, .zarr."),
        (["fit", "counts.h5ad", "-o", "out.h5ad", "--n-latent", "x"], "'x' is not a valid integer"),
        (["fit", "counts.h5ad", "-o", "out.h5ad", "--prior", "x"], "'x' is not one of 'normal', 'mixture'"),
        (["fit", "counts.h5ad", "-o", "out.h5ad", "--n-latnt", "3"], "No such option '--n-latnt'"),
        (["fit", "counts.h5ad", "-o", "out.h5ad", "--threads", "0"], "0 is not in the range"),
        (["impute", "counts.h5ad"], "Pass one of --output"),
        (["impute", "counts.h5ad", "-o", "a.h5ad", "--out", "b.zarr"], "Pass one of --output"),
        (["impute", "counts.h5ad", "-o", "a.h5ad", "--library-size", "x"], "'x' is none of: observed, latent, FLOAT."),
        (["rank-genes", "counts.h5ad", "-o", "a.csv"], "Missing option '--groupby'"),
        (["imput", "counts.h5ad"], "No such command 'imput'"),
    ],
)
def test_wrong_usage_ends_with_code_2(counts, arguments, message, empty_directory):
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message.replace("'", "") in result.stderr.replace("'", "")
    assert there() == ["counts.h5ad"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere.h5ad", "-o", "out.h5ad"], "error: 'nowhere.h5ad' does not exist; name .h5ad, .zarr, 10x"),
        (["fit", "text.h5ad", "-o", "out.h5ad"], "error: could not read 'text.h5ad': "),
        (["fit", "empty", "-o", "out.h5ad"], "error: could not read 'empty': "),
        (["fit", "text.h5ad", "./text.h5ad", "-o", "out.h5ad"], "error: the same input is named twice"),
        (["fit", "counts.h5ad", "-o", "counts.h5ad"], "error: 'counts.h5ad' exists already; pass --overwrite"),
        (["fit", "counts.h5ad", "-o", "nowhere/out.h5ad"], "error: 'nowhere/out.h5ad' is in a folder that does not"),
        (["fit", "counts.h5ad", "-o", "a.h5ad", "--batch-key", "btch"], "error: batch_key='btch' is not in adata.obs."),
        (["fit", "counts.h5ad", "-o", "a.h5ad", "--max-epochs", "0"], "error: max_epochs=0 was passed; pass a whole"),
        (["fit", "counts.h5ad", "-o", "a.h5ad", "--layer", "raw"], "error: layer='raw' is not in adata.layers."),
        (
            ["fit", "counts.h5ad", "-o", "a.h5ad", "--layer", "raw", "--n-top-genes", "5"],
            "error: layer='raw' is not in adata.layers.",
        ),
        (["annotate", "counts.h5ad", "-o", "a.h5ad", "--labels-key", "celltype"], "error: labels_key='celltype'"),
        (["map", "counts.h5ad", "-o", "a.h5ad", "--reference", "counts.h5ad"], "error: key='scvi_pyro' is not in"),
        (["report", "counts.h5ad", "--key", "scvi"], "error: key='scvi' is not in adata.uns"),
        (["report", "counts.h5ad", "--max-cells", "0"], "error: max_cells=0 was passed"),
        (["convert", "counts.h5ad", "-o", "a.safetensors"], "error: key='scvi_pyro' is not in adata.uns"),
        (["demo", "nowhere"], "error: 'nowhere/cell_mixtures.h5ad' is in a folder that does not exist"),
        (["fit", "counts.h5ad", "-o", "a.h5ad", "--summary", "nowhere/s.json"], "error: 'nowhere/s.json' is in a"),
    ],
)
def test_bad_input_ends_with_code_1_and_one_line(counts, arguments, message, empty_directory):
    Path("text.h5ad").write_text("no HDF5")
    Path("empty").mkdir()
    before = there()
    result = call(*arguments, "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert there() == before


def test_a_model_of_ones_own_class_is_sent_to_python(fitted):
    fitted.uns["scvi_pyro"]["module"] = "Mine"
    fitted.write_h5ad("fitted.h5ad")
    for command in (["report"], ["impute", "-o", "out.h5ad"], ["map", "-o", "out.h5ad", "--reference", "fitted.h5ad"]):
        result = call(command[0], "fitted.h5ad", *command[1:])
        assert result.exit_code == 1
        assert result.stderr.startswith("error: 'scvi_pyro' is a model of a class Mine of your own")
        assert "(adata, module=Mine)" in result.stderr


def test_errors_while_working_end_with_code_1_and_no_output(fitted, empty_directory):
    fitted.uns["scvi_pyro"]["weights"]["log_inverse_dispersion"][:] = np.nan
    fitted.write_h5ad("fitted.h5ad")
    result = call("report", "fitted.h5ad", "--quiet")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert there() == ["fitted.h5ad"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RuntimeError("training diverged\n  in epoch 3"), 1, "error: training diverged in epoch 3\n"),
        (KeyError("key='a' is not there"), 1, "error: key='a' is not there\n"),
        (
            PermissionError(13, "Permission denied", "page.html"),
            1,
            "error: [Errno 13] Permission denied: 'page.html'\n",
        ),
        (MemoryError(), 3, "error: out of memory: MemoryError\n"),
        (RuntimeError("CUDA out of memory. Tried"), 3, "error: out of memory: CUDA out of memory. Tried\n"),
        (OSError(errno.ENOSPC, "No space"), 3, "error: no space left to write to: [Errno 28] No space\n"),
        (
            OSError("Can't write (errno = 122, x)"),
            3,
            "error: no space left to write to: Can't write (errno = 122, x)\n",
        ),
        (KeyboardInterrupt(), 130, "error: interrupted; unfinished output was removed.\n"),
    ],
)
def test_errors_of_data_or_machine_have_codes_and_one_line(error, code, line, capsys):
    with pytest.raises(click.exceptions.Exit) as ended, _exit.codes():
        raise error
    assert (ended.value.exit_code, capsys.readouterr().err) == (code, line)


def test_a_model_beyond_the_memory_ends_with_code_3(counts):
    result = call("fit", "counts.h5ad", "-o", "out.h5ad", "--n-hidden", 10**10)
    assert (result.exit_code, there()) == (3, ["counts.h5ad"])
    assert result.stderr.splitlines()[-1].startswith("error: out of memory: ")


def test_what_caused_an_error_counts():
    with pytest.raises(click.exceptions.Exit) as ended, _exit.codes():
        raise RuntimeError("could not close") from OSError(errno.ENOSPC, "No space left on device")
    assert ended.value.exit_code == 3


def test_errors_of_our_own_show_where(capsys):
    with pytest.raises(AssertionError), _exit.codes():
        raise AssertionError


def test_signals_have_their_handlers_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(click.exceptions.Exit) as ended, _exit.codes():
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_where_home_cannot_be_written_to_numba_gets_a_folder(monkeypatch, empty_directory):
    for name in ("NUMBA_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("HOME", str(empty_directory))
    _surroundings.prepare()
    assert "NUMBA_CACHE_DIR" not in os.environ

    monkeypatch.setattr(_surroundings, "_is_writable", lambda _: False)
    _surroundings.prepare()
    assert Path(os.environ["NUMBA_CACHE_DIR"]).is_dir()
    assert os.environ["MPLCONFIGDIR"] == os.environ["NUMBA_CACHE_DIR"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that nobody can write to")
def test_a_folder_is_writable_if_something_can_be_written_there(empty_directory):
    assert _surroundings._is_writable(empty_directory / "not" / "yet")
    assert not _surroundings._is_writable(Path("/proc/nowhere/.cache"))


# Inputs


@pytest.fixture
def files_of_10x(small, empty_directory):
    """The same counts as 10x writes them: HDF5 of version 3, a folder, and a folder as GEO has them."""
    counts = sparse.csc_matrix(small.X.T).astype(np.int32)
    ids = [f"ENSG{i:011d}" for i in range(small.n_vars)]
    with h5py.File("filtered.h5", "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(counts, name)
        group["shape"], group["barcodes"] = counts.shape, small.obs_names.to_numpy("S")
        features = group.create_group("features")
        features["id"], features["name"] = np.array(ids, "S"), small.var_names.to_numpy("S")
        features["feature_type"] = np.array(["Gene Expression"] * small.n_vars, "S")
        features["genome"] = np.array(["GRCh38"] * small.n_vars, "S")
    table = pd.DataFrame({"id": ids, "name": small.var_names, "type": "Gene Expression"})
    for folder, prefix in (("folder", ""), ("geo", "GSM1_")):
        Path(folder).mkdir()
        mmwrite(f"{folder}/matrix.mtx", sparse.coo_matrix(counts))
        with gzip.open(f"{folder}/{prefix}matrix.mtx.gz", "wb") as packed:
            packed.write(Path(folder, "matrix.mtx").read_bytes())
        Path(folder, "matrix.mtx").unlink()
        table.to_csv(f"{folder}/{prefix}features.tsv.gz", sep="\t", header=False, index=False)
        small.obs_names.to_frame().to_csv(f"{folder}/{prefix}barcodes.tsv.gz", sep="\t", header=False, index=False)
    return small


@pytest.mark.parametrize("source", ["filtered.h5", "folder", "geo"])
def test_files_of_10x_are_read(files_of_10x, source):
    done("convert", source, "-o", "out.h5ad")
    read = ad.read_h5ad("out.h5ad")
    assert read.var_names.tolist() == files_of_10x.var_names.tolist()
    np.testing.assert_array_equal(read.X.toarray(), files_of_10x.X.toarray())


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_formats_of_anndata_are_read_and_written(counts, suffix, unchanged):
    done("convert", "counts.h5ad", "-o", f"first.{suffix}")
    done("convert", f"first.{suffix}", "-o", "second.h5ad")
    unchanged(ad.read_h5ad("second.h5ad"), ad.read_h5ad("counts.h5ad"))


def test_genes_of_the_same_name_are_numbered_and_told(counts, empty_directory):
    counts.var_names = ["A", "A", *counts.var_names[2:]]
    counts.write_h5ad("twice.h5ad")
    result = done("convert", "twice.h5ad", "-o", "out.h5ad")
    assert "some genes have the same name" in result.stderr
    assert ad.read_h5ad("out.h5ad").var_names[:2].tolist() == ["A", "A-1"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.h5ad", "b.h5ad"], ["a", "b"]),
        (["a/filtered.h5", "b/filtered.h5"], ["a", "b"]),
        (["a/outs/filtered", "b/outs/filtered"], ["a", "b"]),
        (["x/a.h5ad", "y/a.h5ad", "x/b.h5ad"], ["x_a", "y_a", "x_b"]),
    ],
)
def test_inputs_are_named_by_what_their_paths_do_not_share(paths, names):
    assert _inputs.names_of([Path(path) for path in paths]) == names


@pytest.fixture
def samples(small, empty_directory):
    """Three samples: two without a batch and with the same names of cells, the third without ten genes."""
    parts = [small[start : start + 30].copy() for start in (0, 30, 60)]
    parts[1].obs_names = parts[0].obs_names
    parts[2] = parts[2][:, 10:].copy()
    parts[2].obs["sample"] = "own"
    for name, part in zip("abc", parts, strict=True):
        part.write_h5ad(f"{name}.h5ad")
    return parts


@pytest.mark.parametrize(("join", "n_genes"), [("inner", 30), ("outer", 40)])
def test_several_inputs_become_one_with_batches_by_file(samples, join, n_genes):
    arguments = ["--batch-key", "sample", "--join", join, *QUICK]
    result = done("fit", "a.h5ad", "b.h5ad", "c.h5ad", "-o", "all.h5ad", *arguments)
    adata = ad.read_h5ad("all.h5ad")
    assert adata.shape == (90, n_genes)
    assert adata.obs["sample"].value_counts().to_dict() == {"a": 30, "b": 30, "own": 30}
    assert adata.obs_names.is_unique
    assert "no column 'sample' in 2 of 3 inputs: their batches are 'a', 'b'" in result.stderr
    for name, part in zip(["a", "b", "own"], samples, strict=True):
        found = adata[adata.obs["sample"] == name, part.var_names.intersection(adata.var_names)]
        np.testing.assert_array_equal(found.X.toarray(), part[:, found.var_names].X.toarray())


def test_inputs_without_a_common_gene_are_refused(samples):
    samples[0].var_names = [f"other{i}" for i in range(samples[0].n_vars)]
    samples[0].write_h5ad("a.h5ad")
    result = call("fit", "a.h5ad", "b.h5ad", "-o", "out.h5ad")
    assert (result.exit_code, "no gene is in all inputs" in result.stderr) == (1, True)


def test_a_query_without_the_batch_column_is_a_batch_of_its_own(fitted):
    query = fitted[:30].copy()
    del query.obs["batch"]
    query.write_h5ad("new.h5ad")
    done("map", "new.h5ad", "--reference", "fitted.h5ad", "-o", "mapped.h5ad", "--max-epochs", "1")
    mapped = ad.read_h5ad("mapped.h5ad")
    assert set(mapped.obs["batch"]) == {"new"}
    assert "new" in mapped.uns["scvi_pyro"]["categories"]["batch"]


# Genes


def test_highly_variable_genes_are_those_of_scanpy(counts):
    done("fit", "counts.h5ad", "-o", "out.h5ad", "--batch-key", "batch", "--n-top-genes", "12", *QUICK)
    out = ad.read_h5ad("out.h5ad")
    sc.experimental.pp.highly_variable_genes(
        counts, flavor="pearson_residuals", n_top_genes=12, batch_key="batch", check_values=False
    )
    chosen = counts.var_names[counts.var["highly_variable"]]
    assert set(out.uns["scvi_pyro"]["genes"]) == set(chosen)
    assert out.var_names[out.var["highly_variable"]].tolist() == chosen.tolist()
    assert out.uns["scanpy_scvipyro"]["fit"]["mask_var"] == "highly_variable"


def test_mask_var_goes_before_the_number_of_genes(counts):
    counts.var["mine"] = np.arange(counts.n_vars) < 7
    counts.write_h5ad("counts.h5ad")
    done("fit", "counts.h5ad", "-o", "out.h5ad", "--mask-var", "mine", "--n-top-genes", "12", *QUICK)
    out = ad.read_h5ad("out.h5ad")
    assert out.uns["scvi_pyro"]["genes"].tolist() == counts.var_names[:7].tolist()
    assert "highly_variable" not in out.var


def test_more_genes_than_there_are_is_all_genes(counts):
    result = done("fit", "counts.h5ad", "-o", "out.h5ad", "--n-top-genes", "1000", *QUICK)
    assert "there are 40 genes" in result.stderr
    assert len(ad.read_h5ad("out.h5ad").uns["scvi_pyro"]["genes"]) == 40


# Outputs


def test_fit_writes_what_the_function_does(counts, train_quickly):
    done("fit", "counts.h5ad", "-o", "out.h5ad", "--batch-key", "batch", *QUICK)
    train_quickly(counts, batch_key="batch")
    out = ad.read_h5ad("out.h5ad")
    np.testing.assert_array_equal(out.obsm["X_scvi_pyro"], counts.obsm["X_scvi_pyro"])
    settings = out.uns["scanpy_scvipyro"]["fit"]
    assert (settings["batch_key"], settings["n_hidden"], settings["input"].tolist()) == ("batch", 8, ["counts.h5ad"])
    assert settings["version"] == version("scanpy-scvipyro")
    assert not {"output", "threads", "quiet", "layer"} & set(settings)


def test_an_existing_output_is_replaced_on_request_only(counts, empty_directory):
    for output in ("out.h5ad", "out.zarr"):
        done("convert", "counts.h5ad", "-o", output)
        assert call("convert", "counts.h5ad", "-o", output).exit_code == 1
        counts[:10].write_h5ad("few.h5ad")
        done("convert", "few.h5ad", "-o", output, "--overwrite")
        read = ad.read_zarr if output.endswith("zarr") else ad.read_h5ad
        assert read(output).n_obs == 10
    assert there() == ["counts.h5ad", "few.h5ad", "out.h5ad", "out.zarr"]


def test_the_old_output_stays_where_the_new_one_fails(counts, empty_directory):
    Path("out.h5ad").write_text("old")
    assert call("fit", "counts.h5ad", "-o", "out.h5ad", "--overwrite", "--layer", "raw").exit_code == 1
    assert Path("out.h5ad").read_text() == "old"


def test_the_old_output_comes_back_where_moving_fails(empty_directory):
    Path("first").write_text("old")
    outputs = _outputs.Outputs(overwrite=True)
    outputs.claim(Path("first")).write_text("new")
    outputs.claim(Path("second"))  # nothing is written there
    with pytest.raises(FileNotFoundError), outputs:
        pass
    assert Path("first").read_text() == "old"
    assert there() == ["first"]


def test_a_link_stays_one(counts, empty_directory):
    Path("real").mkdir()
    Path("out.h5ad").symlink_to("real/out.h5ad")
    done("convert", "counts.h5ad", "-o", "out.h5ad")
    assert Path("out.h5ad").is_symlink()
    assert ad.read_h5ad("real/out.h5ad").n_obs == 90


def test_one_place_is_not_for_two_outputs(counts):
    result = call("impute", "counts.h5ad", "--out", "a.zarr", "--summary", "a.zarr")
    assert result.exit_code == 2  # by the suffix
    with _outputs.Outputs(overwrite=False) as outputs:
        outputs.claim(Path("a")).write_text("content")
        with pytest.raises(ValueError, match="named for two outputs"):
            outputs.claim(Path("./a"))


@contextlib.contextmanager
def small_disk():
    """No file grows beyond 20 kB, that of pytest's own output included: it must end before the test is reported."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "-o", "out.h5ad"],
        ["convert", "-o", "out.zarr"],
        ["convert", "-o", "out.safetensors"],
        ["impute", "--out", "out.zarr"],
        ["rank-genes", "-o", "out.csv", "--groupby", "cell_type", "--n-samples", "50"],
        ["report", "-o", "out.html", "--max-cells", "20"],
    ],
)
def test_a_full_disk_ends_with_code_3_and_no_output(trained, arguments, empty_directory):
    trained.write_h5ad("in.h5ad")
    with small_disk():
        result = call(arguments[0], "in.h5ad", *arguments[1:], "--quiet")
    assert result.exit_code == 3, result.output
    assert result.stderr.startswith("error: no space left to write to: ")
    assert result.stderr.count("\n") == 1
    assert there() == ["in.h5ad"]


# Commands


def test_impute_writes_a_layer_or_a_store(fitted):
    arguments = ["--transform-batch", "all", "--library-size", "1e4"]
    done("impute", "fitted.h5ad", "-o", "out.h5ad", *arguments, "--key-added", "normalized")
    done("impute", "fitted.h5ad", "--out", "out.zarr", *arguments)
    tl.impute(fitted, transform_batch="all", library_size=1e4, key_added="normalized")
    np.testing.assert_array_equal(ad.read_h5ad("out.h5ad").layers["normalized"], fitted.layers["normalized"])
    np.testing.assert_array_equal(ad.read_zarr("out.zarr").X, fitted.layers["normalized"])


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_rank_genes_writes_the_table_of_scanpy(fitted, suffix, separator):
    done("rank-genes", "fitted.h5ad", "--groupby", "cell_type", "--n-samples", "50", "-o", f"genes.{suffix}")
    table = pd.read_csv(f"genes.{suffix}", sep=separator)
    tl.rank_genes_groups(fitted, "cell_type", n_samples=50)
    expected = sc.get.rank_genes_groups_df(fitted, None, key="rank_genes_groups_scvi_pyro")
    pd.testing.assert_frame_equal(table[expected.columns], expected, check_dtype=False, check_categorical=False)
    stored = fitted.uns["rank_genes_groups_scvi_pyro"]
    assert np.allclose(table["proba_de"], np.concatenate([stored["proba_de"][g] for g in stored["names"].dtype.names]))


def test_rank_genes_writes_one_group_and_what_scanpy_plots(fitted):
    arguments = ["--groupby", "cell_type", "--groups", "H1975", "--reference", "HCC827", "--pts", "--n-samples", "50"]
    done("rank-genes", "fitted.h5ad", "-o", "genes.csv", *arguments)
    table = pd.read_csv("genes.csv")
    assert set(table["group"]) == {"H1975"}
    assert table["pct_nz_group"].between(0, 1).all()
    done("rank-genes", "fitted.h5ad", "-o", "genes.h5ad", *arguments)
    read = sc.get.rank_genes_groups_df(ad.read_h5ad("genes.h5ad"), "H1975", key="rank_genes_groups_scvi_pyro")
    assert read["names"].tolist() == table["names"].tolist()


def test_abundance_writes_cells_or_labels(fitted):
    fitted.obs["donor"] = pd.Categorical([f"d{i % 6}" for i in range(90)])
    fitted.obs["condition"] = pd.Categorical(np.where(np.arange(90) % 6 < 3, "case", "control"))
    fitted.write_h5ad("fitted.h5ad")
    arguments = ["--condition-key", "condition", "--reference", "control", "--sample-key", "donor"]
    done("abundance", "fitted.h5ad", "-o", "cells.csv", *arguments)
    done("abundance", "fitted.h5ad", "-o", "labels.csv", *arguments, "--groupby", "cell_type")
    tl.differential_abundance(fitted, "condition", reference="control", sample_key="donor", groupby="cell_type")
    cells = pd.read_csv("cells.csv", index_col="cell")
    np.testing.assert_allclose(cells["scvi_pyro_da_lfc"], fitted.obs["scvi_pyro_da_lfc"], rtol=1e-4)
    labels = pd.read_csv("labels.csv", index_col="label")
    np.testing.assert_allclose(labels["pvals"], fitted.uns["scvi_pyro_da"]["labels"]["pvals"])


def test_rank_genes_takes_samples_as_replicates(fitted):
    fitted.obs["donor"] = pd.Categorical([f"d{i % 6}" for i in range(90)])
    fitted.obs["condition"] = pd.Categorical(np.where(np.arange(90) % 6 < 3, "case", "control"))
    fitted.write_h5ad("fitted.h5ad")
    arguments = ["--groups", "case", "--reference", "control", "--sample-key", "donor", "--within", "cell_type"]
    done("rank-genes", "fitted.h5ad", "--groupby", "condition", *arguments, "-o", "genes.csv")
    assert set(pd.read_csv("genes.csv")["group"]) == {"H1975", "H2228", "HCC827"}


def test_a_model_goes_to_a_file_and_back(fitted):
    done("convert", "fitted.h5ad", "-o", "model.safetensors", "--codes", "--obs-keys", "cell_type")
    done("convert", "model.safetensors", "-o", "model.h5ad")
    back = ad.read_h5ad("model.h5ad")
    np.testing.assert_array_equal(back.obsm["X_scvi_pyro"], fitted.obsm["X_scvi_pyro"])
    weights = back.uns["scvi_pyro"]["weights"]
    for name, value in fitted.uns["scvi_pyro"]["weights"].items():
        np.testing.assert_array_equal(weights[name], value)
    done("map", "fitted.h5ad", "--reference", "model.h5ad", "-o", "mapped.h5ad")
    np.testing.assert_array_equal(ad.read_h5ad("mapped.h5ad").obsm["X_scvi_pyro"], fitted.obsm["X_scvi_pyro"])


@pytest.mark.parametrize("file_format", ["h5ad", "zarr"])
def test_report_writes_a_page_and_its_warnings(trained_small, file_format, empty_directory):
    getattr(trained_small, f"write_{file_format}")(f"trained.{file_format}")
    result = done(
        "report", f"trained.{file_format}", "-o", "page.html", "--labels-key", "cell_type", "--summary", "s.json"
    )
    assert result.stdout == ""
    assert "wrote page.html" in result.stderr
    page = Path("page.html").read_text()
    assert "3 in &#39;cell_type&#39;" in page
    warnings = json.loads(Path("s.json").read_text())["warnings"]
    assert warnings
    for warning in warnings:
        assert warning.split(". ")[0].replace("'", "&#39;") in page


def test_the_summary_says_what_was_done_and_how_it_went(counts):
    arguments = ["--batch-key", "batch", "--n-top-genes", "30", "--threads", "1", *QUICK]
    done("fit", "counts.h5ad", "-o", "out.h5ad", "--summary", "s.json", *arguments)
    summary, out = json.loads(Path("s.json").read_text()), ad.read_h5ad("out.h5ad")
    assert summary["command"] == "fit"
    assert summary["settings"]["n_top_genes"] == 30
    assert summary["settings"]["input"] == ["counts.h5ad"]
    assert summary["versions"]["scanpy-scvipyro"] == version("scanpy-scvipyro")
    assert summary["machine"]["threads"] == 1
    assert summary["sizes"] == {"n_cells": 90, "n_genes": 40, "n_genes_modelled": 30, "n_batches": 3, "n_epochs": 2}
    assert 0 < summary["seconds"]["work"] < summary["seconds"]["total"]
    assert summary["peak_memory_bytes"] > 50e6
    history = out.uns["scvi_pyro"]["history"]
    assert summary["elbo"]["validation"] == history["validation_elbo"].iloc[-1]
    assert any(warning.startswith("Training ") for warning in summary["warnings"])


def test_settings_of_earlier_commands_stay(fitted):
    done("impute", "fitted.h5ad", "-o", "a.h5ad", "--key-added", "x")
    done("rank-genes", "a.h5ad", "-o", "b.h5ad", "--groupby", "cell_type", "--n-samples", "50")
    assert set(ad.read_h5ad("b.h5ad").uns["scanpy_scvipyro"]) == {"impute", "rank-genes"}


def test_quiet_leaves_errors_only(counts):
    result = done("fit", "counts.h5ad", "-o", "out.h5ad", "--quiet", "--summary", "s.json", *QUICK)
    assert (result.stdout, result.stderr) == ("", "")
    assert json.loads(Path("s.json").read_text())["warnings"]


def test_a_run_leaves_settings_of_scanpy_and_torch_alone(counts):
    import torch

    before = sc.settings.verbosity, sc.settings.logfile, torch.get_num_threads()
    done("fit", "counts.h5ad", "-o", "out.h5ad", "--threads", "2", *QUICK)
    assert (sc.settings.verbosity, sc.settings.logfile, torch.get_num_threads()) == before


def test_the_example_of_the_configuration_in_the_guide_is_toml():
    page = Path(__file__).parents[1] / "docs" / "guide" / "pipelines.md"
    if not page.exists():
        pytest.skip("docs/ is not packaged with the tests")
    text = page.read_text().partition("```toml\n")[2].partition("```")[0]
    tables = tomllib.loads(text)
    names = {param.name for command in COMMANDS.values() for param in command.params}
    for name, value in tables.items():
        if isinstance(value, dict):
            assert set(value) <= {param.name for param in COMMANDS[name].params}
        else:
            assert name in names
