"""``pl.integration``: UMAPs before and after, with scores in the titles."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

import scanpy_scvipyro as scvip

pytestmark = pytest.mark.usefixtures("no_windows")


def legend(ax):
    box = ax.get_legend()
    colors = [mpl.colors.to_hex(handle.get_facecolor()[0]) for handle in box.legend_handles]
    return dict(zip([text.get_text() for text in box.get_texts()], colors, strict=True))


def numbers(ax):
    return [float(number) for number in re.findall(r"-?\d+\.\d+", ax.get_title().split("\n")[1])]


def same_batch(embedding, batch):
    neighbors = NearestNeighbors(n_neighbors=20).fit(embedding).kneighbors(return_distance=False)
    return (batch.to_numpy()[neighbors] == batch.to_numpy()[:, None]).mean()


def test_panels_are_before_and_after_by_batch_and_by_label(trained_small):
    axes = scvip.pl.integration(trained_small, labels_key="cell_type", show=False)
    assert [ax.get_title().split("\n")[0] for ax in axes] == [
        "PCA of log counts: batch",
        "PCA of log counts: cell_type",
        "scvi_pyro: batch",
        "scvi_pyro: cell_type",
    ]
    assert all(len(ax.collections[0].get_offsets()) == trained_small.n_obs for ax in axes)


def test_both_colourings_show_the_same_umap(trained_small):
    axes = scvip.pl.integration(trained_small, labels_key="cell_type", show=False)
    places = [np.asarray(ax.collections[0].get_offsets()) for ax in axes]
    np.testing.assert_array_equal(places[0], places[1])
    np.testing.assert_array_equal(places[2], places[3])
    assert (places[0] != places[2]).any()


def test_titles_are_the_scores_of_the_embeddings(trained_small):
    before, _, by_batch, by_label = scvip.pl.integration(trained_small, labels_key="cell_type", show=False)
    latent, obs = trained_small.obsm["X_scvi_pyro"], trained_small.obs
    assert numbers(by_batch)[0] == pytest.approx(same_batch(latent, obs["batch"]), abs=0.006)
    assert numbers(by_label)[1] == pytest.approx(silhouette_score(latent, obs["cell_type"]), abs=0.006)
    assert numbers(before)[1] == numbers(by_batch)[1]


def test_an_embedding_by_name_takes_the_place_of_the_principal_components(trained_small):
    trained_small.obsm["X_other"] = trained_small.obsm["X_scvi_pyro"] ** 3
    before, _ = scvip.pl.integration(trained_small, before="X_other", show=False)
    assert before.get_title().startswith("X_other: batch")
    assert numbers(before)[0] == pytest.approx(
        same_batch(trained_small.obsm["X_other"], trained_small.obs["batch"]), abs=0.006
    )


def test_colours_are_those_of_the_data(trained_small):
    chosen = ["#112233", "#445566", "#778899"]
    trained_small.uns["batch_colors"] = chosen
    axes = scvip.pl.integration(trained_small, show=False)
    assert (
        legend(axes[0]) == legend(axes[1]) == dict(zip(trained_small.obs["batch"].cat.categories, chosen, strict=True))
    )


def test_points_of_a_batch_have_its_colour(trained_small):
    trained_small.uns["batch_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    _, after = scvip.pl.integration(trained_small, show=False)
    colors = [mpl.colors.to_hex(color) for color in after.collections[0].get_facecolors()]
    found = {color: colors.count(color) for color in trained_small.uns["batch_colors"]}
    assert list(found.values()) == trained_small.obs["batch"].value_counts(sort=False).tolist()


def test_batches_by_number_are_categories(small, train_quickly):
    small.obs["donor"] = np.arange(small.n_obs) % 3
    train_quickly(small, batch_key="donor")
    axes = scvip.pl.integration(small, show=False)
    assert list(legend(axes[0])) == ["0", "1", "2"]


def test_a_model_without_batches_is_judged_by_the_named_ones(small, train_quickly):
    train_quickly(small)
    with pytest.raises(ValueError, match=r"neither batch nor label.*pass batch_key= or labels_key="):
        scvip.pl.integration(small, show=False)
    axes = scvip.pl.integration(small, batch_key="batch", show=False)
    assert len(axes) == 2
    assert numbers(axes[1])[0] > 0


def test_cells_without_a_label_are_drawn_and_not_scored(trained_small):
    labels = trained_small.obs["cell_type"].copy()
    labels.iloc[:30] = np.nan
    trained_small.obs["cell_type"] = labels
    axes = scvip.pl.integration(trained_small, labels_key="cell_type", show=False)
    assert len(axes[3].collections[0].get_offsets()) == trained_small.n_obs
    is_known = labels.notna().to_numpy()
    expected = silhouette_score(trained_small.obsm["X_scvi_pyro"][is_known], labels[is_known])
    assert numbers(axes[3])[1] == pytest.approx(expected, abs=0.006)


def test_labels_of_one_kind_have_no_scores(trained_small):
    trained_small.obs["same"] = "all"
    axes = scvip.pl.integration(trained_small, labels_key="same", show=False)
    assert axes[3].get_title() == "scvi_pyro: same\n"


def test_at_most_max_cells_are_embedded(trained_small):
    axes = scvip.pl.integration(trained_small, max_cells=40, show=False)
    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [40, 40]


@pytest.mark.parametrize("n_genes", [1, 2, 40])
def test_four_cells_are_drawn_and_fewer_are_refused(small, train_quickly, n_genes):
    small = small[small.X[:, -1].toarray().ravel() > 0, -n_genes:].copy()
    train_quickly(small, batch_key="batch")
    assert len(scvip.pl.integration(small[:4].copy(), show=False)) == 2
    with pytest.raises(ValueError, match="adata has 3 cells; at least 4 are needed"):
        scvip.pl.integration(small[:3].copy(), show=False)


def test_very_many_batches_have_no_legend(small, train_quickly):
    small.obs["donor"] = np.arange(small.n_obs) // 2
    train_quickly(small, batch_key="donor")
    assert scvip.pl.integration(small, show=False)[0].get_legend() is None


def test_legends_stay_inside_the_figure(trained_small):
    trained_small.obs["cell_type"] = trained_small.obs["cell_type"].cat.rename_categories(lambda name: name * 5)
    figure = scvip.pl.integration(trained_small, labels_key="cell_type", show=False, return_fig=True)
    figure.canvas.draw()
    assert all(ax.get_legend().get_window_extent().x1 <= figure.bbox.x1 for ax in figure.axes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_key": "bach"}, "batch_key='bach' is not in adata.obs. Did you mean 'batch'?"),
        ({"labels_key": "cell_tipe"}, "labels_key='cell_tipe' is not in adata.obs. Did you mean 'cell_type'?"),
        ({"before": "X_pc"}, "before='X_pc' is not in adata.obsm. There is: 'X_scvi_pyro'."),
    ],
)
def test_missing_columns_and_embeddings_are_named(trained_small, arguments, message):
    with pytest.raises(KeyError, match=re.escape(message)):
        scvip.pl.integration(trained_small, **arguments, show=False)
