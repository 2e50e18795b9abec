"""Names as users hold them: of categories, which may be numbers, and lists of them in any form."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Name: TypeAlias = str | int | float
"""A category as its column holds it."""
Names: TypeAlias = Iterable[Name] | Name
"""One name, or several: a list, tuple, set, array, Series, Index or Categorical."""


def listed(names: object) -> list[Any]:
    """One name or several, as a list."""
    return list(names) if pd.api.types.is_list_like(names) else [names]  # type: ignore[call-overload]


def mask(selection: object) -> NDArray[np.bool_] | None:
    """Booleans of any form as an array; None for what holds no booleans."""
    values: Any = selection if hasattr(selection, "dtype") else np.asarray(selection)
    return np.asarray(values, dtype=bool) if pd.api.types.is_bool_dtype(values.dtype) else None


def text(name: object) -> str:
    """Name of a category as the model stores it. Numbers that are equal have one, of whatever type they are."""
    if not isinstance(name, int | float | np.integer | np.floating) or isinstance(name, bool):
        return str(name)
    if float(name).is_integer():
        return str(int(name))
    return str(np.float32(name))  # 0.1 in float32 is 0.10000000149 in float64


def positions(names: Iterable[object], known: Sequence[str]) -> list[int]:
    """Where names stand among those that are known, -1 where they do not.

    Tables read from files hold whole numbers as floats, or as text of floats: "1.0" is found as "1", and the other way
    round, unless it stands for itself.
    """
    exact = {name: i for i, name in enumerate(known)}
    texts = [text(name) for name in names]
    asked = set(texts)
    loose = {_whole(name): i for name, i in exact.items() if name not in asked}
    return [exact.get(name, loose.get(_whole(name), -1)) for name in texts]


def _whole(name: str) -> str:
    return re.sub(r"^(-?\d+)\.0+$", r"\1", name)


def categories(column: pd.Series, what: str, *, only_used: bool = True) -> pd.Categorical:
    """Categories of a column in their order, or its values, sorted, with their names as text; missing values stay."""
    values = column.astype("category")
    values = values.cat.remove_unused_categories() if only_used else values
    found = values.cat.categories
    if pd.api.types.is_float_dtype(column) and (len(found) > 50 or len(found) > len(column) / 2 >= 10):
        raise ValueError(
            f"{what} holds {len(found)} different numbers, it looks like a measurement; pass a column that groups "
            "cells, for example after pandas.cut, or as .astype('category') if its numbers are names."
        )
    names = [text(name) for name in found]
    if len(set(names)) < len(names):
        first = next(name for name in names if names.count(name) > 1)
        alike = [f"{name!r} ({type(name).__name__})" for name in found if text(name) == first]
        raise ValueError(f"{what} has categories that read alike: {' and '.join(alike)}; rename one of them.")
    return values.cat.rename_categories(names).array
