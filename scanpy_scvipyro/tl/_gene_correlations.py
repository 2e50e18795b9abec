from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scanpy_scvipyro import _select, _validate
from scanpy_scvipyro._public import public

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from numpy.typing import NDArray

    from scanpy_scvipyro._names import Names
    from scanpy_scvipyro.model import SCVI


@public
def gene_correlations(
    adata: AnnData,
    *,
    key: str = "scvi_pyro",
    genes: Iterable[str] | str | NDArray[np.bool_] | None = None,
    transform_batch: Names | None = "all",
    method: Literal["pearson", "spearman"] = "spearman",
    n_samples: int = 1,
    key_added: str | None = None,
    module: type[SCVI] | None = None,
    random_state: int = 0,
) -> pd.DataFrame | None:
    """Gene-gene correlations over all cells, free of batch effects, sequencing depth and counting noise.

    Expression is simulated from a trained model as in :func:`scanpy_scvipyro.tl.posterior_predictive`, but all cells
    have the same library size and are in the same batch, and the Poisson noise of the counts is left out. The
    biological variation about the mean (the dispersion of the negative binomial) stays: correlations of imputed
    values, which have none, are far too strong :cite:p:`Andrews2018`.

    Parameters
    ----------
    adata
        AnnData with counts and a trained model. Pass a subset of the cells for correlations within it.
    key
        Name of the model, the ``key_added`` of :func:`scanpy_scvipyro.tl.scvi_pyro`.
    genes
        Genes to correlate, by default all that the model knows: their names, or a boolean array (n_vars,). No others
        are simulated, so that a few take little time; the result is then that of all genes up to the randomness of the
        simulation.
    transform_batch
        Batch to express all cells in: the name of one, or of several, over which the correlations are averaged, or
        ``"all"``. With ``None`` each cell stays in its own, and batch effects correlate genes.
    method
        ``"spearman"`` correlates ranks, which does not leave the result to the few cells with most counts.
    n_samples
        Simulations per batch to average over. One is enough for thousands of cells.
    key_added
        Name to write the result to in ``adata.varp``; by default it is returned.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, if the model is one.
    random_state
        Seed of the simulation. The global random states are left alone.

    Returns
    -------
    Correlations as a DataFrame (n_genes, n_genes) of float32 with gene names on both sides. Or, with ``key_added``,
    ``None``, and sets the following field:

    ``adata.varp[key_added]`` : float32 array (n_vars, n_vars)
        Correlations; NaN for genes that were not asked for or not modelled.

    Raises
    ------
    KeyError
        If there is no such model, gene or batch.
    ValueError
        If an argument is not as described above, or the counts do not fit the model.
    MemoryError
        If it would not fit in the free memory. All of these before any work starts.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, impute=False, progress_bar=False)
    >>> scvip.tl.gene_correlations(adata, genes=["KRT80", "AKR1C1", "AGR2"]).shape
    (3, 3)
    """
    _validate.check_adata(adata, on_disk=True)
    _validate.check_arguments({"n_samples": n_samples, "random_state": random_state, "key_added": key_added})
    if method not in {"pearson", "spearman"}:
        raise ValueError(f"method={method!r} is not a choice; pass 'pearson' or 'spearman'.")

    from scanpy_scvipyro import data, posterior, storage, training

    model, spec = storage.from_uns(adata, key, module)
    batches = _select.batch_codes(transform_batch, spec.batches)
    selected = _select.gene_positions(adata, genes, spec.genes)
    n_result = len(selected) if key_added is None else adata.n_vars
    # Rates and their ranks in float32 and float64, and two square matrices while one is summed up.
    n_bytes = 16 * adata.n_obs * len(selected) + 8 * len(selected) ** 2 + 4 * n_result**2
    _validate.check_memory(n_bytes, "the work", "name fewer genes=, or pass a subset of the cells.")
    positions = spec.gene_positions(adata)
    cell_data = data.load(adata, spec, positions)

    start = logg.info(f"correlating {len(selected)} genes over {adata.n_obs} cells")
    with training.isolated_random_state(random_state):
        correlations = posterior.gene_correlations(
            model, cell_data, selected, batches=batches, method=method, n_samples=n_samples
        )
    if key_added is None:
        logg.info("    finished", time=start)
        return pd.DataFrame(correlations, index=spec.genes[selected], columns=spec.genes[selected])
    square = np.full((adata.n_vars, adata.n_vars), np.nan, dtype=np.float32)
    columns = positions[selected]
    square[np.ix_(columns, columns)] = correlations
    adata.varp[key_added] = square
    logg.info("    finished", time=start, deep=f"added\n    '{key_added}', gene-gene correlations (adata.varp)")
    return None
