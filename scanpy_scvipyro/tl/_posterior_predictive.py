from __future__ import annotations

from typing import TYPE_CHECKING

from scanpy import logging as logg
from scanpy import settings
from scipy import sparse

from scanpy_scvipyro import _names, _select, _stored, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro._names import Name
    from scanpy_scvipyro.model import SCVI


@public
def posterior_predictive(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    genes: Iterable[str] | str | NDArray[np.bool_] | None = None,
    cells: Iterable[str] | NDArray[np.bool_] | None = None,
    transform_batch: Name | None = None,
    key_added: str | None = None,
    module: type[SCVI] | None = None,
    progress_bar: bool | None = None,
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Simulate counts from a trained model: what it expects the data to look like, noise included.

    For each cell a latent code is drawn from its posterior, then counts from the likelihood, at the sequencing depth of
    the cell. Where simulated and real counts differ (in mean and variance, zeros per gene, library sizes), the model
    misses something :cite:p:`Gelman1996`.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    genes
        Genes to simulate, by default all that the model knows: their names, or a boolean array (n_vars,).
    cells
        Cells to simulate, by default all: their names, or a boolean array (n_obs,).
    transform_batch
        Batch to simulate all cells in; by default each cell stays in its own.
    key_added
        Name of the layer, by default ``f"{key}_simulated"``.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    progress_bar
        Whether to show a bar; by default if ``sc.settings.verbosity`` is above 0.
    random_state
        Seed. Each seed gives another simulation. The global random states are left alone.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the following field:

    ``adata.layers["scvi_pyro_simulated"]`` : CSR matrix of float32 (n_obs, n_vars)
        Whole numbers. It has no entries for cells and genes that were not asked for or not modelled.

    Raises
    ------
    KeyError
        If there is no such model, gene, cell or batch.
    ValueError
        If an argument is not as described above, or the counts do not fit the model; before any work starts.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> scvip.tl.posterior_predictive(adata, genes=["KRT80", "AKR1C1"], random_state=1)
    >>> adata[:, "KRT80"].layers["scvi_pyro_simulated"].shape
    (1345, 1)
    """
    _validate.check_adata(adata, min_cells=1)
    _validate.check_arguments({"random_state": random_state, "key_added": key_added})
    if len(_names.listed(transform_batch)) != 1:
        raise TypeError(
            f"transform_batch={transform_batch!r} was passed; counts are simulated in one batch, pass a name."
        )

    from scanpy_scvipyro import _progress, absent, data, posterior, storage, training

    model, spec = storage.from_uns(adata, key, module)
    _validate.check_spares_counts(key_added, spec.layer)
    batches = _select.batch_codes(None if transform_batch is None else [transform_batch], spec.batches)
    selected = _select.gene_positions(adata, genes, spec.genes)
    rows = _select.cell_positions(adata, cells)
    positions = spec.gene_positions(adata)
    cell_data = data.load(adata, spec, positions)

    if batches is not None and (made_up := absent.warning(_stored.trained(adata, key), selected)):
        logg.warning(made_up)
    start = logg.info(f"simulating {len(selected)} genes of {len(rows)} cells")
    show = settings.verbosity > 0 if progress_bar is None else progress_bar
    with training.isolated_random_state(random_state):
        chunks = posterior.simulated_counts(model, cell_data, rows, selected, batches[0] if batches else None)
        parts = [chunk for _, chunk in _progress.over_cells(chunks, len(rows), "Simulating", show=show)]
    counts = sparse.vstack(parts, format="coo")
    places = (rows[counts.row], positions[selected][counts.col])

    adata = adata.copy() if copy else adata
    key_added = f"{key}_simulated" if key_added is None else key_added
    adata.layers[key_added] = sparse.csr_matrix((counts.data, places), shape=adata.shape)
    logg.info("    finished", time=start, deep=f"added\n    '{key_added}', simulated counts (adata.layers)")
    return adata if copy else None
