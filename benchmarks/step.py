"""What a training step is made of, in milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import _common
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import typer
from pytorch_lightning import Callback
from torch.nn.functional import linear

import scanpy_scvipyro as scvip
from scanpy_scvipyro import data, posterior
from scanpy_scvipyro.elbo import MeanFieldELBO


def main(
    genes: Annotated[int, typer.Option(help="Number of highly variable genes.")] = 2_000,
    batch_size: Annotated[int, typer.Option(help="Cells per minibatch.")] = 256,
    likelihood: Annotated[str, typer.Option(help="One of nb, zinb, poisson.")] = "nb",
    output: Annotated[Path | None, typer.Option(help="Folder for the table as Markdown and JSON.")] = None,
) -> None:
    """Time the parts of a step of the default model on a minibatch of PBMC, each by itself: medians of 200 calls.

    The parts overlap: each of the three steps holds what stands above it. Passes over a (cells x genes) buffer multiply
    it in place, the same again and again, or each of 64 in turn.
    """
    _common.quiet()
    adata = _common.load("pbmc", genes)
    cell_data = data.load(adata, data.describe(adata, data.DataSpec(batch_key="batch"), np.ones(genes, dtype=bool)))
    options = {"batch_key": "batch", "gene_likelihood": likelihood, "impute": False, "progress_bar": False}
    scvip.tl.scvi_pyro(adata, max_epochs=1, **options)
    model = scvip.get.model(adata).train()
    chosen = torch.randperm(cell_data.n_cells)[:batch_size]
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(is_validate=False):
        seconds = {name: median_seconds(part) for name, part in parts(model, cell_data, chosen).items()}
    steps = type("Steps", (_common.StepEnds, Callback), {})()
    scvip.tl.scvi_pyro(adata, max_epochs=3, batch_size=batch_size, callbacks=[steps], **options)
    seconds["step in Lightning, with the minibatch"] = steps.median_seconds()
    table = pd.DataFrame({"part": seconds.keys(), "ms": [1000 * value for value in seconds.values()]})
    _common.report(table, f"step_{likelihood}_{genes}_{batch_size}", output, decimals=3)


def parts(model: scvip.model.SCVI, cell_data: data.CellData, chosen: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Calls to time."""
    cells = cell_data.cells(chosen)
    counts, z = torch.log1p(cells.counts).to_dense(), torch.randn(len(chosen), model.n_latent)
    first, rate = model.encoder.hidden.layers[0][0].weight, model.decoder.rate.weight
    hidden, upstream = torch.randn(len(chosen), rate.shape[1], requires_grad=True), torch.rand_like(counts)
    with torch.no_grad():
        given = model.likelihood(z, cells.library_size, cells)
    parameters = [parameter.detach().requires_grad_() for parameter in given._parameters]
    observed = type(given)(*parameters).to_event(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    elbo = MeanFieldELBO()(model.model, model.guide)
    prior = model.prior()
    components = prior.component_distribution.base_dist
    shapes = [components.loc, components.scale]
    one_by_one = dist.MixtureSameFamily(prior.mixture_distribution, dist.Independent(components, 1))
    buffers = [torch.ones_like(counts) for _ in range(64)]

    def gradients(values: torch.Tensor, of: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(values.sum(), of, retain_graph=True)

    def matrix_products() -> None:
        linear(counts, first).backward(torch.ones(len(chosen), len(first)))
        linear(hidden, rate).backward(upstream)

    def step_without_pyro() -> None:
        optimizer.zero_grad()
        dense = cells.counts.to_dense()
        q = dist.Normal(*model.encoder(model.encoded(dense, cells.batch), dense[:, :0]))
        z, prior = q.rsample(), model.prior()
        kl = q.log_prob(z).sum() - prior.log_prob(z).sum()
        penalty = model.batch_alignment * model.misalignment(prior, z, cells.batch).sum()
        likelihood = model.likelihood(z, cells.library_size, cells).to_event(1)
        ((kl + penalty - likelihood.log_prob(cells.counts).sum()) / len(chosen)).backward()
        optimizer.step()

    def step() -> None:
        optimizer.zero_grad()
        (elbo(cells) / len(chosen)).backward()
        optimizer.step()

    def evaluation() -> None:
        model.eval()
        with torch.inference_mode():
            posterior.elbo_terms(model, cells)
        model.train()

    return {
        "a pass over a buffer in the cache": lambda: buffers[0].mul_(1.0),
        "a pass over one that is not": lambda: [buffer.mul_(1.0) for buffer in buffers],
        "minibatch": lambda: cell_data.cells(chosen),
        "matrix products": matrix_products,
        "likelihood": lambda: observed.log_prob(cells.counts),
        "likelihood with gradients": lambda: gradients(observed.log_prob(cells.counts), parameters),
        "densities of a mixture prior with gradients": lambda: gradients(prior.log_prob(z), shapes),
        "the same, of one Normal after the other": lambda: gradients(one_by_one.log_prob(z), shapes),
        "step without Pyro": step_without_pyro,
        "step": step,
        "Adam": optimizer.step,
        "evaluation": evaluation,
    }


def median_seconds(part: Callable[[], object], n_calls: int = 200) -> float:
    """Time one call; a call that returns a list did as many things as are in it."""
    seconds = []
    for _ in range(n_calls + 10):
        start = time.perf_counter()
        result = part()
        seconds.append((time.perf_counter() - start) / (len(result) if isinstance(result, list) else 1))
    return float(np.median(seconds[10:]))


if __name__ == "__main__":
    typer.run(main)
