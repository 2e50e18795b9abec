"""The generative model of scANVI: scVI with a class of each cell, known for some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from scanpy_scvipyro.model import SCVI
from scanpy_scvipyro.networks import HiddenLayers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyro.distributions import TorchDistribution

    from scanpy_scvipyro.model import Cells


class SCANVI(SCVI):
    r"""scANVI :cite:p:`Xu2021`: scVI whose latent codes have a density per label.

    .. math::

        y_n &\sim \mathrm{Categorical}(\pi) \\
        z_n \mid y_n &\sim \mathrm{Normal}(\mu_{y_n}, \mathrm{diag}\,\sigma^2_{y_n})

    and all else as in :class:`~scanpy_scvipyro.model.SCVI`. :math:`y_n` is one of the labels, or one of
    ``n_prior_components`` free components, for cells that no label describes. Cells without a label sum over all
    :math:`y_n`: exactly, and in the prior alone, so that labels cost next to nothing. A network :math:`q(y_n \mid z_n)`
    learns to tell the labels from the codes, and the codes to be told apart.

    ``Cells.label`` is 0 for cells without a label, and counts the labels from 1.
    """

    def __init__(
        self,
        n_genes: int,
        n_batches: int = 1,
        *,
        n_labels: int,
        n_prior_components: int = 50,
        n_classifier_layers: int = 1,
        **options: Any,
    ) -> None:
        options |= {"prior": "mixture", "n_prior_components": n_labels + n_prior_components}
        super().__init__(n_genes, n_batches, n_labels=n_labels, **options)
        self.n_labels = n_labels
        hidden = self.encoder_hidden._replace(n_layers=n_classifier_layers)
        self.classifier_hidden = HiddenLayers(self.n_latent, 0, hidden)
        n_features = hidden.n_hidden if n_classifier_layers else self.n_latent
        self.classifier_logits = nn.Linear(n_features, n_labels)
        self.register_buffer("classification_weight", torch.ones(()))

    @torch.no_grad()
    def continue_from(self, weights: Mapping[str, Tensor]) -> None:
        """Start from the weights of a trained SCVI; the components of a mixture prior become the free ones."""
        state = self.state_dict()
        for name, value in weights.items():
            (state[name][self.n_labels :] if name.startswith("prior_") else state[name]).copy_(value)

    @torch.no_grad()
    def start_densities(self, codes: Tensor, label: Tensor) -> None:
        """Put the density of each label where the codes of its cells are, (n_cells, n_latent)."""
        for i in range(self.n_labels):
            members = codes[label == i + 1]
            if len(members):
                self.prior_loc[i] = members.mean(dim=0)
                self.prior_log_scale[i] = members.std(dim=0).clamp_min(0.1).log() if len(members) > 1 else 0.0

    @torch.no_grad()
    def weigh_labels(self, label: Tensor) -> None:
        """Let few labels count as much as if every cell had one, so that the counts of all cells do not drown them."""
        self.classification_weight.fill_(len(label) / int((label > 0).sum()))

    def model(self, cells: Cells, kl_weight: float = 1.0) -> Tensor:
        """p(z | label) p(library size) q(label | z) p(counts | z, library size, batch)."""
        is_labelled = cells.label > 0
        with pyro.plate("cells", len(cells.batch)):
            with poutine.scale(scale=kl_weight):
                prior = self.prior(cells.label)
                z = pyro.sample("z", prior)
                # By the components of all cells: those without a label take others than the labels' own where a batch
                # has none, and would not be brought to the labelled ones (docs/benchmarks.md).
                self.align(self.prior(), z, cells.batch)
                library_size = cells.library_size
                if self.library == "latent":
                    library_size = pyro.sample("library_size", self.library_prior(cells.batch))
            self.shrink(cells.batch)
            with poutine.scale(scale=self.classification_weight):
                label = dist.Categorical(logits=self.classify(z))
                pyro.sample("y", label.mask(is_labelled), obs=(cells.label - 1).clamp_min(0))
            return pyro.sample("x", self.likelihood(z, library_size, cells).to_event(1), obs=cells.counts)

    def prior(self, label: Tensor | None = None) -> TorchDistribution:
        """p(z | label), of all components where the label is 0; p(z) without labels."""
        prior = super().prior()
        if label is None:
            return prior
        component = torch.arange(1, len(self.prior_logits) + 1, device=label.device)
        is_possible = (label[:, None] == 0) | (label[:, None] == component)
        weights = dist.Categorical(logits=torch.where(is_possible, self.prior_logits, -torch.inf))
        return dist.MixtureSameFamily(weights, prior.component_distribution)

    def classify(self, z: Tensor) -> Tensor:
        """Logits of q(label | z), (n_cells, n_labels)."""
        logits: Tensor = self.classifier_logits(self.classifier_hidden(z, z[..., :0]))
        return logits
