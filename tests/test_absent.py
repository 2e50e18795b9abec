"""Genes that a whole batch lacks are named: by the report, and where they would be moved to other batches."""

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scanpy_scvipyro as scvip
from scanpy_scvipyro import absent, data


def pairs(adata, batch_key="batch"):
    spec = data.describe(adata, data.DataSpec(batch_key=batch_key), np.ones(adata.n_vars, dtype=bool))
    return absent.absent_genes(data.load(adata, spec)).tolist()


def without(adata, genes, batch):
    """Take the counts of the genes from the cells of a batch."""
    counts = adata.X.toarray()
    counts[np.ix_(adata.obs["batch"] == batch, adata.var_names.isin(genes))] = 0
    adata.X = sparse.csr_matrix(counts)
    return adata


@pytest.fixture
def frequent(mixtures):
    """Names of the genes that are found in most cells."""
    return mixtures.var_names[np.argsort(-np.ravel((mixtures.X > 0).mean(axis=0)))].tolist()


class TestFinding:
    def test_genes_that_a_batch_lacks_are_found(self, mixtures, frequent):
        genes = sorted(frequent[20:23])
        without(mixtures, genes, "celseq2_3cl")
        assert pairs(mixtures) == [[1, gene] for gene in np.flatnonzero(mixtures.var_names.isin(genes))]

    def test_a_gene_with_a_single_count_is_there(self, mixtures, frequent):
        without(mixtures, frequent[20:21], "celseq2_3cl")
        counts = mixtures.X.tolil()
        counts[np.flatnonzero(mixtures.obs["batch"] == "celseq2_3cl")[7], mixtures.var_names.get_loc(frequent[20])] = 1
        mixtures.X = counts.tocsr()
        assert pairs(mixtures) == []

    @pytest.mark.parametrize("n_cells", [5, 200])
    def test_genes_of_a_rare_type_are_not_missed(self, mixtures, frequent, n_cells):
        # Many counts in five cells: a type that another batch may lack by chance. It would have some of 200.
        gene, other = mixtures.var_names.get_loc(frequent[0]), np.flatnonzero(mixtures.obs["batch"] != "celseq2_3cl")
        counts = mixtures.X.toarray()
        counts[:, gene] = 0
        counts[np.random.default_rng(0).choice(other, n_cells, replace=False), gene] = 100
        mixtures.X = sparse.csr_matrix(counts)
        assert pairs(mixtures) == ([[1, gene]] if n_cells == 200 else [])

    def test_batches_of_few_cells_and_shallow_ones_are_not_judged(self, mixtures, frequent):
        few = mixtures[(mixtures.obs["batch"] != "celseq2_3cl") | (np.arange(1345) % 20 == 0)].copy()
        assert pairs(without(few, frequent[20:30], "celseq2_3cl")) == []

    def test_without_batches_no_gene_is_absent(self, mixtures, frequent):
        mixtures.X = without(mixtures, frequent[:3], "celseq2_3cl").X
        assert pairs(mixtures, None) == []

    def test_real_protocols_of_the_same_cells_lack_no_gene(self, mixtures):
        assert pairs(mixtures) == []


@pytest.fixture(scope="module")
def _lacking(_mixtures, train_quickly):
    adata = without(_mixtures.copy(), _mixtures.var_names[[5, 40]], "dropseq_3cl")
    counts = adata.X.toarray()
    counts[adata.obs["batch"] != "dropseq_3cl"] += adata.var_names.isin(adata.var_names[[5, 40]])
    adata.X = sparse.csr_matrix(counts)
    train_quickly(adata, batch_key="batch")
    return adata


@pytest.fixture
def lacking(_lacking):
    """A model of data of which a batch lacks two genes."""
    return _lacking.copy()


class TestWarning:
    @pytest.mark.parametrize("transform_batch", ["all", "dropseq_3cl", ["10x_3cl", "celseq2_3cl"]])
    def test_imputing_them_in_other_batches_is_warned_of(self, lacking, warned, transform_batch):
        scvip.tl.impute(lacking, transform_batch=transform_batch, progress_bar=False)
        (warning,) = warned()
        named = ", ".join(f"{lacking.var_names[gene]} (dropseq_3cl)" for gene in (5, 40))
        assert warning.startswith(f"WARNING: 2 of 701 genes have no count in a whole batch: {named}. ")

    def test_simulating_them_in_another_batch_is_warned_of(self, lacking, warned):
        scvip.tl.posterior_predictive(lacking, transform_batch="10x_3cl", progress_bar=False)
        assert "2 of 701 genes have no count in a whole batch" in warned()[0]

    def test_in_their_own_batch_they_are_not_warned_of(self, lacking, warned):
        scvip.tl.impute(lacking, progress_bar=False)
        scvip.tl.posterior_predictive(lacking, progress_bar=False)
        assert warned() == []

    def test_other_genes_are_not_warned_of(self, lacking, warned):
        genes = lacking.var_names[[6, 41]]
        scvip.tl.impute(lacking, transform_batch="all", genes=genes, progress_bar=False)
        assert warned() == []

    def test_a_query_and_a_file_know_of_them(self, lacking, mixtures, warned, tmp_path):
        lacking.write_h5ad(tmp_path / "lacking.h5ad")
        query = mixtures[mixtures.obs["batch"] == "10x_3cl"][::20].copy()
        scvip.tl.map_query(query, ad.read_h5ad(tmp_path / "lacking.h5ad"))
        warned()
        scvip.tl.impute(query, transform_batch="all", progress_bar=False)
        assert len(warned()) == 1

    def test_the_report_names_them(self, lacking):
        (finding,) = absent.lacking(lacking.uns["scvi_pyro"])
        assert finding.title == "2 genes are missing from a whole batch"
        assert f"{lacking.var_names[5]} (dropseq_3cl)" in finding.found


@pytest.mark.usefixtures("no_windows")
def test_the_page_of_the_report_names_them(lacking, tmp_path):
    scvip.pl.report(lacking, path=tmp_path / "report.html", max_cells=200)
    assert f"{lacking.var_names[5]} (dropseq_3cl)" in (tmp_path / "report.html").read_text()


def test_genes_that_an_older_annotation_lacks_are_found(data_directory):
    # The counts of one chemistry were aligned to hg19, those of the three others to GRCh38.
    adata = scvip.datasets.pbmc_10x_4chemistries()
    older = sorted(adata.obs["batch"].unique()).index("10x_v1_3k")
    found = pairs(adata)
    assert np.mean([batch == older for batch, _ in found]) > 0.9
    assert {"UQCR11", "PSMA2", "NDUFA7"} <= {adata.var_names[gene] for _, gene in found}
