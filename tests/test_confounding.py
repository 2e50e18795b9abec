"""One warning of columns whose effects cannot be told apart."""

import io

import numpy as np
import pytest
import scanpy as sc

import scanpy_scvipyro as scvip


@pytest.fixture
def warnings_of(train_quickly):
    """What training warns of before it starts: two epochs are too few, of which it warns at its end."""

    def call(adata, train=train_quickly, **arguments):
        verbosity, logfile = sc.settings.verbosity, sc.settings.logfile
        sc.settings.verbosity, sc.settings.logfile = "warning", (log := io.StringIO())
        try:
            train(adata, **{"batch_key": "batch", "progress_bar": False, "max_epochs": 2} | arguments)
        finally:
            sc.settings.verbosity, sc.settings.logfile = verbosity, logfile
        return "".join(line for line in log.getvalue().splitlines(keepends=True) if "pl.report" not in line)

    return call


GROUPINGS = {
    "the same": lambda batch: batch,
    "the same, renamed": lambda batch: batch.cat.rename_categories(["x", "y", "z"]),
    "coarser": lambda batch: batch == "10x_3cl",
    "finer": lambda batch: batch.astype(str) + np.resize(["a", "b"], len(batch)),
}


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_covariate_that_groups_cells_as_batches_do_is_named(small, warnings_of, grouping):
    small.obs["other"] = GROUPINGS[grouping](small.obs["batch"])
    text = warnings_of(small, categorical_covariate_keys="other")
    assert text.count("\n") == 1
    assert text.startswith("WARNING: batch_key='batch' and 'other' group the cells alike")


@pytest.mark.parametrize("labels", ["the same, renamed", "finer"])
def test_batches_without_a_common_label_are_named(small, warnings_of, labels):
    small.obs["type"] = GROUPINGS[labels](small.obs["batch"])
    small.obs.loc[small.obs_names[::7], "type"] = None
    assert "no label is in two categories of 'batch'" in warnings_of(small, labels_key="type")


def test_both_are_told_in_one_warning(small, warnings_of):
    small.obs["other"] = small.obs["batch"]
    text = warnings_of(small, categorical_covariate_keys=["other"], labels_key="other")
    assert text.count("WARNING") == 1
    assert "group the cells alike" in text
    assert "no label is in two categories of 'batch', 'other'" in text


def test_crossed_columns_are_not(small, warnings_of):
    small.obs["donor"] = np.resize(["a", "b", "c"], small.n_obs)
    small.obs["constant"] = "same"
    arguments = {"categorical_covariate_keys": ["donor", "constant"], "labels_key": "cell_type"}
    assert warnings_of(small, **arguments) == ""


def test_labels_of_one_batch_only_are_not(small, warnings_of):
    small.obs["type"] = small.obs["cell_type"].astype(str).where(small.obs["batch"] == "10x_3cl", "Unknown")
    options = {"train": scvip.tl.scanvi_pyro, "labels_key": "type", "unlabeled_category": "Unknown"}
    assert "no label is in two" not in warnings_of(small, **options)
