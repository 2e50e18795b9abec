"""Real data sets to try things on: raw counts, with labels where they are known.

:func:`cell_mixtures`, and :func:`donors` that are made from it, are part of the package. The others are files that are
looked for in the folder that the environment variable ``SCVIPYRO_DATA`` names, then in the cache
(``pooch.os_cache("scanpy_scvipyro")``), and else downloaded there from the folder whose address (``https://`` or
``file://``) is in ``SCVIPYRO_DATA_URL``: your lab's mirror, or the release page of the project. Their checksums are
compared in any case.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from scanpy_scvipyro.datasets import _fetch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

__all__ = [
    "cell_mixtures",
    "donors",
    "neurons_10x_10k",
    "pbmc_10x_4chemistries",
    "pbmc_facs_zheng",
    "sc_mixology_5plates",
]

N_OF_RARE_LINE = 80  # cells of HCC827 in the pool of donors, so that there is a rare type


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
    ``dropseq_3cl``), its full name in ``.obs["protocol"]``, and the cell line in ``.obs["cell_type"]`` (``H1975``,
    ``H2228``, ``HCC827``).

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> scvip.datasets.cell_mixtures().shape
    (1345, 701)
    """
    from anndata import read_h5ad

    with as_file(files(__name__) / "cell_mixtures.h5ad") as path:
        return read_h5ad(path)


def donors(
    *,
    n_donors: tuple[int, int] = (6, 6),
    n_cells: int = 200,
    n_changed: int = 0,
    enriched: Mapping[str, float] | None = None,
    random_state: int = 0,
) -> AnnData:
    """Donors of two conditions, made from real cells, so that what differs between them is known.

    Each donor gets cells of the 10x part of :func:`cell_mixtures`, drawn with replacement, in shares of the three cell
    lines that vary between donors around 44, 44 and 11 % (``HCC827``). Counts are thinned by probabilities that vary
    between donors, log-normally, with a standard deviation of 0.1 to 0.3 or so, larger for low genes. So no two donors
    are alike, and where nothing is asked to differ, cases and controls are two random sets of donors.

    Parameters
    ----------
    n_donors
        Controls and cases.
    n_cells
        Mean number of cells of a donor.
    n_changed
        Genes of each cell type that are lower in cases, or in controls, by 0.5 to 2 on the log2 scale.
    enriched
        Fold by which a cell line is more frequent in cases, such as ``{"HCC827": 2}``.
    random_state
        Seed.

    Returns
    -------
    AnnData with counts in ``.X`` (CSR, float32); ``donor``, ``condition`` (``control``, ``case``) and ``cell_type`` in
    ``.obs``; and in ``.varm["log2_fold_change"]`` the true changes by gene and cell type.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.donors(n_changed=30)
    >>> (adata.varm["log2_fold_change"] != 0).sum().tolist()
    [30, 30, 30]
    """
    from scanpy_scvipyro.datasets import _donors

    mixtures = cell_mixtures()
    is_10x, is_rare = mixtures.obs["batch"] == "10x_3cl", mixtures.obs["cell_type"] == "HCC827"
    pool = mixtures[is_10x & (~is_rare | ((is_10x & is_rare).cumsum() <= N_OF_RARE_LINE))].copy()
    pool.obs["population"] = pool.obs["cell_type"]
    if unknown := set(enriched or {}) - set(pool.obs["population"]):
        there = ", ".join(sorted(pool.obs["population"].unique()))
        raise ValueError(f"enriched has {sorted(unknown)[0]!r}, which is no cell line; there is: {there}.")
    adata = _donors.make(
        pool,
        n_donors=n_donors,
        n_cells=n_cells,
        at_least=0,
        at_most=10 * n_cells,
        n_changed=n_changed,
        enriched=enriched,
        random_state=random_state,
    )
    del adata.obs["population"]
    return adata


def sc_mixology_5plates() -> AnnData:
    """Five lung cancer cell lines on five plates, of which two lines are on three plates only :cite:p:`Tian2019`.

    Raw counts of 992 cells and 11,533 genes, very deep: 27,000 per cell. The cell line is known from the genotype. An
    integration that over-corrects merges the lines A549 and H838, which two of the plates lack, with others.

    Counts and genotypes come from the repository ``LuyiTian/sc_mixology`` (GEO: GSE118767), without doublets and
    spike-ins, and with the genes that all plates share. MIT licence. File of 12 MB, found or downloaded as
    :mod:`scanpy_scvipyro.datasets` says.

    Returns
    -------
    AnnData with counts in ``.X`` (CSR, float32), in ``.obs`` the plate (``batch``: ``celseq2_3cl``, ``dropseq_3cl``,
    ``celseq2_5cl_p1``, ``_p2``, ``_p3``), ``protocol`` (CEL-seq2 or Drop-seq) and the cell line (``cell_type``), and in
    ``.var`` the Ensembl ``gene_id``.

    Raises
    ------
    FileNotFoundError, OSError
        If the file is nowhere, or cannot be downloaded.
    ValueError
        If its checksum is wrong.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> scvip.datasets.sc_mixology_5plates().shape  # doctest: +SKIP
    (992, 11533)
    """
    return _read("sc_mixology_5plates.h5ad")


def pbmc_10x_4chemistries() -> AnnData:
    """Blood cells of four donors, each sequenced with another 10x chemistry :cite:p:`Zheng2017`.

    Raw counts of 5,521 peripheral blood mononuclear cells (PBMC) and 10,887 genes: a batch effect between equal
    mixtures of cell types. Chemistry, donor and genome annotation differ together.

    Counts are public data of 10x Genomics (CC BY 4.0: "3k PBMCs from a Healthy Donor", "1k PBMCs" v2 and v3, and 1,000
    of the 5' PBMC), from the repositories ``Fred-Hutch-Innovation-Lab/FHIL.SC.utils`` (MIT) and ``baj12/scWGParis``
    (GPL-2, which kept cells with 1,000 to 10,000 counts). Labels were made within each batch alone, from Leiden
    clusters and marker genes, so that they favour no method of integration; on the v1 cells they agree with the
    published ones (from ``chanzuckerberg/cellxgene``, MIT) for 97 %. File of 12 MB, found or downloaded as
    :mod:`scanpy_scvipyro.datasets` says.

    Returns
    -------
    AnnData with counts in ``.X`` (CSR, float32), and in ``.obs`` the chemistry (``batch``: ``10x_v1_3k``,
    ``10x_v2_1k``, ``10x_v3_1k``, ``10x_5p_1k``), ``cell_type`` (7 kinds), ``cell_type_fine`` (T cells split into CD4
    and CD8, less certain), and ``cell_type_published`` (of the v1 cells, else ``Unassigned``).

    Raises
    ------
    FileNotFoundError, OSError
        If the file is nowhere, or cannot be downloaded.
    ValueError
        If its checksum is wrong.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> scvip.datasets.pbmc_10x_4chemistries().shape  # doctest: +SKIP
    (5521, 10887)
    """
    return _read("pbmc_10x_4chemistries.h5ad")


def pbmc_facs_zheng() -> AnnData:
    """Blood cells of ten populations, sorted by surface proteins and sequenced one by one :cite:p:`Zheng2017`.

    Raw counts of 3,874 cells and 14,107 genes, 10x v1 chemistry, 2,000 counts per cell. The label is the sort gate, an
    experiment of its own: label and library cannot be told apart, so there is one ``batch``, and the set is not for
    integration. T cell subsets overlap in expression; CD34+ cells are heterogeneous.

    Public data of 10x Genomics (CC BY 4.0), subsampled by the repository ``stephenslab/fastTopics`` (BSD-2-Clause).
    File of 7 MB, found or downloaded as :mod:`scanpy_scvipyro.datasets` says.

    Returns
    -------
    AnnData with counts in ``.X`` (CSR, float32), in ``.obs`` the gate (``cell_type``, 10 kinds), ``subpop`` (5 coarse
    ones), ``split`` (``train`` or ``test``, 100 cells) and ``batch`` (all alike), and in ``.var`` the Ensembl
    ``gene_id``.

    Raises
    ------
    FileNotFoundError, OSError
        If the file is nowhere, or cannot be downloaded.
    ValueError
        If its checksum is wrong.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> scvip.datasets.pbmc_facs_zheng().shape  # doctest: +SKIP
    (3874, 14107)
    """
    return _read("pbmc_facs_zheng.h5ad")


def neurons_10x_10k() -> AnnData:
    """Ten thousand cells of an embryonic mouse brain, with few genes: small and quick :cite:p:`Zheng2017`.

    Raw counts of 9,920 cells and 613 genes (the first 1,000 of the annotation, without those that hardly occur), 160
    counts per cell, without labels.

    The first cells of the public set of 1.3 million by 10x Genomics (CC BY 4.0), from the tests of the repository
    ``scverse/scanpy`` (BSD-3-Clause). File of 1.5 MB, found or downloaded as :mod:`scanpy_scvipyro.datasets` says.

    Returns
    -------
    AnnData with counts in ``.X`` (CSR, float32), the library in ``.obs["batch"]`` (``lib1``, and 30 cells of ``lib2``),
    and in ``.var`` the Ensembl ``gene_id``.

    Raises
    ------
    FileNotFoundError, OSError
        If the file is nowhere, or cannot be downloaded.
    ValueError
        If its checksum is wrong.

    Examples
    --------
    >>> import scanpy_scvipyro as scvip
    >>> scvip.datasets.neurons_10x_10k().shape  # doctest: +SKIP
    (9920, 613)
    """
    return _read("neurons_10x_10k_1000genes.h5ad")


def _read(name: str) -> AnnData:
    from anndata import read_h5ad

    return read_h5ad(_fetch.fetch(name))
