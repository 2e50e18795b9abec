"""The commands in the order of the help, each in a line: what can be said of them without importing them."""

SUMMARIES = {
    "fit": "Train scVI on raw counts: latent codes free of batch effects, imputed counts.",
    "annotate": "Train scANVI on counts and labels of some cells: labels of all cells.",
    "map": "Map new cells onto a trained model.",
    "impute": "Denoised expression from a trained model, in chosen batches.",
    "rank-genes": "Rank the genes that characterize groups of cells.",
    "abundance": "Find the cells that are more frequent in one condition, over samples.",
    "report": "Write one HTML page on a trained model, with warnings in plain words.",
    "convert": "Write a model as a file without cells, read it back; convert formats of data.",
    "demo": "Train on the data that come with the package, and draw what came of it.",
}
