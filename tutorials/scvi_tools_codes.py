"""Train scvi-tools with its defaults on the cells of the integration tutorial, and store its latent codes.

It takes five minutes on two cores, longer than a tutorial may. Needs the extra 'bench'; run it in this folder:
python scvi_tools_codes.py
"""

import numpy as np
import scanpy as sc
import scvi

import scanpy_scvipyro as scvip

adata = scvip.datasets.pbmc_10x_4chemistries()
sc.experimental.pp.highly_variable_genes(
    adata, n_top_genes=2000, flavor="pearson_residuals", batch_key="batch", subset=True
)

scvi.settings.seed = 0
scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
model = scvi.model.SCVI(adata)
model.train(enable_progress_bar=False, logger=False)
codes = model.get_latent_representation()
np.savez_compressed("scvi_tools_codes.npz", codes=codes.astype(np.float16), version=scvi.__version__)
