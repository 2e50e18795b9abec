"""Real data sets to try things on."""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData


def cell_mixtures() -> AnnData:
    """Three lung cancer cell lines, mixed and sequenced with three protocols :cite:p:`Tian2019`.

    Raw counts of 1345 cells and the 701 genes that the three protocols share. The cell line of each cell is known from
    its genotype, so what an analysis finds can be compared with the truth. The data are part of the package
    (no download) and under the MIT licence.

    The Drop-seq and CEL-seq2 counts come from the repository ``LuyiTian/sc_mixology`` (GEO: GSE118767), the 10x counts
    of the same study from ``PYangLab/Cepo``.

    Returns
    -------
    AnnData with counts in ``.X`` (CSR, float32), the protocol in ``.obs["batch"]`` (``10x_3cl``, ``celseq2_3cl``,
    ``dropseq_3cl``) and the cell line in ``.obs["cell_type"]`` (``H1975``, ``H2228``, ``HCC827``).

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> scvip.datasets.cell_mixtures().shape
    (1345, 701)
    """
    from anndata import read_h5ad

    with as_file(files(__name__) / "cell_mixtures.h5ad") as path:
        return read_h5ad(path)
