"""Conditions and samples in an AnnData, and how abundant cells are in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scanpy_scvipyro import _lazy, _names, _select, _validate, abundance

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro._names import Name

MAX_NEIGHBOURHOODS = 20_000
"""Other cells get the result of the nearest of these."""


class Samples(NamedTuple):
    """The parts of samples that are compared: of a sample, its cells in one condition."""

    group: str
    reference: str
    cells: NDArray[np.intp]
    """Those in either condition, (n_cells,)."""
    row: NDArray[np.intp]
    """Which row of the regression each cell is in, -1 for none, (n_cells,)."""
    design: NDArray[np.float64]
    """(n_rows, n_coefficients)."""

    @property
    def n_cells(self) -> NDArray[np.float64]:
        """Cells of each row."""
        return np.bincount(self.row[self.row >= 0], minlength=len(self.design)).astype(float)


def samples_of(
    adata: AnnData, condition_key: str, sample_key: str, reference: Name | None, group: Name | None
) -> Samples:
    """Check the columns, and plan how their samples are compared; the reference is by default the first category."""
    from scanpy_scvipyro import replicates

    _validate.check_obs_key(adata, condition_key, "condition_key")
    conditions = _names.categories(_lazy.column(adata.obs, condition_key), f"condition_key={condition_key!r}")
    known = conditions.categories.tolist()
    reference = known[0] if reference is None and known else reference
    chosen: dict[str, Any] = {"reference": reference} if group is None else {"reference": reference, "group": group}
    names = [known[_select.value_code(argument, name, known, condition_key)] for argument, name in chosen.items()]
    if group is None:
        others = [name for name in known if name != names[0]]
        if len(others) != 1:
            msg = (
                f"condition_key={condition_key!r} has {known}, of which {len(others)} could be compared with "
                f"{names[0]!r}; name one: group={(others or ['case'])[0]!r}."
            )
            raise ValueError(msg)
        names += others
    if names[0] == names[1]:
        raise ValueError(f"group={names[1]!r} is the reference, too; name two conditions of {known}.")
    column = _names.categories(_validate.obs_column(adata, sample_key, "sample_key"), f"sample_key={sample_key!r}")
    condition = np.array([*(names.index(name) if name in names else -1 for name in known), -1])[conditions.codes]
    cells = np.flatnonzero(condition >= 0)
    of_part, part = np.unique(np.stack([condition, column.codes])[:, cells], axis=1, return_inverse=True)
    try:
        plan = replicates.plan(np.flatnonzero(of_part[0] == 1), np.flatnonzero(of_part[0] == 0), of_part[1], None)
    except replicates.Unanswerable as error:
        raise ValueError(f"sample_key={sample_key!r}: {error}.") from None
    row = np.where(plan.pool.any(axis=0), plan.pool.argmax(axis=0), -1)
    return Samples(names[1], names[0], cells, row[part], plan.design)


def default_neighbors(samples: Samples) -> int:
    """Ten cells for each sample, at least 30, as far as there are."""
    return min(max(30, 10 * len(samples.design)), int((samples.row >= 0).sum()))


def by_neighbourhood(
    codes: NDArray[np.float32], samples: Samples, n_neighbors: int, random_state: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log2 ratio and false discovery rate of the neighbourhood of each cell in either condition."""
    is_used = samples.row >= 0
    row, places = samples.row[is_used], np.asarray(codes, dtype=np.float64)[samples.cells]
    centres = np.arange(len(row))
    if len(row) > MAX_NEIGHBOURHOODS:
        centres = np.sort(np.random.default_rng(random_state).choice(len(row), MAX_NEIGHBOURHOODS, replace=False))
    found = abundance.neighbourhoods(places[is_used], n_neighbors, centres, places)
    counts = abundance.cells_of_samples(found.members, row, len(samples.design))
    result = abundance.differences(counts, samples.n_cells, samples.design)
    rate = abundance.spatial_false_discovery_rate(result.p_value, found.radius)
    return result.log_fold_change[found.nearest], rate[found.nearest]


def by_label(column: pd.Series, what: str, samples: Samples) -> pd.DataFrame:
    """Compare how many cells of each label the samples have: one row per label."""
    import pandas as pd

    from scanpy_scvipyro import quasi_likelihood

    labels = _names.categories(column, what)
    is_used = samples.row >= 0
    row, label = samples.row[is_used], labels.codes[samples.cells][is_used]
    counts = np.zeros((len(samples.design), len(labels.categories)))
    np.add.at(counts, (row[label >= 0], label[label >= 0]), 1)
    result = abundance.differences(counts, samples.n_cells, samples.design)
    share, is_group = counts / samples.n_cells[:, None], samples.design[:, -1] > 0
    return pd.DataFrame(
        {
            "n_cells": counts.sum(axis=0).astype(int),
            "share": share[is_group].mean(axis=0),
            "share_reference": share[~is_group].mean(axis=0),
            "scores": result.t,
            "logfoldchanges": result.log_fold_change,
            "pvals": result.p_value,
            "pvals_adj": quasi_likelihood.false_discovery_rate(result.p_value),
        },
        index=pd.Index(labels.categories.astype(str), name=column.name),
    )
