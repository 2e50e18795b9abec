"""The generative model of scVI and its guide, as Pyro programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn

from scanpy_scvipyro.likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from scanpy_scvipyro.networks import Decoder, Encoder, Hidden
from scanpy_scvipyro.normals import Normals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyro.distributions import TorchDistribution

    from scanpy_scvipyro.networks import Activation, Normalization

GeneLikelihood = Literal["zinb", "nb", "poisson"]
Dispersion = Literal["gene", "gene-batch", "gene-label", "gene-cell"]
EncoderInput = Literal["log_normalized", "log_counts"]

OFFSET_SCALE = 0.5
"""Standard deviation of the prior of a batch's offsets, on the natural log scale (docs/recipe.md)."""
BESIDE_OFFSET = 0.3
"""What one-hot vectors of batches are scaled by beside leading offsets, and so how fast their weights learn."""


def reads_labels(module: str, options: Mapping[str, Any]) -> bool:
    """Whether a model of this class reads the labels of cells: ours in one case, those of users as they like."""
    is_ours, is_by_label = module == "SCVI", options["dispersion"] == "gene-label"
    return not is_ours or (is_by_label and options["gene_likelihood"] != "poisson")


class Cells(NamedTuple):
    """What the model sees of a minibatch of cells."""

    counts: Tensor | None
    """(n_cells, n_genes), dense or sparse COO; None to sample counts instead of observing them."""
    library_size: Tensor
    """(n_cells, 1), counts per cell, or size factors."""
    batch: Tensor
    """(n_cells,), code of the batch."""
    label: Tensor
    """(n_cells,), code of the label; 0 without labels."""
    categorical: Tensor
    """(n_cells, n_categorical), codes of further categorical covariates."""
    continuous: Tensor
    """(n_cells, n_continuous), further continuous covariates."""


class SCVI(PyroModule):
    r"""scVI :cite:p:`Lopez2018`: counts of genes from a low-dimensional latent code per cell.

    .. math::

        z_n &\sim \mathrm{Normal}(0, I) \quad \text{or a mixture of Normals} \\
        \rho_n &= \mathrm{softmax}(f(z_n, s_n) + W s_n) \\
        x_{ng} &\sim \mathrm{NB}(\ell_n \rho_{ng}, \theta_g)

    with batch :math:`s_n` (one-hot), library size :math:`\ell_n`, inverse dispersion :math:`\theta`, decoder network
    :math:`f`, and offsets :math:`W` of each batch and gene. The arguments, other likelihoods among them, are those of
    :func:`scanpy_scvipyro.tl.scvi_pyro`. Subclass it, edit :meth:`model`, and train the result with
    ``tl.scvi_pyro(adata, module=YourClass)``.

    Parameters live in the module and never in Pyro's global parameter store.
    """

    n_cells: float = math.inf
    """Number of cells, over which the prior of the offsets is spread; set before training."""
    warmup: float = 1.0
    """How far the KL weight has risen, from 0 to 1; set in training."""

    def __init__(
        self,
        n_genes: int,
        n_batches: int = 1,
        *,
        n_labels: int = 1,
        n_categories: Sequence[int] = (),
        n_continuous: int = 0,
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
        encoder_input: EncoderInput = "log_counts",
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: Literal["one-hot", "embedding", "offset"] = "one-hot",
        n_batch_embedding: int = 5,
        has_batch_offset: bool = True,
        has_size_factor: bool = False,
        decoder: Literal["nonlinear", "linear"] = "nonlinear",
        prior: Literal["normal", "mixture"] = "normal",
        n_prior_components: int = 50,
        batch_alignment: float = 0.0,
    ) -> None:
        super().__init__()
        self.n_genes, self.n_batches, self.n_latent = n_genes, n_batches, n_latent
        self.n_categories = tuple(n_categories)
        self.gene_likelihood, self.dispersion, self.library = gene_likelihood, dispersion, library
        self.encode_covariates = encode_covariates

        self.batch_representation = batch_representation
        n_batch_columns = n_batches if n_batches > 1 else 0
        self.batch_embedding = None
        if batch_representation == "embedding" and n_batch_columns:
            self.batch_embedding = nn.Embedding(n_batches, n_batch_embedding)
            n_batch_columns = n_batch_embedding
        n_covariates = n_continuous + n_batch_columns + sum(n for n in self.n_categories if n > 1)

        encoder_hidden = Hidden(
            n_hidden, n_layers, dropout_rate, activation, encoder_normalization, deeply_inject_covariates
        )
        self.encoder_hidden = encoder_hidden
        # No dropout in the decoder: it would be noise on the mean of every count.
        decoder_hidden = encoder_hidden._replace(dropout_rate=0.0, normalization=decoder_normalization)
        n_encoded = n_covariates if encode_covariates else 0
        self.encoder = Encoder(n_genes, n_encoded, n_latent, encoder_hidden)
        self.decoder = Decoder(
            n_latent,
            n_covariates,
            n_genes,
            None if decoder == "linear" else decoder_hidden,
            has_dropout=gene_likelihood == "zinb",
            has_dispersion=gene_likelihood != "poisson" and dispersion == "gene-cell",
            # Size factors set no total of the counts, so that cells with more RNA can be told from others.
            normalize=not has_size_factor,
        )
        # W of the equations.
        self.offset = nn.Parameter(torch.zeros(n_batches, n_genes)) if has_batch_offset and n_batches > 1 else None
        if gene_likelihood != "poisson" and dispersion != "gene-cell":
            rows = {"gene": (), "gene-batch": (n_batches,), "gene-label": (n_labels,)}[dispersion]
            # One start for all: from a random one, genes whose theta starts low take their dropout for dispersion, and
            # the held-out ELBO is 3 to 14 nats per cell worse (docs/model.md).
            self.log_inverse_dispersion = nn.Parameter(torch.ones(*rows, n_genes))
        if library == "latent":
            self.library_encoder = Encoder(n_genes, n_encoded, 1, encoder_hidden._replace(n_layers=1))
            # Mean and standard deviation of the log library size, per batch; set from the data before training.
            self.register_buffer("library_loc", torch.zeros(n_batches, 1))
            self.register_buffer("library_scale", torch.ones(n_batches, 1))
        self.typical_depth: Tensor | None
        # Counts per cell that the encoder scales all cells to; set from the data before training.
        self.register_buffer("typical_depth", torch.ones(()) if encoder_input == "log_normalized" else None)
        if prior == "mixture":
            self.prior_logits = nn.Parameter(torch.zeros(n_prior_components))
            self.prior_loc = nn.Parameter(torch.randn(n_prior_components, n_latent))
            self.prior_log_scale = nn.Parameter(torch.zeros(n_prior_components, n_latent))
        self.has_mixture_prior = prior == "mixture"
        self.has_leading_offset = batch_representation == "offset" and self.offset is not None
        self.batch_alignment = batch_alignment if n_batches > 1 else 0.0
        self.code_sums: Tensor | None
        # Codes of late minibatches, and cells, summed by batch and component; a state of training, as in an optimizer.
        self.register_buffer("code_sums", None, persistent=False)

    @torch.no_grad()
    def start_from(
        self,
        log_frequency: Tensor,
        batch_log_frequency: Tensor,
        batch_log_library_size: tuple[Tensor, Tensor],
        batch_offset: float,
    ) -> None:
        """Set what the data tell before training.

        The decoder starts at the mean frequencies of the genes, and each batch at a share of its deviation from them.
        Small output weights let the latent code grow from nothing. A latent library size gets its prior. The depth
        that the encoder scales cells to is the geometric mean, in which every batch counts the same.
        """
        if self.typical_depth is not None:
            self.typical_depth = batch_log_library_size[0].mean().exp()
        if self.library == "latent":
            self.library_loc, self.library_scale = batch_log_library_size
            self.library_encoder.loc.bias.fill_(self.library_loc.mean())
        rate = self.decoder.rate
        rate.weight.mul_(0.1)
        rate.bias.copy_(log_frequency)
        if self.offset is not None:
            self.offset.copy_(batch_offset * (batch_log_frequency - log_frequency))

    def model(self, cells: Cells, kl_weight: float = 1.0) -> Tensor:
        """p(z) p(library size) p(counts | z, library size, batch)."""
        with pyro.plate("cells", len(cells.batch)):
            with poutine.scale(scale=kl_weight):
                prior = self.prior()
                z = pyro.sample("z", prior)
                library_size = cells.library_size
                if self.library == "latent":
                    library_size = pyro.sample("library_size", self.library_prior(cells.batch))
                self.align(prior, z, cells.batch)
            self.shrink(cells.batch)
            return pyro.sample("x", self.likelihood(z, library_size, cells).to_event(1), obs=cells.counts)

    def guide(self, cells: Cells, kl_weight: float = 1.0) -> None:
        """q(z | counts) q(library size | counts)."""
        assert cells.counts is not None, "the guide infers latent codes from counts"
        counts = cells.counts.to_dense()
        covariates = self.covariates(cells) if self.encode_covariates else counts[:, :0]
        with pyro.plate("cells", len(cells.batch)), poutine.scale(scale=kl_weight):
            pyro.sample("z", dist.Normal(*self.encoder(self.encoded(counts, cells.batch), covariates)).to_event(1))
            if self.library == "latent":
                posterior = dist.LogNormal(*self.library_encoder(torch.log1p(counts), covariates))
                pyro.sample("library_size", posterior.to_event(1))

    def encoded(self, counts: Tensor, batch: Tensor) -> Tensor:
        """Return what the encoder sees of dense counts; log1p, since they span five orders of magnitude.

        Cells are scaled to one depth, so that codes need not learn to forget it, which differs between batches. Leading
        offsets are taken off for the same reason.
        """
        if self.has_leading_offset:
            assert self.offset is not None
            counts = counts * F.embedding(batch, self.offset.detach().neg().exp_())
        if self.typical_depth is not None:
            counts = counts * (self.typical_depth / counts.sum(dim=1, keepdim=True).clamp_min(1))
            return counts.log1p_()
        return torch.log1p(counts)

    def prior(self) -> TorchDistribution:
        """p(z): standard Normal, or a mixture of Normals whose parameters are learnt."""
        if not self.has_mixture_prior:
            loc = self.decoder.rate.weight.new_zeros(self.n_latent)
            return dist.Normal(loc, torch.ones_like(loc)).to_event(1)
        components = Normals(dist.Normal(self.prior_loc, self.prior_log_scale.exp()), 1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.prior_logits), components)

    def align(self, prior: TorchDistribution, z: Tensor, batch: Tensor) -> None:
        """Penalize, in training, batches that are apart within components of a mixture prior.

        Only once the KL weight is full and codes tell types apart: earlier, two types that are in one batch each would
        share a component, and be aligned for good.
        """
        is_time = self.training and self.warmup >= 1
        if is_time and self.batch_alignment and isinstance(prior, dist.MixtureSameFamily):
            pyro.factor("alignment", -self.batch_alignment * self.misalignment(prior, z, batch))

    def shrink(self, batch: Tensor) -> None:
        """p(W), in training, where offsets lead: those of rare genes and of small batches stay low."""
        if self.training and self.has_leading_offset:
            assert self.offset is not None
            log_prior = dist.Normal(0.0, OFFSET_SCALE).log_prob(self.offset).sum()
            pyro.factor("offset_prior", (log_prior / self.n_cells).expand(batch.shape))

    def misalignment(self, prior: dist.MixtureSameFamily, z: Tensor, batch: Tensor) -> Tensor:
        """How far batches are apart within the components of the prior, at the batch of each cell, (n_cells,).

        This is the distance of the mean code of a batch from that of all batches, both over the cells of a component.
        The more it was, of late, above what is usual for the batch, the less it counts, by the weights of Geman and
        McClure :cite:p:`Geman1987`: a batch effect moves most types, and where a single type is far from the others of
        its component, it is another type.
        """
        components = prior.component_distribution
        # Not to be changed by training, which could make distances small by components of one batch each.
        with torch.no_grad():
            log_density = components.log_prob(z[:, None]) + prior.mixture_distribution.logits
            membership = log_density.softmax(dim=1)
        weighted = membership[..., None] * F.pad(z, (0, 1), value=1.0)[:, None]
        # (n_batches, n_components, n_latent + 1)
        sums = weighted.new_zeros(self.n_batches, *weighted.shape[1:]).index_add_(0, batch, weighted)
        with torch.no_grad():
            # One minibatch has a cell or two of a batch in a component.
            self.code_sums = sums.detach() if self.code_sums is None else 0.98 * self.code_sums + sums
            distance, n_cells = _distance(self.code_sums, components), self.code_sums[..., -1]
            usual = ((distance.sqrt() * n_cells).sum(dim=1) / n_cells.sum(dim=1).clamp_min(1e-6)).square()
            trust = (1 + distance / (3 * usual + 1e-6)[:, None]).pow(-2)
            # The mean of a cell or two is these cells: pulling them to that of the component would make it narrower.
            trust = trust * (sums[..., -1] > 2)
        return (membership * F.embedding(batch, trust * _distance(sums, components))).sum(dim=1)

    def library_prior(self, batch: Tensor) -> TorchDistribution:
        """p(library size | batch)."""
        return dist.LogNormal(self.library_loc[batch], self.library_scale[batch]).to_event(1)

    def likelihood(self, z: Tensor, library_size: Tensor, cells: Cells) -> TorchDistribution:
        """p(x | z, library size, batch): independent counts, (n_cells, n_genes)."""
        log_rho, dropout_logits, log_theta = self.decode(z, cells)
        log_mean = log_rho + library_size.log()
        if self.gene_likelihood == "poisson":
            return Poisson(log_mean)
        if log_theta is None:
            codes = {"gene-batch": cells.batch, "gene-label": cells.label}.get(self.dispersion)
            log_theta = self.log_inverse_dispersion if codes is None else self.log_inverse_dispersion[codes]
        if dropout_logits is None:
            return NegativeBinomial(log_mean, log_theta)
        return ZeroInflatedNegativeBinomial(log_mean, log_theta, dropout_logits)

    def decode(self, z: Tensor, cells: Cells) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log frequency (or rate per size factor), dropout logits (ZINB), log theta (gene-cell dispersion)."""
        offset = 0.0 if self.offset is None else F.embedding(cells.batch, self.offset)
        return self.decoder(z, self.covariates(cells), offset)

    def covariates(self, cells: Cells) -> Tensor:
        """Design matrix of the covariates, (n_cells, n_covariates): continuous, batch, categorical."""
        parts = [cells.continuous]
        if self.batch_embedding is not None:
            parts.append(self.batch_embedding(cells.batch))
        elif self.n_batches > 1:
            scale = BESIDE_OFFSET if self.has_leading_offset else 1
            parts.append(scale * F.one_hot(cells.batch, self.n_batches))
        parts += [F.one_hot(codes, n) for codes, n in zip(cells.categorical.T, self.n_categories, strict=True) if n > 1]
        return torch.cat(parts, dim=-1).to(cells.library_size.dtype)


def _distance(sums: Tensor, components: Normals) -> Tensor:
    """Squared distance of the mean code of a batch from that of all, in variances of each component.

    Components that are not trained are those of a reference, whose cells are elsewhere: the mean of the component
    stands for theirs.
    """
    of_all = _mean(sums.sum(dim=0)) if components.mean.requires_grad else components.mean
    return ((_mean(sums) - of_all).square() / components.variance.detach()).mean(dim=-1)


def _mean(sums: Tensor) -> Tensor:
    """Mean from the weighted sum of values and, last, of weights."""
    return sums[..., :-1] / (sums[..., -1:] + 1e-6)
