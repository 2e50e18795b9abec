"""Training: the recipe, the Lightning module, and a trainer that leaves no traces."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping, ProgressBar

from scanpy_scvipyro import _progress
from scanpy_scvipyro._arguments import taken_by
from scanpy_scvipyro.data import CellDataModule, Split, n_training_cells
from scanpy_scvipyro.devices import ended_together, seed_of_process, share_statistics
from scanpy_scvipyro.elbo import MeanFieldELBO
from scanpy_scvipyro.model import SCVI
from scanpy_scvipyro.posterior import elbo_terms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytorch_lightning.loggers import Logger
    from pytorch_lightning.strategies import Strategy
    from torch import Tensor

    from scanpy_scvipyro.checkpoint import Run
    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import Cells


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train."""

    max_epochs: int
    kl_weight: float
    n_epochs_kl_warmup: int
    learning_rate: float
    batch_size: int
    train_size: float
    early_stopping: bool
    early_stopping_patience: int
    keep_best_on_interrupt: bool
    random_state: int
    offset_speed: float = 1.0
    """Learning rate of the offsets, in that of all else."""
    n_devices: int = 1


def recipe(
    n_cells: int,
    *,
    max_epochs: int | None,
    n_epochs_kl_warmup: int | None,
    batch_size: int | None,
    learning_rate: float | None,
    train_size: float,
    early_stopping: bool,
    keep_best_on_interrupt: bool,
    n_devices: int = 1,
    **settings: Any,
) -> Recipe:
    """Work out the defaults that depend on the number of cells, and refuse settings that contradict each other."""
    if early_stopping and n_training_cells(n_cells, train_size) == n_cells:
        msg = f"early_stopping needs validation cells; train_size={train_size:g} leaves none of {n_cells}, lower it."
        raise ValueError(msg)
    if keep_best_on_interrupt and not early_stopping:
        raise ValueError("keep_best_on_interrupt=True needs early_stopping=True, which keeps the best weights.")
    if keep_best_on_interrupt and n_devices > 1:  # Lightning kills the other processes, then this one
        raise ValueError("keep_best_on_interrupt=True needs devices=1; with several, pass checkpoint= instead.")
    if n_training_cells(n_cells, train_size) < 2 * n_devices:
        msg = f"each of {n_devices} devices needs two cells to train on, and train_size={train_size:g} of {n_cells} "
        raise ValueError(f"{msg}are fewer; pass devices=1.")
    max_epochs = int(max_epochs or default_max_epochs(n_cells))  # Lightning takes no numpy integers
    batch_size = batch_size or default_batch_size(n_cells)
    return Recipe(
        max_epochs=max_epochs,
        n_epochs_kl_warmup=max_epochs // 3 if n_epochs_kl_warmup is None else n_epochs_kl_warmup,
        batch_size=batch_size,
        learning_rate=learning_rate or default_learning_rate(batch_size * n_devices),
        train_size=train_size,
        early_stopping=early_stopping,
        keep_best_on_interrupt=keep_best_on_interrupt,
        n_devices=n_devices,
        **settings,
    )


def default_max_epochs(n_cells: int) -> int:
    """Return the number of epochs that reaches the plateau of the held-out ELBO and mixes batches (docs/recipe.md).

    60 epochs from 1,000 to 2,000 cells; fewer for more, as the fourth root of their number: 48 for 5,000, 23 for
    100,000, at least 10. More for less than 1,000 cells, whose epochs have few steps, as the square root: 110 for 300,
    at most 400. In proportion to their number, they would overfit.
    """
    if n_cells < 1000:
        return min(400, round(60 * (1000 / n_cells) ** 0.5))
    return max(10, min(60, round(60 * (2000 / n_cells) ** 0.25)))


def default_batch_size(n_cells: int) -> int:
    """Return 256 cells, and 1,024 from 50,000 cells on, which take a quarter less time (docs/recipe.md)."""
    return 256 if n_cells < 50_000 else 1024


def default_learning_rate(n_cells: int) -> float:
    """Return the peak of the learning rate for minibatches of this many cells, of all devices together.

    Above 256 cells it grows in proportion, since there are fewer steps and their gradients have less noise, up to the
    eightfold: beyond, nothing was measured (docs/scaling.md).
    """
    return 8e-3 * min(8.0, max(1.0, n_cells / 256))


def untrained(
    module: type[SCVI] | None, data: CellData, n_batches: int, options: dict[str, Any], batch_offset: float
) -> SCVI:
    """Build the module with its start values from the data."""
    with pyro.settings.context(module_local_params=True):
        model = (module or SCVI)(data.n_genes, n_batches, **options).float()
    model.start_from(*data.log_frequencies(), data.log_library_size(), batch_offset)
    return model


def split(n_cells: int, recipe: Recipe) -> Split:
    """Cells that :func:`fit` trains on, and those that it holds out."""
    return Split.drawn(n_cells, recipe.train_size, torch.Generator().manual_seed(int(recipe.random_state)))


class TrainingPlan(pl.LightningModule):
    """Maximizes the ELBO per cell: Adam, a one-cycle learning rate, and a KL weight that rises from nothing."""

    def __init__(self, module: SCVI, recipe: Recipe, *, is_watched: bool = False) -> None:
        super().__init__()
        self.module, self.recipe, self.is_watched = module, recipe, is_watched
        self.loss = MeanFieldELBO()(module.model, module.guide)
        self.history: list[dict[str, float]] = []

    @property
    def kl_weight(self) -> float:
        return self.recipe.kl_weight * self.warmup

    @property
    def warmup(self) -> float:
        n_steps = self.recipe.n_epochs_kl_warmup * self.trainer.num_training_batches
        return min(1.0, (self.global_step + 1) / n_steps) if n_steps else 1.0

    def on_train_epoch_start(self) -> None:
        if self.global_rank:  # else all processes would draw the same noise
            pyro.set_rng_seed(seed_of_process(self.recipe.random_state, self.current_epoch, self.global_rank))
        self.train_loss = torch.zeros((), device=self.device)

    def training_step(self, cells: Cells, _: int) -> Tensor:
        self.module.warmup = self.warmup
        loss = self.loss(cells, kl_weight=self.kl_weight) / len(cells.batch)
        self.train_loss += loss.detach()
        return loss

    def on_train_epoch_end(self) -> None:
        # Once per epoch, since reading a value waits for the device. The last step shows in the evaluation only.
        train_loss = self.trainer.strategy.reduce(self.train_loss, reduce_op="sum")
        if not all(map(math.isfinite, (train_loss.item(), self.history[-1]["train_elbo"]))):
            msg = (
                f"training diverged in epoch {self.current_epoch + 1} of {self.recipe.max_epochs}: the ELBO is "
                f"not finite any more. Try a lower learning_rate (it was {self.recipe.learning_rate:g}), "
                "precision='32-true', or a look at cells with extreme counts."
            )
            raise RuntimeError(msg)

    def on_validation_epoch_start(self) -> None:
        if self.recipe.n_devices > 1:
            share_statistics(self.module, self.trainer.strategy)
            if self.module.code_sums is not None:
                self.module.code_sums = self.trainer.strategy.reduce(self.module.code_sums, reduce_op="mean")
        # Of training and of validation cells: sums of reconstruction and KL divergence, and the number of cells.
        self.evaluated = torch.zeros(2, 3, dtype=torch.float64, device=self.device)

    def validation_step(self, evaluated: tuple[Cells, Tensor], _: int) -> None:
        cells, is_validation = evaluated
        terms = torch.stack(elbo_terms(self.module, cells), dim=1).double()
        self.evaluated.index_add_(0, is_validation.long(), F.pad(terms, (0, 1), value=1))

    def on_validation_epoch_end(self) -> None:
        evaluated = self.trainer.strategy.reduce(self.evaluated, reduce_op="sum")
        row: dict[str, float] = {}
        for name, (reconstruction, kl, n_cells) in zip(("train", "validation"), evaluated.tolist(), strict=True):
            if n_cells:
                terms = {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}
                row |= {f"{name}_{term}": value / n_cells for term, value in terms.items()}
        if self.is_watched:  # Lightning takes a millisecond for each value
            self.log_dict(row)
        row |= {"kl_weight": self.kl_weight, "learning_rate": self.trainer.optimizers[0].param_groups[0]["lr"]}
        self.history.append(row)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"], checkpoint["code_sums"] = self.history, self.module.code_sums

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, self.module.code_sums = checkpoint["history"], checkpoint["code_sums"]

    def configure_optimizers(self) -> Any:
        rate, offset = self.recipe.learning_rate, self.module.offset
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.module.parameters() if p is not offset], "lr": rate}
        ]
        if offset is not None:
            groups.append({"params": [offset], "lr": rate * self.recipe.offset_speed})
        optimizer = torch.optim.Adam(groups, fused=True)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class BestWeights(Callback):
    """Keeps the weights of the best validation ELBO in memory, and gives them back after training."""

    def __init__(self) -> None:
        self.best_elbo = -np.inf
        self.weights: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        elbo = trainer.callback_metrics["validation_elbo"].item()
        if elbo > self.best_elbo:
            self.best_elbo = elbo
            self.weights = {name: value.detach().clone() for name, value in pl_module.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        return {"best_elbo": self.best_elbo, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_elbo, self.weights = state_dict["best_elbo"], state_dict["weights"]


class EpochProgress(Callback):
    """One bar for the whole training, in terminals and notebooks: epoch, ELBO, and time left."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.bar = _progress.bar(trainer.max_epochs, "Training", "epoch", show=trainer.is_global_zero)
        self.bar.update(trainer.current_epoch)  # of a run that goes on

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: TrainingPlan) -> None:  # type: ignore[override]
        row = pl_module.history[-1]
        self.bar.set_postfix(ELBO=f"{row.get('validation_elbo', row['train_elbo']):.1f}", refresh=False)
        self.bar.update()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def fit(
    module: SCVI,
    data: CellData,
    recipe: Recipe,
    *,
    accelerator: str,
    devices: int | str | list[int],
    precision: Any,
    progress_bar: bool,
    logger: Sequence[Logger] | bool,
    callbacks: Sequence[Callback],
    checkpoint: Run | None = None,
    num_nodes: int = 1,
    strategy: str | Strategy = "auto",
) -> pd.DataFrame:
    """Train in place; the history has one row per epoch, indexed from 1."""
    module.n_cells = n_training_cells(data.n_cells, recipe.train_size)
    plan = TrainingPlan(module, recipe, is_watched=bool(logger or callbacks or recipe.early_stopping))
    callbacks = list(callbacks)
    best = BestWeights()
    if recipe.early_stopping:
        stop = EarlyStopping("validation_elbo", mode="max", patience=recipe.early_stopping_patience, check_finite=False)
        callbacks += [best, stop]
    has_own_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if progress_bar and not has_own_bar:
        callbacks.append(EpochProgress())
    if checkpoint is not None:
        callbacks.append(checkpoint)
    cells = CellDataModule(data, **taken_by(CellDataModule, vars(recipe)))
    # glibc returns freed memory to the kernel until it has seen a large block freed; each step would then fetch all its
    # buffers anew, a sixth of its time.
    torch.empty(8_000_000 - 4096)
    local_params = pyro.settings.context(module_local_params=True)
    with _quiet_lightning(), local_params, pyro.validation_enabled(is_validate=False):
        trainer = pl.Trainer(
            max_epochs=recipe.max_epochs,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            precision=precision,
            logger=logger,
            callbacks=callbacks,
            plugins=None if checkpoint is None else [checkpoint.io],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=has_own_bar,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # processes share cells on their own
        )
        try:
            with _interruptible(), ended_together(recipe.n_devices):
                goes_on_from = checkpoint.path if checkpoint is not None and checkpoint.path.exists() else None
                trainer.fit(plan, datamodule=cells, ckpt_path=goes_on_from)
        except KeyboardInterrupt:
            if not (recipe.keep_best_on_interrupt and best.weights):
                raise
    if best.weights:
        plan.load_state_dict(best.weights)
    module.to("cpu", torch.float32).eval()  # whatever the precision, results are float32
    if recipe.n_devices > 1:  # from here on, all processes draw the same noise
        pyro.set_rng_seed(int(recipe.random_state))
    history = pd.DataFrame(plan.history)
    history.index = pd.RangeIndex(1, len(history) + 1, name="epoch")
    return history


@contextlib.contextmanager
def isolated_random_state(random_state: int) -> Iterator[None]:
    """Seed Python, numpy and torch inside the block, and give the caller's states back after it."""
    state = pyro.util.get_rng_state()
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        try:
            pyro.set_rng_seed(int(random_state))  # Python's generator takes no numpy integers
            yield
        finally:
            pyro.util.set_rng_state(state)


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """No device banners, tips or hints meant for authors of training loops; errors pass."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_)?lightning")
            warnings.filterwarnings("ignore", module=r"torch\.")
            warnings.filterwarnings("ignore", message="Encountered NaN")  # of which we raise an error
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C stays a KeyboardInterrupt: Lightning turns it into SystemExit and leaves the signal ignored."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if in_main_thread else None
    try:
        yield
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if in_main_thread and handler is not None:
            signal.signal(signal.SIGINT, handler)
