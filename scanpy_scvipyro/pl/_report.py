from __future__ import annotations

from typing import TYPE_CHECKING

from scanpy import logging as logg

from scanpy_scvipyro import _files, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from scanpy_scvipyro.checks import Finding
    from scanpy_scvipyro.model import SCVI


@public
def report(
    adata: AnnData,
    *,
    path: Path | str = "scvi_pyro_report.html",
    key: str = "scvi_pyro",
    batch_key: str | None = None,
    labels_key: str | None = None,
    condition_key: str | None = None,
    sample_key: str | None = None,
    max_cells: int = 5000,
    module: type[SCVI] | None = None,
    random_state: int = 0,
) -> None:
    """Write one HTML page on a trained model: what was trained on what, how well it went, and what to look out for.

    The page holds training curves, UMAPs before and after, integration scores, and posterior predictive checks. In
    plain words it warns of training that ended too early or too late, batches that are not mixed, biology that may have
    been removed together with the batch effect, and genes and batches that are fitted badly. It is a single file that
    needs no network. ``adata`` is not changed.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    path
        File to write; an existing one is replaced.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    batch_key
        Column of ``adata.obs`` with the batches, by default the one the model was trained with.
    labels_key
        Column of ``adata.obs`` with labels such as cell types, by default the one the model was trained with, if any.
        They make the scores and warnings of integration much more telling.
    condition_key
        Column of ``adata.obs`` with two conditions, such as case and control, for a section on where cells of the
        second (in the order of its categories) are more frequent, as by
        :func:`scanpy_scvipyro.tl.differential_abundance`. Needs ``sample_key``.
    sample_key
        Column of ``adata.obs`` with the samples, such as donors, which are the replicates of that comparison.
    max_cells
        Cells to embed and to simulate, at least 20, drawn at random if there are more; the page says so.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    random_state
        Seed of all that is random. The global random states are left alone.

    Raises
    ------
    KeyError
        If there is no such model or column.
    ValueError
        If an argument is not as described above, or the counts do not fit the model; before any work starts.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> with TemporaryDirectory() as directory:
    ...     page = Path(directory) / "report.html"
    ...     scvip.pl.report(adata, labels_key="cell_type", path=page, max_cells=300)
    ...     page.read_text().count("<img ")
    10
    """
    write_page(
        adata,
        path=path,
        key=key,
        batch_key=batch_key,
        labels_key=labels_key,
        condition_key=condition_key,
        sample_key=sample_key,
        max_cells=max_cells,
        module=module,
        random_state=random_state,
    )


def write_page(
    adata: AnnData,
    *,
    path: Path | str,
    key: str,
    batch_key: str | None,
    labels_key: str | None,
    condition_key: str | None,
    sample_key: str | None,
    max_cells: int,
    random_state: int,
    module: type[SCVI] | None = None,
) -> list[Finding]:
    """Do what :func:`report` does, and return what the page warns of."""
    _validate.check_adata(adata, min_cells=20, on_disk=True)
    _validate.check_arguments({"max_cells": max_cells, "random_state": random_state})
    path = _files.path_of(path, "path")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r} is in a directory that does not exist; create it first.")
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a directory; name a file in it, such as 'report.html'.")

    from scanpy_scvipyro import _conditions
    from scanpy_scvipyro.pl import _integration, _report_content, _report_page

    samples = None
    if condition_key is not None and sample_key is not None:
        samples = _conditions.samples_of(adata, condition_key, sample_key, None, None)
    elif condition_key is not None or sample_key is not None:
        msg = (
            f"condition_key={condition_key!r} and sample_key={sample_key!r} go together: conditions are compared over "
            "samples; pass both, or neither."
        )
        raise ValueError(msg)
    columns = _integration.columns_of(adata, key, batch_key, labels_key)
    start = logg.info(f"writing a report on {key!r}")
    content = _report_content.gather(adata, key, columns, samples, max_cells, module, random_state)
    path.write_text(_report_page.render(content), encoding="utf-8")
    logg.info("    finished", time=start, deep=f"wrote {path}")
    return content.findings
