"""From AnnData to minibatches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from scanpy import settings
from torch.utils.data import DataLoader, IterableDataset

from scanpy_scvipyro import _counts, _genes, _lazy, _validate
from scanpy_scvipyro.csr import CSR, sent
from scanpy_scvipyro.model import Cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray
    from torch import Tensor

    from scanpy_scvipyro.csr import Counts, Totals

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which parts of an AnnData the model reads, and the categories it knows."""

    layer: str | None = None
    batch_key: str | None = None
    labels_key: str | None = None
    categorical_covariate_keys: Sequence[str] = ()
    continuous_covariate_keys: Sequence[str] = ()
    size_factor_key: str | None = None
    genes: NDArray[np.str_] = field(default_factory=lambda: np.array([], dtype=str))
    categories: dict[str, NDArray[np.str_]] = field(default_factory=dict)
    standardization: NDArray[np.float64] | None = None
    """(2, n_continuous), mean and standard deviation of the continuous covariates; None takes them as they are."""

    @property
    def batches(self) -> list[str] | None:
        """Names of the batches, if the model knows any."""
        return self.categories[self.batch_key].tolist() if self.batch_key else None

    @property
    def n_batches(self) -> int:
        return len(self.categories[self.batch_key]) if self.batch_key else 1

    @property
    def n_labels(self) -> int:
        return len(self.categories[self.labels_key]) if self.labels_key else 1

    @property
    def n_categories(self) -> tuple[int, ...]:
        return tuple(len(self.categories[key]) for key in self.categorical_covariate_keys)

    def gene_positions(self, adata: AnnData) -> NDArray[np.intp]:
        """Where the modelled genes stand in ``adata.var``, found by name and in any order."""
        if np.array_equal(adata.var_names, self.genes):
            return np.arange(adata.n_vars)
        if len(np.unique(self.genes)) < len(self.genes):
            msg = (
                "the model was trained on genes with duplicate names, and the genes of adata are others or in another "
                "order, so they cannot be told apart; call adata.var_names_make_unique() and train again."
            )
            raise ValueError(msg)
        missing = ~np.isin(self.genes, adata.var_names)
        if missing.any():
            raise ValueError(_genes.refusal(adata, self.genes, missing))
        if not adata.var_names.is_unique:
            msg = (
                "adata.var_names has duplicates, so genes cannot be found by name; call adata.var_names_make_unique()."
            )
            raise ValueError(msg)
        return adata.var_names.get_indexer(self.genes)


@dataclass(frozen=True)
class CellData:
    """Counts and covariates of all cells, as tensors of one device."""

    counts: Counts
    depth: Tensor
    """(n_cells, 1), observed counts per cell."""
    library_size: Tensor
    """(n_cells, 1), the depth, or size factors."""
    batch: Tensor
    label: Tensor
    categorical: Tensor
    continuous: Tensor

    @property
    def n_cells(self) -> int:
        return len(self.batch)

    @property
    def n_genes(self) -> int:
        return self.counts.n_genes

    @property
    def n_bytes(self) -> int:
        return sum(getattr(self, part.name).nbytes for part in fields(self))

    def to(self, device: torch.device) -> CellData:
        return CellData(*(getattr(self, part.name).to(device) for part in fields(self)))

    def cells(self, rows: Tensor) -> Cells:
        """Minibatch of the given cells, with counts as a coalesced sparse COO tensor."""
        return next(self.minibatches([rows]))

    def minibatches(self, parts: Sequence[Tensor]) -> Iterator[Cells]:
        """One minibatch after the other, each of the cells of a part."""
        covariates = (self.library_size, self.batch, self.label, self.categorical, self.continuous)
        for rows, counts in zip(parts, self.counts.minibatches(parts), strict=True):
            here = sent(rows, self.batch.device)
            yield Cells(counts, *(covariate[here] for covariate in covariates))

    def chunks(self, rows: Tensor | None = None, n_draws: int = 1) -> Iterator[tuple[slice, Cells]]:
        """All cells in order, or the given ones, in minibatches of about four million counts (16 MB).

        Minibatches are smaller where ``n_draws`` results are held for each of their cells.
        """
        rows = torch.arange(self.n_cells) if rows is None else rows
        size = max(1, max(64, 4_000_000 // self.n_genes) // n_draws)
        stop = 0
        for cells in self.minibatches(rows.split(size)):
            start, stop = stop, stop + len(cells.batch)
            yield slice(start, stop), cells

    @cached_property
    def totals(self) -> Totals:
        """Sums over the cells of each batch."""
        return self.counts.totals(self.batch)

    def log_frequencies(self) -> tuple[Tensor, Tensor]:
        """Log of the mean frequency of each gene, overall (n_genes,) and per batch (n_batches, n_genes).

        Every batch counts the same in the overall mean. Half a count per gene keeps the logarithm finite.
        """
        sums = self.totals.frequency
        n_cells, depth = torch.bincount(self.batch)[:, None], self.totals.counts.sum(dim=1, keepdim=True)
        per_batch = (sums / n_cells + 0.5 / depth).log().log_softmax(dim=-1)
        per_batch += (self.depth.double().sum() / self.library_size.double().sum()).log()  # 0, but for size factors
        return (per_batch.logsumexp(dim=0) - math.log(len(sums))).float(), per_batch.float()

    def log_library_size(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the log library size of each batch, (n_batches, 1) each."""
        log_depth = self.depth[:, 0].log()
        n_cells = torch.bincount(self.batch)
        loc = torch.bincount(self.batch, log_depth) / n_cells
        variance = torch.bincount(self.batch, (log_depth - loc[self.batch]).square()) / n_cells
        # A batch of one cell, or of cells of one depth, would have a prior without width.
        return loc[:, None].float(), variance.sqrt().clamp_min(0.01)[:, None].float()


def describe(adata: AnnData, spec: DataSpec, genes: NDArray[np.bool_]) -> DataSpec:
    """Complete a spec with the genes, the categories, and the scales of continuous covariates in the data."""
    keys = {"batch_key": spec.batch_key, "labels_key": spec.labels_key}
    categories = {
        key: _validate.obs_codes(adata, key, argument)[1] for argument, key in keys.items() if key is not None
    }
    for key in spec.categorical_covariate_keys:
        categories[key] = _validate.obs_codes(adata, key, "categorical_covariate_keys")[1]
    continuous = spec.continuous_covariate_keys
    numbers = _validate.obs_numbers(adata, continuous, "continuous_covariate_keys")
    return replace(
        spec,
        genes=adata.var_names[genes].to_numpy(dtype=str),
        categories=categories,
        standardization=_mean_and_deviation(numbers) if continuous else None,
    )


def _mean_and_deviation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean and standard deviation of columns, (2, n_columns); 0 for the deviation of constant ones."""
    low, span = values.min(axis=0), np.ptp(values, axis=0)
    is_constant = span <= 1e-14 * np.abs(values).max(axis=0)  # but for the last digit of float64
    share = (values - low) / np.where(is_constant, 1, span)  # of which no square overflows
    return np.stack([low + span * share.mean(axis=0), np.where(is_constant, 0, span * share.std(axis=0))])


def _standardized(values: NDArray[np.float64], standardization: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """Columns of about mean 0 and variance 1, or 0 where they were constant; float32 only then, for large offsets."""
    if standardization is not None:
        mean, deviation = standardization
        values = np.divide(values - mean, deviation, out=np.zeros_like(values), where=deviation > 0)
    return values.astype(np.float32)


def describe_more(adata: AnnData, spec: DataSpec) -> DataSpec:
    """Add the batches and categories of new cells that a spec does not know, after those that it knows."""
    keys = {spec.batch_key: "batch_key"} if spec.batch_key is not None else {}
    keys |= dict.fromkeys(spec.categorical_covariate_keys, "categorical_covariate_keys")
    categories = dict(spec.categories)
    for key, argument in keys.items():
        new = _validate.new_categories(adata, key, argument, categories[key])
        categories[key] = np.concatenate([categories[key], np.array(new, dtype=str)])
    return replace(spec, categories=categories)


def load(
    adata: AnnData,
    spec: DataSpec,
    genes: NDArray[np.bool_] | NDArray[np.intp] | None = None,
    *,
    kept: Tensor | None = None,
    once: bool = False,
    show: bool | None = None,
) -> CellData:
    """Check and read what the spec names; the genes by mask or position, else by their names.

    Of counts on disk, those of the cells ``kept`` stay in memory, since they are asked for again and again; they are
    given for a training, which needs sums over batches as well. Counts that are read only ``once`` are checked while
    they are, but for lazy arrays. All others are checked here; ``show`` is whether to show a bar then, by default if
    Scanpy is to say anything.
    """
    genes = spec.gene_positions(adata) if genes is None else genes
    matrix, where = _counts.find(adata, spec.layer)

    def codes(key: str | None, argument: str) -> Tensor:
        if key is None:
            return torch.zeros(adata.n_obs, dtype=torch.int64)
        return torch.from_numpy(_validate.obs_codes(adata, key, argument, spec.categories[key])[0].copy())

    categorical = [codes(key, "categorical_covariate_keys") for key in spec.categorical_covariate_keys]
    continuous = _validate.obs_numbers(adata, spec.continuous_covariate_keys, "continuous_covariate_keys")
    batch, label = codes(spec.batch_key, "batch_key"), codes(spec.labels_key, "labels_key")
    library_size = None
    if spec.size_factor_key is not None:
        factors = _validate.obs_numbers(adata, [spec.size_factor_key], "size_factor_key", positive=True)
        library_size = torch.from_numpy(factors.astype(np.float32))
    counts: Counts
    if _lazy.is_matrix_on_disk(matrix):
        from scanpy_scvipyro.from_disk import OnDisk

        counts = OnDisk(matrix, where, genes)
        if once and counts.n_stored is not None:
            depth = counts.check_as_read(adata)
        else:
            show = settings.verbosity > 0 if show is None else show
            depth = counts.check(adata, None if kept is None else batch, kept, show=show)
    else:
        in_memory = _counts.read_counts(adata, matrix, where, genes)
        counts = CSR.of(in_memory)
        depth = torch.from_numpy(np.asarray(in_memory.sum(axis=1), dtype=np.float32).reshape(-1, 1))
    return CellData(
        counts=counts,
        depth=depth,
        library_size=depth if library_size is None else library_size,
        batch=batch,
        label=label,
        categorical=torch.stack(categorical, dim=1) if categorical else torch.zeros(adata.n_obs, 0, dtype=torch.int64),
        continuous=torch.from_numpy(_standardized(continuous, spec.standardization)),
    )


MAX_EVALUATED = 10_000
"""Of the training and of the validation cells each. The standard error of the ELBO is then about 2 nats."""


class Minibatches(IterableDataset[Cells]):
    """Minibatches of some of the cells, shuffled anew in each pass where a generator is given.

    Sizes are as equal as they can be, and at least two: batch normalization cannot learn from one cell. Of ``n_ranks``
    processes with equal generators, each has its own part of the cells in each pass, and as many minibatches.
    """

    def __init__(
        self,
        data: CellData,
        rows: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
        *,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> None:
        self.data, self.rows, self.generator = data, rows, generator
        self.rank, self.n_ranks = rank, n_ranks
        self.n_minibatches = max(1, min(-(-len(rows) // (batch_size * n_ranks)), len(rows) // (2 * n_ranks)))

    def __len__(self) -> int:
        return self.n_minibatches

    def __iter__(self) -> Iterator[Cells]:
        return self.data.minibatches(self.parts())

    def parts(self) -> Sequence[Tensor]:
        """Rows of each minibatch of one pass."""
        if self.generator is not None:
            return self.data.counts.shuffled(self.rows, self.n_minibatches, self.n_ranks, self.generator)[self.rank]
        parts = self.rows.tensor_split(self.n_minibatches * self.n_ranks)[self.rank :: self.n_ranks]
        return [part for part in parts if len(part)]  # a few cells to evaluate may leave none for one process


class Evaluated(IterableDataset[tuple[Cells, "Tensor"]]):
    """Minibatches of training and of validation cells, and which cells are the latter: all in as few as can be."""

    def __init__(self, minibatches: Minibatches, validation: Tensor) -> None:
        self.minibatches, self.validation = minibatches, validation

    def __len__(self) -> int:
        return len(self.minibatches)

    def __iter__(self) -> Iterator[tuple[Cells, Tensor]]:
        is_validation = (torch.isin(part, self.validation) for part in self.minibatches.parts())
        return zip(self.minibatches, is_validation, strict=True)


def n_training_cells(n_cells: int, train_size: float) -> int:
    """Return the number of cells to train on, at least two."""
    return max(2, round(train_size * n_cells))


class Split(NamedTuple):
    """Cells to train on, and cells that are held out, each in random order."""

    training: Tensor
    validation: Tensor

    @classmethod
    def drawn(cls, n_cells: int, train_size: float, generator: torch.Generator) -> Split:
        rows, n_training = torch.randperm(n_cells, generator=generator), n_training_cells(n_cells, train_size)
        return cls(rows[:n_training], rows[n_training:])

    @property
    def evaluated(self) -> tuple[Tensor, Tensor]:
        """Cells whose ELBO is computed after each epoch: held out ones, and as many of those to train on."""
        n_evaluated = len(self.validation) or min(len(self.training), 1000)
        return self.training[: min(n_evaluated, MAX_EVALUATED)], self.validation[:MAX_EVALUATED]


class CellDataModule(LightningDataModule):
    """Training and validation cells for Lightning.

    After each epoch, the validation cells are evaluated, and as many of the training cells, so that the two ELBOs are
    measured in the same way and their difference shows overfitting.
    """

    def __init__(self, data: CellData, *, train_size: float, batch_size: int, random_state: int) -> None:
        super().__init__()
        self.data, self.batch_size = data, batch_size
        self.generator = torch.Generator().manual_seed(int(random_state))
        self.split = Split.drawn(data.n_cells, train_size, self.generator)

    def setup(self, stage: str) -> None:
        """Keep the counts on the GPU where they take less than half of its free memory."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        is_in_memory = isinstance(self.data.counts, CSR)
        if is_in_memory and device.type == "cuda" and self.data.n_bytes < torch.cuda.mem_get_info(device)[0] / 2:
            self.data = self.data.to(device)

    def train_dataloader(self) -> DataLoader[Cells]:
        return self._loader(self._minibatches(self.split.training, self.batch_size, self.generator))

    def val_dataloader(self) -> DataLoader[tuple[Cells, Tensor]]:
        training, validation = self.split.evaluated
        return self._loader(Evaluated(self._minibatches(torch.cat([training, validation]), 1024), validation))

    def _minibatches(self, rows: Tensor, batch_size: int, generator: torch.Generator | None = None) -> Minibatches:
        rank, n_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Minibatches(self.data, rows, batch_size, generator, rank=rank, n_ranks=n_ranks)

    @staticmethod
    def _loader(minibatches: IterableDataset[T]) -> DataLoader[T]:
        # Of its own generator it draws a number in each pass, else of the global one: a run that goes on would differ.
        return DataLoader(minibatches, batch_size=None, generator=torch.Generator())

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.generator.set_state(state_dict["generator"])
