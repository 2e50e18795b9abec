"""Small real data, simulated data with known truth, and trained models that tests get as copies."""

import functools
import io
import os
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pytest
import scanpy as sc
import torch
from anndata.tests.helpers import assert_equal
from scipy import sparse

import scanpy_scvipyro as scvip
from scanpy_scvipyro.model import Cells


def pytest_runtest_setup():
    # Sums depend on the number of threads, which numba changes behind torch's back when UMAP first runs.
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Every test runs in an empty directory: what it writes there it wrote unasked."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


@pytest.fixture
def data_directory(monkeypatch):
    """The real data that are too large for the repository, found by ``datasets`` too."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("SCVIPYRO_DATA", beside))
    if not path.is_dir():
        pytest.skip(f"needs real data: set SCVIPYRO_DATA to their directory, or put them into {beside}")
    monkeypatch.setenv("SCVIPYRO_DATA", str(path))
    return path


@pytest.fixture(scope="session")
def _mixtures():
    return scvip.datasets.cell_mixtures()


@pytest.fixture
def mixtures(_mixtures):
    """Real counts of 1345 cells of three cell lines and 701 genes, from three protocols."""
    return _mixtures.copy()


@pytest.fixture(scope="session")
def _small(_mixtures):
    cells = np.sort(np.random.default_rng(0).permutation(_mixtures.n_obs)[:90])
    genes = np.sort(np.argsort(np.asarray(_mixtures.X.sum(axis=0)).ravel())[-40:])
    return _mixtures[cells, genes].copy()


@pytest.fixture
def small(_small):
    """Real counts of 90 cells from all three protocols, and the 40 genes with most counts."""
    return _small.copy()


@pytest.fixture(scope="session")
def train_quickly():
    """``tl.scvi_pyro`` on a small network for two epochs, for what does not depend on the fit being good."""
    return functools.partial(scvip.tl.scvi_pyro, max_epochs=2, n_hidden=8, progress_bar=False)


@pytest.fixture(scope="session")
def _trained(_mixtures):
    return scvip.tl.scvi_pyro(_mixtures, batch_key="batch", progress_bar=False, copy=True)


@pytest.fixture
def trained(_trained):
    """The cell mixtures with results of the defaults."""
    return _trained.copy()


@pytest.fixture(scope="session")
def _trained_small(_small, train_quickly):
    return train_quickly(_small, batch_key="batch", copy=True)


@pytest.fixture
def trained_small(_trained_small):
    """The small data with results of a quick training: a model that works, whose fit is not good."""
    return _trained_small.copy()


@pytest.fixture
def adata():
    """Three cells of three genes, for checks of what users pass."""
    counts = np.array([[0, 2, 1], [3, 0, 0], [1, 1, 4]], dtype=np.float32)
    obs = pd.DataFrame({"sample": ["a", "b", "a"], "age": [1.5, 2.0, 3.0]}, index=["c0", "c1", "c2"])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["g0", "g1", "g2"]))


@pytest.fixture(scope="session")
def _simulated():
    rng = np.random.default_rng(0)
    n_cells, n_genes = 600, 100
    group, batch = rng.integers(3, size=n_cells), rng.integers(2, size=n_cells)
    log_rate = rng.normal(0, 1, n_genes) + rng.normal(0, 0.8, (3, n_genes))[group]
    log_rate += rng.normal(0, 0.5, (2, n_genes))[batch]
    rate = np.exp(log_rate)
    mean = rate / rate.sum(axis=1, keepdims=True) * rng.lognormal(np.log(500), 0.4, (n_cells, 1))
    counts = rng.negative_binomial(2.0, 2.0 / (2.0 + mean)).astype(np.float32)
    obs = pd.DataFrame({"group": group.astype(str), "batch": batch.astype(str)}, dtype="category")
    obs.index = [f"cell{i}" for i in range(n_cells)]
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=var, layers={"mean": mean})


@pytest.fixture
def simulated(_simulated):
    """Negative binomial counts of three groups of cells in two batches; their true means in a layer."""
    return _simulated.copy()


@pytest.fixture
def warned():
    """Return the warnings that were written to Scanpy's log since the last call, one per line."""
    settings, log = sc.settings, io.StringIO()
    before, settings.logfile, settings.verbosity = (settings.logfile, settings.verbosity), log, "warning"

    def lines():
        written = log.getvalue().splitlines()
        log.seek(0)
        log.truncate()
        return written

    yield lines
    settings.logfile, settings.verbosity = before


@pytest.fixture
def no_windows():
    """Figures are drawn in memory, and closed."""
    backend = plt.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture
def unchanged():
    """Assert that an AnnData equals an earlier copy, in every part and value."""
    return functools.partial(assert_equal, exact=True)


class ByHand:
    """What a trained model says of all cells at once, from dense counts and its Pyro program alone."""

    def __init__(self, adata, key="scvi_pyro"):
        stored = adata.uns[key]
        self.model = scvip.get.model(adata, key=key)
        counts = torch.tensor(adata[:, stored["genes"].astype(str)].X.toarray())
        names = stored["categories"]["batch"].astype(str).tolist()
        codes = torch.tensor([names.index(name) for name in adata.obs["batch"]])
        nothing = torch.zeros(len(codes), 0)
        self.cells = Cells(counts, counts.sum(dim=1, keepdim=True), codes, 0 * codes, nothing.long(), nothing)

    def posterior(self, site="z"):
        """Distribution of a latent variable of all cells."""
        return pyro.poutine.trace(self.model.guide).get_trace(self.cells).nodes[site]["fn"]

    def in_batch(self, batch):
        """Return the cells, as if they were all in the batch of this code; in their own with None."""
        return self.cells if batch is None else self.cells._replace(batch=torch.full_like(self.cells.batch, batch))

    @torch.no_grad()
    def frequencies(self, z, batch=None):
        """Return the frequencies of the genes in each cell, as a float64 array."""
        return self.model.decode(z, self.in_batch(batch))[0].double().exp().numpy()


@pytest.fixture
def by_hand():
    """Compute what a trained model says, independently of the functions that ask it: ``by_hand(adata)``."""
    with torch.random.fork_rng():
        yield ByHand
