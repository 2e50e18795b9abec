"""The real data that come with the package."""

import anndata as ad
import numpy as np

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
