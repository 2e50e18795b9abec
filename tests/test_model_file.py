"""A trained model as one file."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import scanpy_scvipyro as scvip
from scanpy_scvipyro.model import SCVI


class Mine(SCVI):
    pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def written(trained_small, path):
    """A model file to tamper with."""
    scvip.write_model(trained_small, path)
    return path


def header_of(path):
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["scanpy_scvipyro"])


def rewrite(path, *, header=(), tensors=()):
    """Write a file again, with other parts."""
    metadata = {"scanpy_scvipyro": json.dumps(header_of(path) | dict(header))}
    save_file(load_file(path) | dict(tensors), path, metadata)


def assert_same_parts(found, expected):
    """Equal in every part, value and type, at any depth."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name in expected:
            assert_same_parts(found[name], expected[name])
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_index_type=False)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gene_likelihood": "zinb", "dispersion": "gene-batch", "library": "latent", "prior": "mixture"},
        {"batch_representation": "embedding", "categorical_covariate_keys": "cell_type", "impute": False},
    ],
    ids=["defaults", "zinb", "embedding"],
)
def test_a_model_comes_back_bit_for_bit(small, train_quickly, path, options):
    train_quickly(small, batch_key="batch", **options)
    scvip.write_model(small, path)
    read = scvip.read_model(path)
    assert_same_parts(read.uns["scvi_pyro"], small.uns["scvi_pyro"])
    assert read.shape == (0, small.n_vars)
    assert read.var_names.tolist() == small.var_names.tolist()


def test_a_model_of_some_genes_brings_these(small, train_quickly, path):
    mask = np.arange(small.n_vars) % 2 == 0
    train_quickly(small, mask_var=mask)
    scvip.write_model(small, path)
    assert scvip.read_model(path).var_names.tolist() == small.var_names[mask].tolist()


def test_queries_on_the_file_are_those_on_the_reference(trained_small, small, written):
    scvip.tl.map_query(small, scvip.read_model(written))
    np.testing.assert_array_equal(small.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])
    np.testing.assert_array_equal(small.layers["scvi_pyro_imputed"], trained_small.layers["scvi_pyro_imputed"])


def test_what_was_read_is_written_again_alike(written, tmp_path):
    again = tmp_path / "again.safetensors"
    scvip.write_model(scvip.read_model(written), again)
    assert again.read_bytes() == written.read_bytes()


def test_a_model_keeps_its_name(small, train_quickly, path):
    train_quickly(small, key_added="mine")
    scvip.write_model(small, path, key="mine")
    assert list(scvip.read_model(path).uns) == ["mine"]


def test_a_file_goes_through_h5ad(trained_small, path, tmp_path):
    import anndata as ad

    trained_small.write_h5ad(tmp_path / "a.h5ad")
    scvip.write_model(ad.read_h5ad(tmp_path / "a.h5ad"), path)
    assert scvip.get.model(scvip.read_model(path)).n_latent == 10


def test_a_model_of_a_class_of_ones_own_is_read_for_that_class(small, train_quickly, path):
    train_quickly(small, module=Mine)
    scvip.write_model(small, path)
    assert type(scvip.get.model(scvip.read_model(path), module=Mine)) is Mine


def test_a_model_of_2000_genes_is_below_5_mb(simulated, path):
    import anndata as ad

    wide = ad.concat([simulated] * 20, axis="var", index_unique="-", keys=map(str, range(20)), merge="first")
    scvip.tl.scvi_pyro(wide, batch_key="batch", max_epochs=1, impute=False, progress_bar=False)
    scvip.write_model(wide, path)
    assert wide.n_vars == 2000
    assert path.stat().st_size < 5_000_000


def test_without_codes_nothing_of_single_cells_is_in_the_file(trained_small, path):
    trained_small.obs["secret"] = trained_small.obs_names
    scvip.write_model(trained_small, path)
    content = path.read_bytes()
    assert not [name for name in trained_small.obs_names if name.encode() in content]
    with safe_open(path, "np") as file:
        assert all(trained_small.n_obs not in file.get_slice(name).get_shape() for name in file.keys())  # noqa: SIM118


def test_codes_bring_cells_with_their_batch_and_the_columns_asked_for(trained_small, path):
    trained_small.obs["grade"] = np.arange(trained_small.n_obs) % 5
    trained_small.obs.loc[trained_small.obs_names[3], "cell_type"] = None
    scvip.write_model(trained_small, path, codes=True, obs_keys=["cell_type", "grade"])
    read = scvip.read_model(path)
    np.testing.assert_array_equal(read.obsm["X_scvi_pyro"], trained_small.obsm["X_scvi_pyro"])
    pd.testing.assert_frame_equal(read.obs, trained_small.obs[["batch", "cell_type", "grade"]])
    assert read.X is None
    assert not read.layers


def test_columns_of_cells_need_codes(trained_small, path):
    with pytest.raises(ValueError, match="only written with codes=True"):
        scvip.write_model(trained_small, path, obs_keys="cell_type")


def test_a_column_that_is_not_there_is_refused_with_the_nearest(trained_small, path):
    with pytest.raises(KeyError, match=r"obs_keys has 'celltype'.*Did you mean 'cell_type'"):
        scvip.write_model(trained_small, path, codes=True, obs_keys="celltype")
    assert not path.exists()


def test_codes_that_were_removed_are_refused(trained_small, path):
    del trained_small.obsm["X_scvi_pyro"]
    with pytest.raises(KeyError, match=r"has no 'X_scvi_pyro'.*call tl.latent"):
        scvip.write_model(trained_small, path, codes=True)


def test_an_existing_file_is_not_replaced_unasked(trained_small, path):
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        scvip.write_model(trained_small, path)
    assert path.read_text() == "precious"
    scvip.write_model(trained_small, path, overwrite=True)
    assert scvip.read_model(path).n_vars == trained_small.n_vars


def test_an_interrupted_write_leaves_the_old_file(written, trained_small, monkeypatch):
    before = written.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        scvip.write_model(trained_small, written, overwrite=True)
    assert written.read_bytes() == before
    assert sorted(file.name for file in written.parent.iterdir()) == ["cwd", written.name]


@pytest.mark.parametrize("name", ["model.h5ad", "model", "nowhere/model.safetensors"])
def test_a_wrong_name_is_refused(trained_small, tmp_path, name):
    with pytest.raises(ValueError, match=r"does not end in '\.safetensors'|folder that does not exist"):
        scvip.write_model(trained_small, tmp_path / name)


def test_an_anndata_without_a_model_is_refused(small, path):
    with pytest.raises(KeyError, match="train a model first"):
        scvip.write_model(small, path)


def test_something_that_is_no_anndata_is_refused(path):
    with pytest.raises(TypeError, match="adata is a dict; pass the AnnData"):
        scvip.write_model({}, path)


def test_weights_that_are_not_finite_are_not_written(trained_small, path):
    trained_small.uns["scvi_pyro"]["weights"]["decoder.rate.bias"][0] = np.nan
    with pytest.raises(ValueError, match=r"'model/weights/decoder\.rate\.bias' that are not finite"):
        scvip.write_model(trained_small, path)
    assert not path.exists()


class Explosive:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("dump", [pickle.dumps, None], ids=["pickle", "torch"])
def test_a_pickle_under_that_name_is_refused_unread(path, dump):
    if dump is None:
        torch.save(Explosive(), path)
    else:
        path.write_bytes(dump(Explosive()))
    with pytest.raises(ValueError, match="is no safetensors file"):
        scvip.read_model(path)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 100], ids=["empty", "text", "zeros"])
def test_a_file_of_another_kind_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no safetensors file"):
        scvip.read_model(path)


def test_tensors_of_something_else_are_refused(path):
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="is a safetensors file of something else"):
        scvip.read_model(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(written, share):
    content = written.read_bytes()
    written.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="is damaged: it is incomplete"):
        scvip.read_model(written)


def test_a_newer_format_is_refused_with_who_wrote_it(written):
    rewrite(written, header={"format_version": 2, "packages": {"scanpy-scvipyro": "9.0"}})
    with pytest.raises(ValueError, match=r"has format version 2, written by .*9\.0.*reads up to 1\. Install a newer"):
        scvip.read_model(written)


def test_a_wrong_shape_is_refused_by_name(written):
    rewrite(written, tensors={"model/weights/decoder.rate.bias": np.zeros(7, np.float32)})
    with pytest.raises(ValueError, match=r"weights do not fit its options .*decoder\.rate\.bias"):
        scvip.read_model(written)


def test_a_missing_weight_is_refused(written):
    tensors = load_file(written)
    del tensors["model/weights/decoder.rate.bias"]
    save_file(tensors, written, {"scanpy_scvipyro": json.dumps(header_of(written))})
    with pytest.raises(ValueError, match=r"is damaged.*decoder\.rate\.bias"):
        scvip.read_model(written)


def test_weights_that_are_not_finite_are_refused(written):
    bias = load_file(written)["model/weights/decoder.rate.bias"]
    bias[3] = np.inf
    rewrite(written, tensors={"model/weights/decoder.rate.bias": bias})
    with pytest.raises(ValueError, match=r"'model/weights/decoder\.rate\.bias' that are not finite"):
        scvip.read_model(written)


@pytest.mark.parametrize("header", ["{", "[]", "{}", '{"format_version": 1}', '{"format_version": "one"}'])
def test_a_header_that_cannot_be_read_is_refused(written, header):
    save_file(load_file(written), written, {"scanpy_scvipyro": header})
    with pytest.raises(ValueError, match="is damaged: its header cannot be read"):
        scvip.read_model(written)


@pytest.mark.parametrize("model", [[], {}, {"genes": []}, 17, {"weights": {"tensor": "model/weights"}}])
def test_an_incomplete_model_is_refused(written, model):
    rewrite(written, header={"model": model})
    with pytest.raises(ValueError, match=r"is damaged: (its header cannot be read|the model has no)"):
        scvip.read_model(written)


def test_cells_that_do_not_fit_their_codes_are_refused(trained_small, path):
    scvip.write_model(trained_small, path, codes=True)
    rewrite(path, tensors={"cells/codes": np.zeros((3, 10), np.float32)})
    with pytest.raises(ValueError, match="is damaged: codes and columns of its cells do not fit"):
        scvip.read_model(path)


def test_a_file_that_is_not_there_is_refused(path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        scvip.read_model(path)


def test_the_header_says_what_the_file_is(written):
    header = header_of(written)
    assert header["description"].startswith(
        "SCVI of scanpy_scvipyro: 40 genes, 3 batches, 10 latent dimensions. Read it with"
    )
    assert header["packages"]["scanpy-scvipyro"] == scvip.__version__


def test_what_is_no_path_is_refused(trained_small):
    with pytest.raises(TypeError, match=r"path=3 is no path; pass a string or a pathlib\.Path"):
        scvip.write_model(trained_small, 3)
    with pytest.raises(TypeError, match=r"path=None is no path"):
        scvip.read_model(None)
