"""Encoder and decoder networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

Activation = Literal["relu", "gelu", "silu", "leaky_relu", "tanh"]
Normalization = Literal["batch", "layer", "none"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}


class Hidden(NamedTuple):
    """Shape of the hidden layers of a network."""

    n_hidden: int
    n_layers: int
    dropout_rate: float
    activation: Activation
    normalization: Normalization
    deeply_inject_covariates: bool


class HiddenLayers(nn.Module):
    """Fully connected layers, each of linear map, normalization, activation and dropout.

    The covariates join the input of the first layer, and of every further one where they are injected deeply.
    """

    def __init__(self, n_in: int, n_covariates: int, hidden: Hidden) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.n_covariates = [
            n_covariates if i == 0 or hidden.deeply_inject_covariates else 0 for i in range(hidden.n_layers)
        ]
        for n_injected in self.n_covariates:
            layer: list[nn.Module] = [nn.Linear(n_in + n_injected, hidden.n_hidden)]
            if hidden.normalization == "batch":
                # The epsilon of scVI, but ten times its momentum: the running mean must follow trainings of 200 steps.
                layer.append(nn.BatchNorm1d(hidden.n_hidden, momentum=0.1, eps=0.001))
            elif hidden.normalization == "layer":
                layer.append(nn.LayerNorm(hidden.n_hidden, elementwise_affine=False))
            layer.append(ACTIVATIONS[hidden.activation]())
            if hidden.dropout_rate > 0:
                layer.append(nn.Dropout(hidden.dropout_rate))
            self.layers.append(nn.Sequential(*layer))
            n_in = hidden.n_hidden

    def forward(self, x: Tensor, covariates: Tensor) -> Tensor:
        for layer, n_injected in zip(self.layers, self.n_covariates, strict=True):
            if n_injected:
                # A product of its own, so that further categories do not change the order in which the rest is summed:
                # what the model says of known ones stays as it was to the bit.
                linear, *rest = layer.children()
                assert isinstance(linear, nn.Linear)
                own, injected = linear.weight.tensor_split([-n_injected], dim=1)
                x = F.linear(x, own.contiguous(), linear.bias) + F.linear(covariates, injected.contiguous())
                for part in rest:
                    x = part(x)
            else:
                x = layer(x)
        return x


class Encoder(nn.Module):
    """Mean and standard deviation of a Normal per cell, from log counts and covariates."""

    def __init__(self, n_genes: int, n_covariates: int, n_out: int, hidden: Hidden) -> None:
        super().__init__()
        self.hidden = HiddenLayers(n_genes, n_covariates, hidden)
        self.loc = nn.Linear(hidden.n_hidden, n_out)
        self.log_variance = nn.Linear(hidden.n_hidden, n_out)

    def forward(self, log_counts: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
        features = self.hidden(log_counts, covariates)
        # The constant keeps the KL divergence finite where the encoder is very sure of itself.
        return self.loc(features), (self.log_variance(features).exp() + 1e-4).sqrt()


class Decoder(nn.Module):
    """Log expected frequencies of the genes, and what else the likelihood needs, from latent codes and covariates.

    ``offset`` joins the output layer, on the log scale. Without hidden layers (``hidden=None``) the decoder is linear
    in the latent codes. Frequencies sum to one, unless they are relative to size factors (``normalize=False``).
    """

    def __init__(
        self,
        n_latent: int,
        n_covariates: int,
        n_genes: int,
        hidden: Hidden | None,
        *,
        has_dropout: bool,
        has_dispersion: bool,
        normalize: bool,
    ) -> None:
        super().__init__()
        self.hidden = HiddenLayers(n_latent, n_covariates, hidden) if hidden else None
        n_features = hidden.n_hidden if hidden else n_latent + n_covariates
        self.n_features, self.normalize = n_features, normalize
        self.rate = nn.Linear(n_features, n_genes)
        self.dropout_logits = nn.Linear(n_features, n_genes) if has_dropout else None
        self.log_inverse_dispersion = nn.Linear(n_features, n_genes) if has_dispersion else None

    def forward(
        self, z: Tensor, covariates: Tensor, offset: Tensor | float = 0.0
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        features = self.hidden(z, covariates) if self.hidden else torch.cat([z, covariates], dim=-1)
        rate = _at_least_float32(self.rate(features) + offset)
        return (
            rate.log_softmax(dim=-1) if self.normalize else rate,
            _at_least_float32(self.dropout_logits(features)) if self.dropout_logits else None,
            _at_least_float32(self.log_inverse_dispersion(features)) if self.log_inverse_dispersion else None,
        )


def _at_least_float32(values: Tensor) -> Tensor:
    """Also under mixed precision, since frequencies span seven orders of magnitude."""
    return values if values.dtype == torch.float64 else values.float()
