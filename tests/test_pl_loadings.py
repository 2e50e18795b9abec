"""``pl.loadings``: the genes of linear decoders."""

import numpy as np
import pytest

import scanpy_scvipyro as scvip

pytestmark = pytest.mark.usefixtures("no_windows")


@pytest.fixture
def linear(small, train_quickly):
    train_quickly(small, batch_key="batch", decoder="linear", n_latent=3, mask_var=np.arange(small.n_vars) != 5)
    return small


def bars(ax):
    names = [label.get_text() for label in ax.get_yticklabels()]
    return dict(zip(names, [bar.get_width() for bar in ax.patches], strict=True))


def test_bars_are_the_highest_and_lowest_loadings(linear):
    column = linear.varm["scvi_pyro_loadings"]["Z_1"].dropna().sort_values(ascending=False)
    shown = bars(scvip.pl.loadings(linear, dimensions="Z_1", n_genes=6, show=False))
    expected = {**column.iloc[:3], **column.iloc[-3:]}
    assert list(shown) == list(expected)
    np.testing.assert_allclose(list(shown.values()), list(expected.values()))


def test_all_genes_are_shown_once_where_there_are_few(linear):
    shown = bars(scvip.pl.loadings(linear, dimensions=["Z_0"], n_genes=100, show=False))
    assert len(shown) == linear.n_vars - 1


def test_every_dimension_has_a_panel(linear):
    assert [ax.get_title() for ax in scvip.pl.loadings(linear, show=False)] == ["Z_0", "Z_1", "Z_2"]


def test_other_decoders_are_refused(trained_small):
    with pytest.raises(ValueError, match=r"decoder='nonlinear', which has no loadings.*decoder='linear'"):
        scvip.pl.loadings(trained_small, show=False)


def test_all_that_hold_the_model_show_its_loadings(linear, tmp_path):
    expected = bars(scvip.pl.loadings(linear, dimensions="Z_1", show=False))
    some = linear[:, :3].copy()
    del some.varm["scvi_pyro_loadings"]
    scvip.write_model(linear, tmp_path / "model.safetensors")
    for adata in (some, scvip.read_model(tmp_path / "model.safetensors")):
        assert bars(scvip.pl.loadings(adata, dimensions="Z_1", show=False)) == expected
