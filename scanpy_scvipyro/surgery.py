"""Architecture surgery :cite:p:`Lotfollahi2022`: parameters of new categories join a trained model, and alone learn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scanpy_scvipyro import posterior, storage, training
from scanpy_scvipyro.model import SCVI
from scanpy_scvipyro.networks import HiddenLayers

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from torch import Tensor

    from scanpy_scvipyro.data import CellData, DataSpec

# What an entry of a parameter stands for: its kind, column of .obs, and category; or a place of the layer's own.
Owner = tuple[str, str | None, str | int]


def learn(
    module: SCVI,
    stored: dict[str, Any],
    data: CellData,
    known: DataSpec,
    spec: DataSpec,
    *,
    max_epochs: int | None,
    batch_size: int,
    learning_rate: float,
    random_state: int,
    accelerator: str,
    progress_bar: bool,
) -> tuple[SCVI, dict[str, Any]]:
    """Return the module with the new categories of ``spec``, learnt from ``data``, and its stored form."""
    options = {name: storage.plain(value) for name, value in stored["model_options"].items()}
    options["n_categories"] = spec.n_categories
    if type(module).guide is SCVI.guide:  # a guide of one's own may not read covariates
        options["encode_covariates"] = True
    module, to_learn = grow(module, known, spec, options)
    start_from(module, data, known.n_batches)
    recipe = training.recipe(
        data.n_cells,
        max_epochs=max_epochs or default_max_epochs(data.n_cells, batch_size),
        kl_weight=1.0,
        n_epochs_kl_warmup=0,
        learning_rate=learning_rate,
        batch_size=batch_size,
        train_size=1.0,
        early_stopping=False,
        early_stopping_patience=1,
        keep_best_on_interrupt=False,
        random_state=random_state,
    )
    history = fit(module, to_learn, data, recipe, accelerator=accelerator, progress_bar=progress_bar)
    params = {name: value for name, value in stored["params"].items() if name not in options}
    stored = stored | storage.to_uns(module, spec, options, params, stored["history"])
    stored["surgery"] = {"history": history, "params": vars(recipe)}
    return module, stored


def new_categories(known: DataSpec, spec: DataSpec) -> dict[str, list[str]]:
    """Names of the categories of ``spec`` that are not known, by column."""
    new = {key: names[len(known.categories[key]) :].tolist() for key, names in spec.categories.items()}
    return {key: names for key, names in new.items() if names}


def default_max_epochs(n_cells: int, batch_size: int) -> int:
    """Return the number of epochs that makes about 50 steps, from 5 to 50 (docs/recipe.md)."""
    return max(5, min(50, round(50 * batch_size / n_cells)))


def grow(old: SCVI, known: DataSpec, spec: DataSpec, options: dict[str, Any]) -> tuple[SCVI, dict[str, Tensor]]:
    """Build the module for the categories of ``spec``; return it with a mask of the entries to learn, by parameter.

    All that was there keeps its weights. Entries of new categories start at the mean of those of known ones.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
        new = type(old)(len(spec.genes), spec.n_batches, **options).float()
    weights, owners_before, owners = old.state_dict(), dict(_owners(old, known)), dict(_owners(new, spec))
    to_learn = {}
    for name, value in new.state_dict().items():  # which shares its memory with the module
        if name not in owners:
            value.copy_(weights[name])
            continue
        axis, mine = owners[name]
        before = owners_before[name][1] if name in weights else []
        entries = value.movedim(axis, 0).zero_()
        if before:
            entries[[mine.index(owner) for owner in before]] = weights[name].movedim(axis, 0)
        # Weights of batch vectors belong to all batches; only where there were no vectors, they are new ones' alone.
        no_vectors = old.batch_embedding is None
        fresh = [_is_new(owner, known) or (owner[0] == "embedding" and no_vectors) for owner in mine]
        for i in (i for i, is_fresh in enumerate(fresh) if is_fresh):
            alike = [j for j, owner in enumerate(mine) if owner[:2] == mine[i][:2] and owner in before]
            # A first vector and its weights must not both be zero: nothing could be learnt.
            entries[i] = entries[alike].mean(dim=0) if alike else float(mine[i][0] == "vector")
        if any(fresh):
            to_learn[name] = torch.tensor(fresh).view([-1 if i == axis else 1 for i in range(value.ndim)])
    return new.eval(), to_learn


@torch.no_grad()
def shrink(old: SCVI, known: DataSpec, spec: DataSpec, options: dict[str, Any]) -> SCVI:
    """Build the module for those categories that ``spec`` still has; what is left keeps its weights.

    The last category of a column has no weights of its own: they join the bias.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then replaced
        new = type(old)(len(spec.genes), spec.n_batches, **options).float()
    weights, owners = old.state_dict(), dict(_owners(new, spec))
    for name, (axis, before) in _owners(old, known):
        entries, mine = weights[name].movedim(axis, 0), owners[name][1]
        weights[name] = entries[[before.index(owner) for owner in mine]].movedim(0, axis)
        last = [i for i, owner in enumerate(before) if owner not in mine and not _is_new(owner, spec)]
        if last:
            bias = name.replace("weight", "bias")
            weights[bias] = weights[bias] + entries[last].sum(dim=0)
    new.load_state_dict(weights)
    return new.eval()


def _is_new(owner: Owner, known: DataSpec) -> bool:
    _, key, category = owner
    return key in known.categories and category not in known.categories[key]


def _owners(module: SCVI, spec: DataSpec) -> Iterator[tuple[str, tuple[int, list[Owner]]]]:
    """For each parameter with entries of categories: the axis along which they stand, and whose they are, in order."""

    def of(kind: str, key: str | None) -> list[Owner]:
        return [(kind, key, str(name)) for name in spec.categories[key]] if key else [(kind, key, 0)]

    covariates: list[Owner] = [("continuous", None, key) for key in spec.continuous_covariate_keys]
    if module.batch_embedding is not None:
        covariates += [("embedding", None, i) for i in range(module.batch_embedding.embedding_dim)]
        yield "batch_embedding.weight", (0, of("vector", spec.batch_key))
    elif module.n_batches > 1:
        covariates += of("batch", spec.batch_key)
    for key in spec.categorical_covariate_keys:
        covariates += of("category", key) if len(spec.categories[key]) > 1 else []

    def own(n: int) -> list[Owner]:
        return [("own", None, i) for i in range(n)]

    for name, layers in module.named_modules():
        if isinstance(layers, HiddenLayers):
            for i, (layer, n_injected) in enumerate(zip(layers.layers, layers.n_covariates, strict=True)):
                linear = next(layer.children())
                assert isinstance(linear, nn.Linear)
                features = own(linear.in_features - n_injected) + (covariates if n_injected else [])
                yield f"{name}.layers.{i}.0.weight", (1, features)
    decoder = module.decoder
    features = own(decoder.n_features) if decoder.hidden else own(module.n_latent) + covariates
    for head in ("dropout_logits", "log_inverse_dispersion"):
        if getattr(decoder, head) is not None:
            yield f"decoder.{head}.weight", (1, features)
    yield "decoder.rate.weight", (1, features)
    if module.offset is not None:
        yield "offset", (0, of("offset", spec.batch_key))
    if module.dispersion in ("gene-batch", "gene-label") and module.gene_likelihood != "poisson":
        groups = spec.batch_key if module.dispersion == "gene-batch" else spec.labels_key
        yield "log_inverse_dispersion", (0, of("dispersion", groups))
    if module.library == "latent":
        yield "library_loc", (0, of("library", spec.batch_key))
        yield "library_scale", (0, of("library", spec.batch_key))


@torch.no_grad()
def start_from(module: SCVI, data: CellData, n_known: int) -> None:
    """Set what the cells tell of new batches before training.

    Their offsets start where observed and expected counts of each gene have the same sum. What is expected follows from
    the codes of the cells, so that another composition is not taken for a batch effect.
    """
    if module.n_batches == n_known:
        return
    if module.library == "latent":
        for ours, theirs in zip((module.library_loc, module.library_scale), data.log_library_size(), strict=True):
            ours[n_known:] = theirs[n_known:]
    if module.offset is None:
        return
    for batch in range(n_known, module.n_batches):
        observed, expected = torch.zeros(2, data.n_genes)
        for _, cells in data.chunks(torch.nonzero(data.batch == batch)[:, 0]):
            z = posterior.latent_posterior(module, cells).mean
            expected += posterior.expected(module, cells, z, cells.library_size).sum(dim=0)
            assert cells.counts is not None
            observed += cells.counts.to_dense().sum(dim=0)
        module.offset[batch] += torch.log((observed + 1) / (expected + 1))


def fit(
    module: SCVI,
    to_learn: dict[str, Tensor],
    data: CellData,
    recipe: training.Recipe,
    *,
    accelerator: str,
    progress_bar: bool,
) -> pd.DataFrame:
    """Train the given entries of the parameters in place; all else stays as it is, to the bit.

    Its networks stay in evaluation mode, in which batch normalization uses its running statistics and leaves them be.
    """
    module.training = True  # of the model alone: cells are aligned to the components of its prior
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in to_learn)
        if name in to_learn:  # Adam does not move what never had a gradient
            parameter.register_hook(lambda gradient, mask=to_learn[name]: gradient * mask.to(gradient.device))
    history = training.fit(
        module,
        data,
        recipe,
        accelerator=accelerator,
        devices=1,
        precision="32-true",
        progress_bar=progress_bar,
        logger=False,
        callbacks=(),
    )
    for name, value in module.state_dict().items():
        learnt = to_learn.get(name, torch.zeros((), dtype=torch.bool))
        assert torch.equal(torch.where(learnt, before[name], value), before[name]), f"{name} has moved"
    return history
