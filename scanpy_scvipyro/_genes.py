"""The genes of a model among those of a query: by name, by a column, and what to do without some of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scanpy_scvipyro import _lazy
from scanpy_scvipyro._validate import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray


def match(
    adata: AnnData,
    genes: NDArray[np.str_],
    *,
    var_key: str | None,
    ensembl_versions: bool,
    missing_genes: str,
) -> NDArray[np.intp]:
    """Where the genes of a model stand in ``adata.var``, -1 for those that are missing, if some may be."""
    where = "adata.var_names" if var_key is None else f"adata.var[{var_key!r}]"
    if var_key is not None and var_key not in adata.var:
        raise KeyError(f"var_key={var_key!r} is not in adata.var. {did_you_mean(var_key, adata.var)}")
    wanted = _names(pd.Series(genes), ensembl_versions=ensembl_versions)
    there = _names(_column(adata, var_key), ensembl_versions=ensembl_versions)
    for names, what in ((there, where), (wanted, "the genes of the model")):
        twice = names[names.duplicated() & names.isin(wanted)]
        if len(twice):
            msg = (
                f"{len(twice)} names stand more than once in {what}, for example {twice[0]!r}, so genes cannot be told "
                "apart by them; keep one row of each, or pass var_key= with a column of unique names."
            )
            raise ValueError(msg)
    positions = there.get_indexer(wanted)
    missing = positions < 0
    if missing.all() or (missing.any() and missing_genes == "refuse"):
        raise ValueError(refusal(adata, genes, missing, where))
    return positions


def refusal(adata: AnnData, genes: NDArray[np.str_], missing: NDArray[np.bool_], where: str = "adata.var_names") -> str:
    """Say how many genes are missing, and what can be done."""
    advice = "pass an AnnData with all of them, in any order"
    if _were_imputed(adata, genes[missing]):
        advice = (
            "tl.map_query(..., missing_genes='impute') has inferred them for what it has written, but all other "
            f"functions need their counts; {advice}, or train on the genes that both have: "
            "reference[:, reference.var_names.isin(adata.var_names)]"
        )
    elif not missing.all():
        advice += ", or map without them: tl.map_query(..., missing_genes='impute')"
    return (
        f"{missing.sum()} of the {len(genes)} genes of the model are not in {where}, for example "
        f"{str(genes[np.argmax(missing)])!r}; {advice}.{_elsewhere(adata, genes, int((~missing).sum()))}"
    )


def _were_imputed(adata: AnnData, missing: NDArray[np.str_]) -> bool:
    """Whether a model in ``adata`` was mapped without these genes."""
    models = [model for model in adata.uns.values() if isinstance(model, dict) and "missing_genes" in model]
    return any(set(missing) == set(map(str, model["missing_genes"])) for model in models)


def _column(adata: AnnData, var_key: str | None) -> pd.Series:
    return pd.Series(adata.var_names if var_key is None else _lazy.column(adata.var, var_key).to_numpy())


def _names(names: pd.Series, *, ensembl_versions: bool) -> pd.Index:
    texts = [str(name) for name in names]
    if not ensembl_versions:
        texts = [re.sub(r"^(ENS[A-Z]*\d{6,})\.\d+$", r"\1", text) for text in texts]
    return pd.Index(texts, dtype=object)


def _elsewhere(adata: AnnData, genes: NDArray[np.str_], n_found: int) -> str:
    """Say where, or under which names, more of the genes would be found."""
    best, hint = n_found, ""
    var = _lazy.frame(adata.var)
    columns = [str(key) for key in var if not pd.api.types.is_numeric_dtype(var[key])]
    for key in (None, *columns):
        for ensembl_versions in (True, False):
            wanted = _names(pd.Series(genes), ensembl_versions=ensembl_versions)
            there = _names(_column(adata, key), ensembl_versions=ensembl_versions)
            n = int(wanted.isin(there).sum())
            if n > best:
                arguments = [f"var_key={key!r}"] * (key is not None) + ["ensembl_versions=False"] * (
                    not ensembl_versions
                )
                best, hint = n, f" With {' and '.join(arguments)} of tl.map_query, {n} of them would be found."
    names = adata.var_names.astype(str)
    for code, renamed in _affixes_removed(names):
        n = int(pd.Index(genes).isin(renamed).sum())
        if n > best:
            best, hint = n, f" After adata.var_names = adata.var_names{code}, {n} of them would be found."
    return _in_other_case(names, pd.Index(genes), best) or hint


def _affixes_removed(names: pd.Index) -> Iterator[tuple[str, pd.Index]]:
    """Names without what may stand beside them (a genome, a second identifier, a number), and the code that does it."""
    for separator in ("_", "-", ".", "|", ":"):
        yield f".str.rsplit({separator!r}, n=1).str[0]", names.str.rsplit(separator, n=1).str[0]
        yield f".str.split({separator!r}, n=1).str[-1]", names.str.split(separator, n=1).str[-1]


def _in_other_case(names: pd.Index, genes: pd.Index, n_found: int) -> str:
    """Say how more of the genes would be found if case did not matter."""
    spelled = dict(zip(names.str.lower(), names, strict=True))
    others = {gene: spelled[gene.lower()] for gene in genes if gene.lower() in spelled}
    if len(others) <= n_found:
        return ""
    same_species = "if they are genes of the same species"
    for code, renamed in ((".str.upper()", names.str.upper()), (".str.lower()", names.str.lower())):
        if genes.isin(renamed).sum() == len(others):
            return f" After adata.var_names = adata.var_names{code}, {len(others)} would be found, {same_species}."
    gene = next(gene for gene, other in others.items() if gene != other)
    return (
        f" But for case, {len(others)} of them are there ({others[gene]!r} for {gene!r}); rename them, {same_species}."
    )
