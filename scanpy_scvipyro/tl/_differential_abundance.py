from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scanpy import logging as logg

from scanpy_scvipyro import _lazy, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from anndata import AnnData

    from scanpy_scvipyro._names import Name


@public
def differential_abundance(
    adata: AnnData,
    condition_key: str,
    *,
    sample_key: str,
    reference: Name,
    group: Name | None = None,
    groupby: str | None = None,
    key: str = "scvi_pyro",
    n_neighbors: int | None = None,
    key_added: str | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Which cells are more frequent in one condition, by a test over samples.

    The neighbourhood of each cell in the space of latent codes holds so many cells of each sample. Their counts are
    compared between conditions by negative binomial regression with quasi-likelihood, as in Milo :cite:p:`Dann2022`:
    samples are the replicates. The rate of false discoveries is that over neighbourhoods, of which those in dense
    regions weigh less, since they overlap with more others.

    Parameters
    ----------
    adata
        AnnData with latent codes.
    condition_key
        Column of ``adata.obs`` with the condition of each cell. Cells without one are left out.
    sample_key
        Column of ``adata.obs`` with the sample of each cell, such as the donor: at least two in each condition, or two
        with cells in both, which are then compared with themselves.
    reference
        The condition to compare with.
    group
        The condition that is compared. May be left out where there are two.
    groupby
        Column of ``adata.obs`` with labels such as cell types, which are compared, too.
    key
        Name of the model, whose codes are in ``adata.obsm["X_{key}"]``.
    n_neighbors
        Cells in a neighbourhood; by default ten for each sample, at least 30. More find smaller differences, of larger
        populations: with five for each sample, 56 instead of 80 % of a population that was enriched fourfold
        (docs/benchmarks.md).
    key_added
        Name of the results, by default ``key``.
    random_state
        Seed of the choice of 20,000 neighbourhoods where there are more cells; other cells get the result of the
        nearest one.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the following fields:

    ``adata.obs["scvi_pyro_da_lfc"]`` : float32
        Log2 ratio of the density of cells around the cell, condition over reference, between samples as if all had the
        same number of cells. Missing for cells of no condition.
    ``adata.obs["scvi_pyro_da_fdr"]`` : float32
        Rate of false discoveries among neighbourhoods that differ at least as clearly.
    ``adata.uns["scvi_pyro_da"]`` : dict
        ``params``, and with ``groupby`` the table ``labels``: cells of each label, mean shares in samples of either
        condition, and ``scores``, ``logfoldchanges``, ``pvals`` and ``pvals_adj`` of the comparison.

    Raises
    ------
    KeyError
        If there are no such codes, columns or conditions.
    ValueError
        If there are too few samples, or an argument is not as described above; before any work starts.

    Notes
    -----
    Densities are relative to all cells of a sample: where a large population becomes more frequent, the others become
    less frequent, and are found, too, if that can be told. Look at the largest ratios first.

    Where the batches of the model are the samples, train it with ``batch_alignment=10``: the default takes a part of
    what differs between their cells for an effect of the batch, so that less of it is found.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.donors()
    >>> options = {"max_epochs": 2, "impute": False, "progress_bar": False}
    >>> scvip.tl.scvi_pyro(adata, batch_key="donor", batch_alignment=10, **options)
    >>> scvip.tl.differential_abundance(
    ...     adata, "condition", sample_key="donor", reference="control", groupby="cell_type"
    ... )
    >>> adata.uns["scvi_pyro_da"]["labels"].index.tolist()
    ['H1975', 'H2228', 'HCC827']
    """
    _validate.check_adata(adata, on_disk=True)
    arguments = {"n_neighbors": n_neighbors, "random_state": random_state, "key_added": key_added}
    _validate.check_arguments(arguments, may_be_none=["n_neighbors"])

    from scanpy_scvipyro import _conditions

    samples = _conditions.samples_of(adata, condition_key, sample_key, reference, group)
    n_used = int((samples.row >= 0).sum())
    if n_neighbors is None:
        n_neighbors = _conditions.default_neighbors(samples)
    if n_neighbors > n_used:
        raise ValueError(f"n_neighbors={n_neighbors} was passed, and {n_used} cells are compared; pass a smaller one.")
    if f"X_{key}" not in adata.obsm:
        raise KeyError(
            f"adata.obsm has no codes of key={key!r}; call tl.scvi_pyro(adata) or tl.map_query(adata, reference) "
            f"first. {_validate.did_you_mean(f'X_{key}', adata.obsm)}"
        )
    if groupby is not None:
        _validate.check_obs_key(adata, groupby, "groupby")

    start = logg.info(f"comparing abundance between {samples.group!r} and {samples.reference!r}")
    change, rate = _conditions.by_neighbourhood(adata.obsm[f"X_{key}"], samples, n_neighbors, random_state)
    params = {"condition_key": condition_key, "sample_key": sample_key, "key": key, "n_neighbors": n_neighbors}
    stored: dict[str, Any] = {"params": {**params, "group": samples.group, "reference": samples.reference}}
    if groupby is not None:
        stored["params"]["groupby"] = groupby
        stored["labels"] = _conditions.by_label(_lazy.column(adata.obs, groupby), f"groupby={groupby!r}", samples)

    adata = adata.copy() if copy else adata
    key_added = key if key_added is None else key_added
    columns = np.full((2, adata.n_obs), np.nan, dtype=np.float32)
    columns[:, samples.cells] = change, rate
    _lazy.write_columns(adata, dict(zip((f"{key_added}_da_lfc", f"{key_added}_da_fdr"), columns, strict=True)))
    adata.uns[f"{key_added}_da"] = stored
    logg.info(
        "    finished",
        time=start,
        deep=f"added\n    '{key_added}_da_lfc' and '{key_added}_da_fdr', log2 ratio of densities and its rate of false "
        f"discoveries (adata.obs)\n    '{key_added}_da', parameters"
        + (" and labels" if groupby else "")
        + " (adata.uns)",
    )
    return adata if copy else None
