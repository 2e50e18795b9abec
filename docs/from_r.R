# Rscript from_r.R counts.rds fitted.rds sample: a SingleCellExperiment with counts, and one with codes from scVI.
suppressPackageStartupMessages({
  library(SingleCellExperiment)
  library(anndataR)
})
arguments <- commandArgs(trailingOnly = TRUE)
cells <- readRDS(arguments[1])

folder <- tempfile("scvi")
dir.create(folder)
counts <- file.path(folder, "counts.h5ad")
fitted <- file.path(folder, "fitted.h5ad")
write_h5ad(as_AnnData(cells, x_mapping = "counts"), counts)

options <- c("--batch-key", arguments[3], "--n-top-genes", "2000", "--no-impute")
code <- system2("scanpy-scvipyro", c("fit", counts, "-o", fitted, options))
if (code != 0) stop("scanpy-scvipyro ended with code ", code)

codes <- read_h5ad(fitted)$obsm[["X_scvi_pyro"]]
dimnames(codes) <- list(colnames(cells), paste0("scvi_", seq_len(ncol(codes))))
reducedDim(cells, "scvi") <- codes
saveRDS(cells, arguments[2])
