"""Pyro's ELBO with analytic KL divergences, without a look at its value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyro.poutine import Trace
    from torch import Tensor


class MeanFieldELBO(TraceMeanField_ELBO):
    """The same loss and gradients as ``TraceMeanField_ELBO`` has.

    Pyro reads the loss as a number, twice, and whether it or its gradient is NaN. Each time the host waits until a GPU
    has finished, and the GPU then waits for the host. A training that diverges is found at the end of the epoch.
    """

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return the negative ELBO, averaged over the particles."""
        traces = self._get_traces(model, guide, args, kwargs)
        loss: Tensor = -sum(_elbo(model_trace, guide_trace) for model_trace, guide_trace in traces) / self.num_particles
        return loss


def _elbo(model: Trace, guide: Trace) -> Tensor:
    """Sum over observed sites, and over latent ones by their KL divergence, or one sample where torch has none."""
    elbo: Any = 0.0
    for name, site in model.nodes.items():
        if site["type"] != "sample":
            continue
        elbo_of_site: Any
        if site["is_observed"]:
            elbo_of_site = site["log_prob_sum"]
        else:
            posterior = guide.nodes[name]
            try:
                kl = kl_divergence(posterior["fn"], site["fn"])
                elbo_of_site = -scale_and_mask(kl, posterior["scale"], posterior["mask"]).sum()
            except NotImplementedError:
                elbo_of_site = site["log_prob_sum"] - posterior["score_parts"].entropy_term.sum()
        elbo = elbo + elbo_of_site
    for name, site in guide.nodes.items():
        if site["type"] == "sample" and name not in model.nodes:  # auxiliary
            elbo = elbo - site["score_parts"].entropy_term.sum()
    return elbo
