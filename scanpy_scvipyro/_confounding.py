"""Columns whose effects a model cannot tell apart, and what that means for its results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData, DataSpec

    Codes = NDArray[np.integer]


def warning(data: CellData, spec: DataSpec, labels: Codes | None) -> str | None:
    """Say in one line which columns go together, if any do; of the labels, -1 is none."""
    covariates = dict(zip(spec.categorical_covariate_keys, data.categorical.T.numpy(), strict=True))
    batches = {} if spec.batch_key is None else {spec.batch_key: data.batch.numpy()}
    parts = []
    like_batches = [key for key in covariates for codes in batches.values() if _nested(covariates[key], codes)]
    if like_batches:
        parts.append(
            f"batch_key={spec.batch_key!r} and {_listed(like_batches)} group the cells alike, so that their effects "
            "cannot be told apart: transform_batch= takes out a part of them only. Leave one out."
        )
    corrected = batches | covariates
    like_labels = [key for key in corrected if labels is not None and _without_common_label(corrected[key], labels)]
    if like_labels:
        parts.append(
            f"no label is in two categories of {_listed(like_labels)}, so that differences between labels are taken "
            "for effects to remove: codes mix the labels. Leave it out, or add cells."
        )
    return " ".join(parts) or None


def _nested(one: Codes, other: Codes) -> bool:
    """Whether one of two groupings is a finer one of the other, or the same; a single group is none."""
    pairs = pd.DataFrame({"one": one, "other": other}).drop_duplicates()
    n_one, n_other = pairs.nunique()
    return bool(min(n_one, n_other) > 1 and len(pairs) == max(n_one, n_other))


def _without_common_label(groups: Codes, labels: Codes) -> bool:
    """Whether each label is in one of several groups only."""
    pairs = pd.DataFrame({"group": groups, "label": labels})[labels >= 0].drop_duplicates()
    n_groups, n_labels = pairs.nunique()
    return bool(n_groups > 1 and len(pairs) == n_labels)


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(map(repr, keys))
