"""Groups of cells of an AnnData as parts of samples, for comparisons in which samples are the replicates."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scanpy import logging as logg

from scanpy_scvipyro import _lazy, _names, _validate, replicates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.differential import Differences
    from scanpy_scvipyro.model import SCVI

    Positions = NDArray[np.intp]


class Comparisons(NamedTuple):
    """Comparisons between parts of samples, within some of the cells."""

    members: Positions
    part: Positions
    """Which part of a sample each member is in."""
    n_parts: int
    groups: dict[str, Positions]
    """Cells of each group, by the name of the result."""
    rest: Positions
    plans: dict[str, replicates.Plan]


def comparisons(
    adata: AnnData,
    members: dict[str, Positions],
    rest: Positions,
    *,
    sample_key: str,
    within: str | None,
    batch: Positions | None,
    with_others: bool,
) -> list[Comparisons]:
    """Plan how the groups are compared, in all cells or in each category of ``within``."""
    column = _names.categories(_validate.obs_column(adata, sample_key, "sample_key"), f"sample_key={sample_key!r}")
    sample = column.codes.astype(np.intp)
    if within is None:
        try:
            return [_compared(members, rest, sample, batch, with_others=with_others)]
        except replicates.Unanswerable as error:
            raise ValueError(f"sample_key={sample_key!r}: {error}.") from None
    if len(members) > 1:
        names = list(members)
        msg = (
            f"within={within!r} gives one result for each of its values, and {names} are {len(names)} groups; name one "
            f"and what to compare it with: groups=[{names[-1]!r}], reference={names[0]!r}."
        )
        raise ValueError(msg)
    _validate.check_obs_key(adata, within, "within")
    kinds = _names.categories(_lazy.column(adata.obs, within), f"within={within!r}")
    ((group, cells),) = members.items()
    planned, failed = [], {}
    for code, kind in enumerate(kinds.categories):
        inside = kinds.codes == code
        try:
            found = _compared({kind: cells[inside[cells]]}, rest[inside[rest]], sample, batch, with_others=with_others)
            planned.append(found)
        except replicates.Unanswerable as error:
            failed[kind] = str(error)
    if not planned:
        raise ValueError(
            f"sample_key={sample_key!r}, in {kind!r}, as in all other values of {within!r}: {failed[kind]}."
        )
    if failed:
        named = ", ".join(map(repr, failed))
        logg.warning(
            f"not compared in {within}: {named}, where {group!r} or what it is compared with has too few samples."
        )
    return planned


def _compared(
    members: dict[str, Positions], rest: Positions, sample: Positions, batch: Positions | None, *, with_others: bool
) -> Comparisons:
    groups = [*members.values(), rest]
    cells = np.concatenate(groups)
    group = np.repeat(np.arange(len(groups)), [len(part) for part in groups])
    of_part, part = np.unique(np.stack([group, sample[cells]]), axis=1, return_inverse=True)
    of_batch = None
    if batch is not None:
        of_batch = np.zeros((of_part.shape[1], batch.max() + 1))
        np.add.at(of_batch, (part, batch[cells]), 1)
    plans = {}
    for i, name in enumerate(members):
        others = of_part[0] != i if with_others else of_part[0] == len(members)
        ours, theirs = np.flatnonzero(of_part[0] == i), np.flatnonzero(others)
        plans[name] = replicates.plan(ours, theirs, of_part[1], of_batch)
    return Comparisons(cells, part, of_part.shape[1], members, rest, plans)


def compared(
    model: SCVI, cell_data: CellData, planned: list[Comparisons], delta: float, pseudocounts: float
) -> Iterator[tuple[str, Differences]]:
    """Results of all comparisons, by name."""
    for members, part, n_parts, _, _, plans in planned:
        sums = replicates.sums(model, cell_data, members, part, n_parts)
        for name, plan in plans.items():
            yield name, replicates.compare(sums, plan, delta, pseudocounts)
