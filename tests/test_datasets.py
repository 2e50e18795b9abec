"""The real data that come with the package, and those that are found or downloaded."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import anndata as ad
import numpy as np
import pytest

import scanpy_scvipyro as scvip


def test_cell_mixtures_are_raw_counts_with_known_cell_lines(mixtures):
    assert mixtures.shape == (1345, 701)
    assert (mixtures.X.data >= 1).all()
    assert (mixtures.X.data == np.rint(mixtures.X.data)).all()
    assert mixtures.obs["batch"].value_counts().to_dict() == {"10x_3cl": 895, "celseq2_3cl": 240, "dropseq_3cl": 210}
    assert set(mixtures.obs["cell_type"]) == {"H1975", "H2228", "HCC827"}
    assert mixtures.obs_names.is_unique
    assert mixtures.var_names.is_unique


def test_cell_mixtures_are_those_of_the_source(mixtures, data_directory, unchanged):
    unchanged(mixtures, ad.read_h5ad(data_directory / "sc_mixology_3protocols_small.h5ad"))


def test_each_call_gives_data_of_its_own():
    first = scvip.datasets.cell_mixtures()
    first.X.data[:] = 0
    assert scvip.datasets.cell_mixtures().X.data.min() == 1


@pytest.fixture
def nothing_downloaded(tmp_path, monkeypatch):
    """A machine without the large files; returns the cache."""
    monkeypatch.delenv("SCVIPYRO_DATA", raising=False)
    monkeypatch.delenv("SCVIPYRO_DATA_URL", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return tmp_path / "caches" / "scanpy_scvipyro"


@pytest.fixture
def mirror(data_directory):
    """Address of a local web server with the large files."""
    handler = functools.partial(SilentHandler, directory=data_directory)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("name", "shape", "labels"),
    [
        ("sc_mixology_5plates", (992, 11533), ["batch", "protocol", "cell_type"]),
        ("pbmc_10x_4chemistries", (5521, 10887), ["batch", "cell_type", "cell_type_fine", "cell_type_published"]),
        ("pbmc_facs_zheng", (3874, 14107), ["batch", "cell_type", "subpop", "split"]),
        ("neurons_10x_10k", (9920, 613), ["batch"]),
    ],
)
def test_large_data_are_raw_counts_with_the_described_columns(data_directory, name, shape, labels):
    adata = getattr(scvip.datasets, name)()
    assert adata.shape == shape
    assert list(adata.obs) == labels
    assert (adata.X.data >= 1).all()
    assert (adata.X.data == np.rint(adata.X.data)).all()


def test_data_are_downloaded_once(data_directory, mirror, nothing_downloaded, monkeypatch, unchanged):
    monkeypatch.setenv("SCVIPYRO_DATA_URL", f"{mirror}/")
    first = scvip.datasets.neurons_10x_10k()
    unchanged(first, ad.read_h5ad(data_directory / "neurons_10x_10k_1000genes.h5ad"))
    monkeypatch.setenv("SCVIPYRO_DATA_URL", "http://127.0.0.1:1")  # where nothing answers
    unchanged(scvip.datasets.neurons_10x_10k(), first)


def test_data_come_from_a_folder_by_its_address(data_directory, nothing_downloaded, tmp_path, monkeypatch):
    folder = tmp_path / "a folder"
    folder.mkdir()
    shutil.copy(data_directory / "neurons_10x_10k_1000genes.h5ad", folder)
    monkeypatch.setenv("SCVIPYRO_DATA_URL", folder.as_uri())
    assert scvip.datasets.neurons_10x_10k().n_obs == 9920
    assert (nothing_downloaded / "neurons_10x_10k_1000genes.h5ad").is_file()


def test_missing_data_are_refused_with_the_places_that_were_searched(nothing_downloaded, tmp_path, monkeypatch):
    monkeypatch.setenv("SCVIPYRO_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pbmc_facs_zheng.h5ad was not found") as error:
        scvip.datasets.pbmc_facs_zheng()
    for part in (f"SCVIPYRO_DATA ({tmp_path})", str(nothing_downloaded), "set SCVIPYRO_DATA_URL"):
        assert part in str(error.value)


def test_a_wrong_file_in_the_folder_is_refused(nothing_downloaded, tmp_path, monkeypatch):
    (tmp_path / "pbmc_facs_zheng.h5ad").write_bytes(b"half a file")
    monkeypatch.setenv("SCVIPYRO_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"pbmc_facs_zheng.h5ad is not the file that this version knows: its SHA256"):
        scvip.datasets.pbmc_facs_zheng()


def test_a_wrong_download_is_refused_and_not_kept(nothing_downloaded, tmp_path, monkeypatch):
    (tmp_path / "pbmc_facs_zheng.h5ad").write_bytes(b"half a file")
    monkeypatch.setenv("SCVIPYRO_DATA_URL", tmp_path.as_uri())
    with pytest.raises(ValueError, match=r"could not be downloaded from file:.*SHA256 hash.*Set SCVIPYRO_DATA_URL"):
        scvip.datasets.pbmc_facs_zheng()
    assert not list(nothing_downloaded.iterdir())


@pytest.mark.parametrize("url", ["file:///nowhere", "http://127.0.0.1:1"])
def test_an_address_that_does_not_answer_is_named(nothing_downloaded, monkeypatch, url):
    monkeypatch.setenv("SCVIPYRO_DATA_URL", url)
    with pytest.raises(OSError, match=rf"could not be downloaded from {url}/pbmc_facs_zheng.h5ad: .*Set SCVIPYRO"):
        scvip.datasets.pbmc_facs_zheng()


def test_an_unknown_kind_of_address_is_refused(nothing_downloaded, monkeypatch):
    monkeypatch.setenv("SCVIPYRO_DATA_URL", "/a/folder")
    with pytest.raises(ValueError, match=r"could not be downloaded from /a/folder/pbmc_facs_zheng.h5ad: .*protocol"):
        scvip.datasets.pbmc_facs_zheng()


class TestDonors:
    def test_they_are_as_many_as_asked_for_and_the_same_each_time(self):
        adata = scvip.datasets.donors(n_donors=(2, 3), n_cells=50)
        conditions = adata.obs.groupby("donor", observed=True)["condition"].first()
        assert conditions.tolist() == ["control"] * 2 + ["case"] * 3
        again = scvip.datasets.donors(n_donors=(2, 3), n_cells=50)
        assert (adata.X != again.X).nnz == 0
        assert (adata.varm["log2_fold_change"] == 0).all(axis=None)

    def test_changes_are_those_of_the_counts(self):
        adata = scvip.datasets.donors(n_cells=2000, n_changed=20)
        true = adata.varm["log2_fold_change"]["H1975"]
        cells = adata[adata.obs["cell_type"] == "H1975"]
        shares = [
            np.ravel(part.X.sum(axis=0)) / part.X.sum()
            for part in (cells[cells.obs["condition"] == name] for name in ("control", "case"))
        ]
        changed = (true != 0).to_numpy()
        found = np.log2(shares[1][changed] / shares[0][changed])
        assert np.corrcoef(found, true[changed])[0, 1] > 0.95

    def test_an_enriched_line_is_more_frequent_in_cases(self):
        adata = scvip.datasets.donors(n_cells=1000, enriched={"HCC827": 3})
        share = (adata.obs["cell_type"] == "HCC827").groupby(adata.obs["condition"], observed=True).mean()
        assert share["control"] == pytest.approx(0.11, abs=0.04)
        assert share["case"] == pytest.approx(0.28, abs=0.06)

    def test_an_unknown_line_is_refused(self):
        with pytest.raises(ValueError, match=r"enriched has 'A549', which is no cell line; there is: H1975"):
            scvip.datasets.donors(enriched={"A549": 2})
