from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from scanpy_scvipyro._public import public
from scanpy_scvipyro.tl._train import train

if TYPE_CHECKING:
    from collections.abc import Iterable
    from os import PathLike

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger
    from pytorch_lightning.strategies import Strategy

    from scanpy_scvipyro.model import SCVI, Dispersion, EncoderInput, GeneLikelihood
    from scanpy_scvipyro.networks import Activation, Normalization


@public
def scvi_pyro(
    adata: AnnData,
    *,
    batch_key: str | None = None,
    layer: str | None = None,
    mask_var: NDArray[np.bool_] | str | None = None,
    labels_key: str | None = None,
    categorical_covariate_keys: Iterable[str] | str | None = None,
    continuous_covariate_keys: Iterable[str] | str | None = None,
    size_factor_key: str | None = None,
    n_latent: int = 10,
    n_hidden: int = 128,
    n_layers: int = 1,
    dropout_rate: float = 0.1,
    activation: Activation = "relu",
    encoder_normalization: Normalization = "batch",
    decoder_normalization: Normalization = "batch",
    gene_likelihood: GeneLikelihood = "nb",
    dispersion: Dispersion = "gene",
    library: Literal["observed", "latent"] = "observed",
    encoder_input: EncoderInput = "log_normalized",
    encode_covariates: bool = False,
    deeply_inject_covariates: bool = True,
    batch_representation: Literal["offset", "one-hot", "embedding"] = "offset",
    n_batch_embedding: int = 5,
    batch_offset: float | None = 0.0,
    decoder: Literal["nonlinear", "linear"] = "nonlinear",
    prior: Literal["normal", "mixture"] = "mixture",
    n_prior_components: int = 50,
    batch_alignment: float = 200.0,
    module: type[SCVI] | None = None,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    train_size: float = 0.9,
    learning_rate: float | None = None,
    kl_weight: float = 1.5,
    n_epochs_kl_warmup: int | None = None,
    early_stopping: bool = False,
    early_stopping_patience: int = 20,
    keep_best_on_interrupt: bool = False,
    accelerator: str = "auto",
    devices: int | str | list[int] = 1,
    num_nodes: int = 1,
    strategy: str | Strategy = "auto",
    precision: str | int = "32-true",
    logger: Logger | Iterable[Logger] | bool | None = False,
    callbacks: Callback | Iterable[Callback] | None = (),
    checkpoint: PathLike[str] | str | None = None,
    progress_bar: bool | None = None,
    impute: bool = True,
    key_added: str = "scvi_pyro",
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    r"""Fit scVI :cite:p:`Lopez2018` to raw counts: latent codes free of batch effects, and imputed counts.

    Counts are modelled by a negative binomial whose mean is the library size of a cell times gene frequencies that a
    neural network decodes from a latent code and the batch; a second network infers the code from the counts. Codes
    have a mixture of Normals as prior, and batches are aligned within its components. Model and guide are Pyro
    programs (:class:`~scanpy_scvipyro.model.SCVI`), trained together by maximizing the evidence lower bound (ELBO) on
    PyTorch Lightning.

    Parameters
    ----------
    adata
        AnnData with raw counts: whole numbers from 0, at least one count per cell, at least two cells. Dense or
        sparse, of any numeric type. 2,000 to 4,000 highly variable genes are a good choice.
    batch_key
        Column of ``adata.obs`` with the batch (sample, donor, plate, chemistry) whose effect is to be removed.
    layer
        Layer with the counts; by default ``adata.X``.
    mask_var
        Genes to model: a boolean array (n_vars,), or the name of such a column of ``adata.var``, for example
        ``"highly_variable"``. The imputed layer is NaN for all other genes.
    labels_key
        Column of ``adata.obs`` with labels of the cells. The model reads them with ``dispersion="gene-label"`` only;
        otherwise they are what plots and the report show by default.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of ``adata.obs`` whose effect is to be removed, categorical or numeric. Numeric ones may have
        any scale and offset: they are standardized, by their mean and standard deviation in these cells.
    size_factor_key
        Column of ``adata.obs`` with positive numbers, of any scale, that take the place of the library size. The
        frequencies of a cell's genes then need not sum to one.
    n_latent
        Dimensions of the latent code.
    n_hidden, n_layers
        Width and number of the hidden layers of encoder and decoder.
    dropout_rate
        Share of hidden units of the encoder that are dropped in training.
    activation
        Nonlinearity of the hidden layers.
    encoder_normalization, decoder_normalization
        Normalization of the hidden layers.
    gene_likelihood
        Negative binomial (``"nb"``), the same with dropout (zero-inflated, ``"zinb"``), or Poisson.
    dispersion
        What the inverse dispersion :math:`\theta` depends on: the gene, the gene and batch, the gene and label, or
        (decoded from the latent code) the gene and cell.
    library
        ``"observed"``: the library size is the sum of the counts (or the size factor). ``"latent"``: it is inferred,
        with a LogNormal prior per batch.
    encoder_input
        What the encoder sees of the counts: ``"log_normalized"``, log1p of the counts scaled to one depth, so that
        codes need not learn to forget the depth; or ``"log_counts"``, log1p of the counts as they are, as published.
    encode_covariates
        Whether the encoder, too, sees batch and covariates.
    deeply_inject_covariates
        Whether they join every hidden layer, not only the first.
    batch_representation
        What a batch is. ``"offset"``: mostly an offset of each gene, which cannot turn one cell type into another, so
        that similar types stay apart even if each is in one batch only. Offsets have a Normal prior and learn fast, the
        encoder reads counts without them, and the hidden layers of the decoder see the batch as a one-hot vector that
        learns slowly. ``"one-hot"``: the same vector at the rate of all else, as published. ``"embedding"``: a learnt
        vector of ``n_batch_embedding`` numbers in its place, for very many batches.
    n_batch_embedding
        Dimensions of the learnt batch vectors.
    batch_offset
        One additive term per batch and gene, on the log scale, joins the decoder's output. It starts at this share
        (0 to 1) of the batch's deviation from the mean log expression. ``None`` leaves it out: scVI as published.
    decoder
        ``"linear"`` makes each latent dimension a factor with gene loadings (LDVAE :cite:p:`Svensson2020`).
    prior
        Prior of the latent code: a mixture of ``n_prior_components`` Normals learnt from the data, which lets cell
        types be apart; or a standard Normal, as published.
    n_prior_components
        Components of the mixture prior.
    batch_alignment
        Weight, in training, of the distance between the mean codes of batches within each component of the mixture
        prior; 0 leaves it out, as published. Batches that differ in their cell types are not forced together: cells of
        different components are not compared, and distances above what is usual for a batch count less. Pass 10 where
        batches are samples of conditions whose cells differ.
    module
        Your subclass of :class:`~scanpy_scvipyro.model.SCVI`, to change the model itself.
    max_epochs
        Passes over the training cells. By default 60 up to 2,000 cells, 48 for 5,000, 23 for 100,000, at least 10; more
        for less than 1,000 cells: 110 for 300.
    batch_size
        Cells per minibatch, at least 2; by default 256, and 1,024 from 50,000 cells on.
    train_size
        Share of the cells to train on; the others are held out to measure the validation ELBO, 10,000 of them where
        there are more. All cells get results.
    learning_rate
        Peak of the one-cycle learning rate of Adam; by default 0.008, and more where minibatches of all devices
        together are larger than 256 cells: in proportion, up to the eightfold.
    kl_weight
        Weight of the KL divergence in training. Above 1 (:cite:p:`Higgins2017`), codes keep less of what tells single
        cells apart, and so also of the batch; held-out cells are fitted better. The ELBO that is reported has weight 1.
    n_epochs_kl_warmup
        Epochs over which the weight of the KL divergence rises linearly to ``kl_weight``; by default the first third.
    early_stopping
        Stop when the validation ELBO has not risen for ``early_stopping_patience`` epochs, and use the best weights.
    early_stopping_patience
        See ``early_stopping``.
    keep_best_on_interrupt
        With ``early_stopping``: on Ctrl-C, finish with the best weights so far instead of raising KeyboardInterrupt.
    accelerator, precision, logger, callbacks
        Handed to :class:`pytorch_lightning.Trainer`, but ``accelerator="auto"`` is CUDA or else the CPU. Precisions are
        ``"32-true"``, ``"64-true"``, ``"bf16-mixed"`` and ``"16-mixed"`` (on the CPU the same as ``"bf16-mixed"``);
        results are float32 with any. One logger or callback, or several. Files (logs, checkpoints) are only written if
        you pass a logger or a :class:`~pytorch_lightning.callbacks.ModelCheckpoint`.
    devices, num_nodes, strategy
        Number of devices of each machine to train on, or a list of GPUs; number of machines; and ``"auto"``, ``"ddp"``,
        ``"ddp_find_unused_parameters_true"`` (for a ``module`` of yours with parameters that not every step uses) or a
        strategy of Lightning. On several devices, a script runs once for each: started by ``torchrun`` or SLURM, or,
        on one machine, by Lightning. ``batch_size`` is then that of each device.
        ``adata`` gets codes and model in all processes, the imputed counts in the first. See :doc:`/scaling`.
    checkpoint
        File for the state of training, written at ends of epochs, at most once a minute. After a crash, Ctrl-C or a
        timeout, the same call goes on from there, to the same bits as without the interruption. It is removed once the
        results are in ``adata``. A file of other data, genes or options is refused; a full disk warns, and training
        goes on.
    progress_bar
        Whether to show a bar with epoch, ELBO and time left; by default if ``sc.settings.verbosity`` is above 0.
    impute
        Whether to write the imputed counts, 4 bytes per cell and gene.
    key_added
        Name of the results, see below.
    random_state
        Seed. The same seed gives the same result on the same machine with the same number of threads; the global
        random states are left alone.
    copy
        Whether to return a changed copy, instead of changing ``adata``.

    Returns
    -------
    ``None``, or a changed copy with ``copy=True``. Sets the following fields (with the default ``key_added``):

    ``adata.obsm["X_scvi_pyro"]`` : float32 array (n_obs, n_latent)
        Posterior mean of the latent code, for ``sc.pp.neighbors(adata, use_rep="X_scvi_pyro")``.
    ``adata.layers["scvi_pyro_imputed"]`` : float32 array (n_obs, n_vars)
        Expected counts at each cell's own sequencing depth.
    ``adata.uns["scvi_pyro"]`` : dict
        ``params``; ``history``, a DataFrame with the training and validation ELBO of each epoch in nats per cell, its
        two parts (reconstruction, KL divergence), KL weight and learning rate; ``weights`` and what else it takes to
        rebuild the model with :func:`scanpy_scvipyro.get.model`, as plain arrays. With
        ``batch_representation="embedding"`` also ``batch_embedding``, a DataFrame with the learnt vector of each batch.
    ``adata.varm["scvi_pyro_loadings"]`` : DataFrame (n_vars, n_latent)
        With ``decoder="linear"``: loadings of the genes, on the log scale.

    What an earlier model left under this name, and functions of ``tl`` wrote of it, is removed. A model that has learnt
    nothing, and batches that are not mixed at all, are warned of in Scanpy's log; :func:`scanpy_scvipyro.pl.report`
    says more.

    Raises
    ------
    ValueError, KeyError, TypeError
        If the data or an argument are not as described above; before any work starts.
    MemoryError
        If the imputed layer would not fit in the free memory; before any work starts.
    RuntimeError
        If training diverges. After any error and after Ctrl-C, ``adata`` is as before.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scanpy_scvipyro as scvip
    >>> adata = scvip.datasets.cell_mixtures()
    >>> scvip.tl.scvi_pyro(adata, batch_key="batch", max_epochs=2, progress_bar=False)
    >>> adata.obsm["X_scvi_pyro"].shape
    (1345, 10)
    >>> adata.uns["scvi_pyro"]["history"].index.tolist()
    [1, 2]
    """
    arguments = locals()  # of this call, and nothing else yet
    return train(arguments.pop("adata"), arguments)
