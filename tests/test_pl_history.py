"""``pl.history``: the recorded numbers, epoch by epoch."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import scanpy_scvipyro as scvip

pytestmark = pytest.mark.usefixtures("no_windows")


@pytest.mark.parametrize("metric", ["elbo", "reconstruction", "kl"])
def test_lines_are_the_recorded_values_of_training_and_validation_cells(trained_small, metric):
    history = trained_small.uns["scvi_pyro"]["history"]
    ax = scvip.pl.history(trained_small, metrics=metric, show=False)
    lines = {line.get_label(): line for line in ax.lines}
    for label, part in (("training", "train"), ("validation", "validation")):
        np.testing.assert_array_equal(lines[label].get_xdata(), history.index)
        np.testing.assert_array_equal(lines[label].get_ydata(), history[f"{part}_{metric}"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["training", "validation"]


@pytest.mark.parametrize("metric", ["learning_rate", "kl_weight"])
def test_settings_are_single_lines(trained_small, metric):
    ax = scvip.pl.history(trained_small, metrics=metric, show=False)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_ydata(), trained_small.uns["scvi_pyro"]["history"][metric])


def test_elbo_kl_and_learning_rate_are_shown_by_default(trained_small):
    titles = [ax.get_title() for ax in scvip.pl.history(trained_small, show=False)]
    assert titles == ["ELBO (nats per cell)", "KL divergence (nats per cell)", "learning rate"]


def test_first_epochs_do_not_flatten_the_curve(trained_small):
    elbo = np.concatenate([[-1e6, -1e5], np.linspace(-600, -500, 38)])
    trained_small.uns["scvi_pyro"]["history"] = pd.DataFrame({"train_elbo": elbo}, index=range(1, 41))
    low, high = scvip.pl.history(trained_small, show=False).get_ylim()
    assert -610 < low < -585
    assert -500 < high < -490


def test_epochs_without_validation_leave_no_gaps(trained_small):
    frame = pd.DataFrame({"train_elbo": [-9.0, -8, -7, -6], "validation_elbo": [np.nan, -8.5, np.nan, -6.5]})
    frame.index += 1
    trained_small.uns["scvi_pyro"]["history"] = frame
    line = scvip.pl.history(trained_small, show=False).lines[1]
    assert line.get_xydata().tolist() == [[2, -8.5], [4, -6.5]]


def test_what_is_no_axes_is_refused(trained_small):
    with pytest.raises(TypeError, match=r"ax is a tuple; pass one matplotlib axes: figure, ax = plt\.subplots\(\)"):
        scvip.pl.history(trained_small, metrics="elbo", ax=plt.subplots())
