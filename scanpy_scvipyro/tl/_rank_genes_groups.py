from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from scanpy import logging as logg
from scanpy import settings

from scanpy_scvipyro import _names, _select, _stored, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData

    from scanpy_scvipyro._names import Name, Names
    from scanpy_scvipyro.model import SCVI


MIN_SAMPLES = 50


@public
def rank_genes_groups(
    adata: AnnData,
    groupby: str,
    *,
    groups: Names = "all",
    reference: Name = "rest",
    sample_key: str | None = None,
    within: str | None = None,
    mode: Literal["change", "vanilla"] = "change",
    key: str = "scvi_pyro",
    delta: float | None = None,
    pseudocounts: float | None = None,
    transform_batch: Names | None = "all",
    n_samples: int = 5000,
    n_genes: int | None = None,
    pts: bool = False,
    key_added: str | None = None,
    module: type[SCVI] | None = None,
    progress_bar: bool | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Rank genes that characterize groups of cells, by Bayesian differential expression with a trained model.

    Frequencies of the genes are decoded from the latent codes of the cells of two groups, in the same batches, so that
    neither batch effects nor sequencing depth are mistaken for differences.

    ``mode="change"`` asks whether the mean log2 fold change :math:`\beta` of a gene is larger than :math:`\delta`, up
    or down: the composite hypothesis of :cite:t:`Boyeau2023`, with control of the false discovery rate.
    ``mode="vanilla"`` asks whether a random cell of one group has a higher frequency than a random cell of the other,
    as in :cite:t:`Lopez2018`.

    Both take cells for the replicates: what they find holds for the samples at hand, such as donors. With
    ``sample_key``, samples are the replicates, and what is found holds for others of their kind.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    groupby
        Column of ``adata.obs`` with the groups: categories, text, booleans, or numbers of few values. Cells without a
        value belong to no group.
    groups
        Names of the groups to rank genes for, as the column holds them, or ``"all"``.
    reference
        Name of the group to compare with; ``"rest"`` is all cells of the other groups.
    sample_key
        Column of ``adata.obs`` with the sample of each cell, such as the donor. With it samples are the replicates, not
        cells: what is found holds for samples beyond these. Pass it to compare conditions. See the notes.
    within
        Column of ``adata.obs`` in each value of which the groups are compared, such as the cell type, with
        ``sample_key``: one result for each value. Name one group, and what to compare it with.
    mode
        See above.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    delta
        Log2 fold change that matters, for ``mode="change"``. By default it is chosen from the fold changes of all
        genes: 0.6 times those of the genes that changed; with ``sample_key`` it is 0, any change.
    pseudocounts
        Added to frequencies (shares of the counts of a cell) before taking logs: fold changes of genes that are
        hardly seen shrink to zero. By default one count in all cells of a group of average size.
    transform_batch
        Batches to compare in: ``"all"``, or the names of some. With ``None``, each cell is taken in its own batch, and
        batch effects count as differences. With ``sample_key`` any batches but ``None`` mean that those of the model
        that hold several samples are terms of the regression.
    n_samples
        Draws of cells and their codes per group, at least 50; none are made with ``sample_key``.
    n_genes
        Genes to report per group; by default all that the model knows.
    pts
        Whether to write the share of cells with any counts of each gene.
    key_added
        Name of the results in ``adata.uns``, by default ``f"rank_genes_groups_{key}"``.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    progress_bar
        Whether to show a bar; by default if ``sc.settings.verbosity`` is above 0.
    random_state
        Seed. The global random states are left alone.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets ``adata.uns["rank_genes_groups_scvi_pyro"]``, in the structure
    of :func:`scanpy.tl.rank_genes_groups`; pass ``key="rank_genes_groups_scvi_pyro"`` to
    :func:`scanpy.get.rank_genes_groups_df`, ``sc.pl.rank_genes_groups`` and their like. Each field is an array with
    one entry per group name, ordered by score:

    ``names``
        Names of the genes.
    ``scores``
        Log fold change over its standard error (``"change"``), or log odds that a cell of the group has the higher
        frequency (``"vanilla"``). Positive for genes that are higher in the group.
    ``logfoldchanges``
        Log2 fold change: difference of the mean log2 frequencies of the two groups.
    ``proba_de``
        Posterior probability that the log fold change is above ``delta``, or that it is below ``-delta``, whichever is
        larger (``"change"``); or that a random cell of one group has the higher frequency (``"vanilla"``). Both know
        how few cells a group has, and how rarely a gene was counted in them.
    ``bayes_factor``
        Natural logarithm of the odds of ``proba_de`` (``"change"``), or the score (``"vanilla"``).
    ``pvals``
        ``1 - proba_de``: probability that calling the gene changed, in this direction, is false. With ``sample_key`` it
        is a p-value: how often samples that do not differ by more than ``delta`` would seem to differ by as much.
    ``pvals_adj``
        Expected false discovery rate among the genes that are at least as probable: select ``pvals_adj < 0.05`` to
        have less than 5 % of false discoveries. With ``"vanilla"`` these are the genes that tell nearly all cells of
        the groups apart, which many changed genes do not. With ``sample_key`` it is the p-value, adjusted after
        Benjamini and Hochberg.
    ``pts``, ``pts_rest`` : DataFrame
        Only with ``pts=True``: share of cells of the group, and of the rest, that have counts of the gene.
    ``params`` : dict
        Arguments, and what was chosen for ``delta`` (for each group) and ``pseudocounts``.

    Raises
    ------
    KeyError
        If there is no such model, column, group or batch.
    ValueError
        If an argument is not as described above, or the counts do not fit the model; before any work starts.

    Notes
    -----
    The published test of ``"change"`` compares random pairs of cells, as ``"vanilla"`` does. As groups are diverse, few
    genes differ between nearly all pairs, and many unchanged genes differ between some. This function compares the
    means of the groups instead. To the error of the codes it adds the error that the noise of the counts leaves in the
    decoder, and it learns a prior of effect sizes from all genes :cite:p:`Stephens2017`. In simulations it found 86 to
    94 % of large changes, with 2 to 4 % of false discoveries at an expected 5 %; the published test found 1 to 17 %.

    With ``sample_key``, counts are summed over the cells of each sample in a group, and compared by negative binomial
    regression with quasi-likelihood :cite:p:`Chen2025`: within samples where any sample has cells of both groups (cell
    types), else between them (conditions). The dispersion of a sum has a part that comes from its cells, which the
    model knows; how much samples vary besides is learnt from all genes, and moderated for each. Counts are compared,
    not decoded frequencies: where 100 of 2,000 genes changed, the decoder carried changes over to others, and 16 % of
    the discoveries were false. Genes of fewer than ten counts are not tested.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> scvip.tl.rank_genes_groups(adata, "cell_type", n_samples=500, progress_bar=False)
    >>> genes = sc.get.rank_genes_groups_df(adata, "H1975", key="rank_genes_groups_scvi_pyro", pval_cutoff=0.05)
    >>> genes.columns.tolist()
    ['names', 'scores', 'logfoldchanges', 'pvals', 'pvals_adj']
    """
    _validate.check_adata(adata, on_disk=True)
    _validate.check_arguments(
        {
            "delta": delta,
            "pseudocounts": pseudocounts,
            "n_samples": n_samples,
            "n_genes": n_genes,
            "random_state": random_state,
            "key_added": key_added,
        },
        may_be_none=["n_genes"],
    )
    if n_samples < MIN_SAMPLES:
        msg = (
            f"n_samples={n_samples} was passed; pass at least {MIN_SAMPLES}: fewer draws may all be of one kind of "
            "cell, and every gene of that kind would seem changed."
        )
        raise ValueError(msg)
    if mode not in {"change", "vanilla"}:
        raise ValueError(f"mode={mode!r} is not a choice; pass 'change' or 'vanilla'.")
    _check_samples(sample_key, within, mode)
    members, rest = _select.groups(adata, groupby, groups, reference)
    reference = _names.text(reference)

    from scanpy_scvipyro import _progress, data, differential, storage, training
    from scanpy_scvipyro.tl import _by_samples, _ranked

    model, spec = storage.from_uns(adata, key, module)
    if key_added in _stored.names(adata):
        raise ValueError(f"key_added={key_added!r} is the name of a model in adata.uns; pass another one.")
    batches = _select.batch_codes(transform_batch, spec.batches)
    show = settings.verbosity > 0 if progress_bar is None else progress_bar
    cell_data = data.load(adata, spec, show=show)
    group = next(iter(members))
    planned = []
    if sample_key is not None:
        planned = _by_samples.comparisons(
            adata,
            members,
            rest,
            sample_key=sample_key,
            within=within,
            batch=cell_data.batch.numpy() if batches is not None else None,
            with_others=reference == "rest",
        )
        members = {name: cells for found in planned for name, cells in found.groups.items()}
    _check_names(members, within or groupby, pts=pts)
    if pseudocounts is None:
        n_groups = len(members) + (len(rest) > 0 if within is None else len(members))
        pseudocounts = n_groups / float(cell_data.library_size.double().sum())
    how = differential.Comparison(mode, delta, pseudocounts, batches, n_samples, random_state)

    start = logg.info(f"ranking genes of {groupby!r}")
    if single := [name for name, cells in members.items() if len(cells) == 1]:
        logg.warning(
            f"groups of a single cell: {', '.join(map(repr, single))}. What is found for them holds for that cell; "
            "whether others of its kind are like it cannot be known."
        )
    with (
        training.isolated_random_state(random_state),
        _progress.bar(len(members), "Ranking", "group", show=show) as bar,
    ):
        ranking = (
            _by_samples.compared(model, cell_data, planned, delta or 0.0, pseudocounts)
            if planned
            else differential.rank(model, cell_data, members, rest, how, with_others=reference == "rest")
        )
        results = {}
        for name, differences in ranking:
            results[name] = differences
            bar.update()
    stored = _ranked.fields(results, spec.genes, n_genes)
    if pts:
        parts = [(found.groups, found.rest) for found in planned] or [(members, rest)]
        stored |= _ranked.shares(cell_data, parts, spec.genes, with_others=reference == "rest")
    stored["params"] = {
        "groupby": groupby,
        "reference": reference,
        "method": "scvi_pyro",
        "use_raw": False,
        "layer": spec.layer,
        "corr_method": "expected false discovery rate" if sample_key is None else "benjamini-hochberg",
        "mode": mode,
        "pseudocounts": pseudocounts,
    }
    if sample_key is not None:
        stored["params"]["sample_key"] = sample_key
    if within is not None:
        stored["params"] |= {"within": within, "group": group}
    if mode == "change":
        stored["params"]["delta"] = np.array([result.delta for result in results.values()])

    adata = adata.copy() if copy else adata
    key_added = f"rank_genes_groups_{key}" if key_added is None else key_added
    adata.uns[key_added] = stored
    logg.info("    finished", time=start, deep=f"added\n    '{key_added}', ranked genes by group (adata.uns)")
    return adata if copy else None


def _check_samples(sample_key: str | None, within: str | None, mode: str) -> None:
    if sample_key is None and within is not None:
        msg = (
            f"within={within!r} was passed without sample_key; pass the column with the samples, such as the donor: a "
            "comparison of conditions rests on them."
        )
        raise ValueError(msg)
    if sample_key is not None and mode != "change":
        raise ValueError(f"mode={mode!r} compares cells, with sample_key samples are compared; pass mode='change'.")


def _check_names(members: Iterable[str], column: str, *, pts: bool) -> None:
    if pts and (unfit := [name for name in members if not _validate.is_storable(name)]):
        msg = (
            f"pts=True writes a table with a column for each group, and files cannot store one named {unfit[0]!r}; "
            f"leave pts out, or rename the group: adata.obs[{column!r}] = "
            f"adata.obs[{column!r}].str.replace('/', '_')."
        )
        raise ValueError(msg)
