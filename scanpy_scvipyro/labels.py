"""Labels from a trained scANVI: calibrated probabilities, and how unlike all labelled cells a cell is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from scanpy_scvipyro import posterior
from scanpy_scvipyro.scanvi import SCANVI

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scanpy_scvipyro.data import CellData
    from scanpy_scvipyro.model import SCVI

    Array = NDArray[np.float64]
    Codes = NDArray[np.integer]

_LEVELS = np.linspace(0, 0.9, 19)
N_BINS = 15
UNKNOWN = "unknown"
HELD_OUT = 0.1
"""Share of the labels that training does not see, by which probabilities and novelty are calibrated."""
CELLS_PER_DENSITY = 5
"""Labelled cells per label with which network and densities count the same; 3 to 20 give the same macro-F1 +- 0.003."""
N_SIMULATIONS = 2
"""Simulated cells for each real one: more of them make novelty hardly less noisy than the counts of the cell are."""


@dataclass(frozen=True)
class Given:
    """Labels that users give to some of the cells."""

    key: str
    names: NDArray[np.str_]
    codes: Codes
    """(n_cells,), 0 for cells without a label; labels count from 1."""
    max_novelty: float | None = None

    def unlearnt(self, unseen: Codes) -> list[str]:
        """Labels of which training sees no cell."""
        seen = np.delete(self.codes, unseen)
        return [str(name) for i, name in enumerate(self.names, start=1) if i not in seen]

    def hold_out(self, unseen: Codes, random_state: int) -> NDArray[np.bool_]:
        """Labelled cells whose labels training is not shown, (n_cells,): a share of each label, one at least.

        Those that are held out of training altogether (``unseen``) come first, since their labels are of no use to it.
        A label of fewer than five cells gives none away but those.
        """
        rng = np.random.default_rng(int(random_state))
        order = rng.permutation(len(self.codes))
        order = np.concatenate([unseen, order[~np.isin(order, unseen)]])
        chosen = np.zeros(len(self.codes), dtype=bool)
        chosen[unseen] = self.codes[unseen] > 0
        for label in range(1, len(self.names) + 1):
            cells = order[self.codes[order] == label]
            n = max(1, round(HELD_OUT * len(cells))) if len(cells) >= 5 else 0
            chosen[cells[:n]] = True
            if chosen[cells].all():  # a label that training does not know does not calibrate it
                chosen[cells] = False
        return chosen


class Readings(NamedTuple):
    """What the model says of cells, before any calibration."""

    logits: Array
    """(n_cells, n_labels)."""
    codes: Array
    """(n_cells, n_latent), posterior means."""
    surprise: Array
    """(n_cells,), log-probability of simulated less that of real counts, in nats."""
    log_depth: Array
    """(n_cells,)."""


@torch.inference_mode()
def read(module: SCANVI, data: CellData) -> Readings:
    """Look at all cells, without their labels."""
    module.eval()
    # At once: many small arrays would stand between freed blocks of memory, which could then not be used again.
    logits, codes = np.empty((data.n_cells, module.n_labels)), np.empty((data.n_cells, module.n_latent))
    surprises = np.empty(data.n_cells)
    for rows, cells in data.chunks():
        z = posterior.latent_posterior(module, cells).mean
        likelihood = module.likelihood(z, cells.library_size, cells)
        assert cells.counts is not None
        real = likelihood.log_prob(cells.counts.to_dense()).sum(dim=-1)
        simulated = [likelihood.log_prob(likelihood.sample()).sum(dim=-1) for _ in range(N_SIMULATIONS)]
        surprise = torch.stack(simulated).mean(dim=0) - real
        for whole, part in zip((logits, codes, surprises), (module.classify(z), z, surprise), strict=True):
            whole[rows] = part.cpu().numpy()
    return Readings(logits, codes, surprises, np.log(data.depth[:, 0].double().cpu().numpy()))


class Predicted(NamedTuple):
    """What is written of the cells."""

    codes: Codes
    """(n_cells,), positions among the categories."""
    categories: list[str]
    probabilities: NDArray[np.float32]
    """(n_cells, n_labels)."""
    novelty: NDArray[np.float32]
    """(n_cells,)."""


def learn(module: SCANVI, data: CellData, given: Given, held_out: NDArray[np.bool_]) -> dict[str, Any]:
    """Calibrate a trained model, and return what :func:`predict` needs as plain arrays."""
    stored: dict[str, Any] = {"key": given.key, "names": given.names.astype(object)}
    if given.max_novelty is not None:
        stored["max_novelty"] = given.max_novelty
    readings = read(module, data)
    stored |= calibration(readings, given.codes, held_out)
    probability, label = probabilities(readings, stored)[held_out], given.codes[held_out] - 1
    stored["held_out_reliability"] = reliability(probability, label)
    stored["held_out_confusion"] = confusion(probability.argmax(axis=1), label, len(given.names))
    return stored


def reliability(probability: NDArray[np.float32], label: Codes) -> Array:
    """Cells, mean probability and accuracy by bins of the largest probability, (15, 3); NaN without cells."""
    largest, is_right = probability.max(axis=1), probability.argmax(axis=1) == label
    bins = np.minimum((N_BINS * largest).astype(int), N_BINS - 1)
    n_cells = np.bincount(bins, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, values, minlength=N_BINS) / n_cells for values in (largest, is_right)]
    return np.column_stack([n_cells, *means])


def calibration_error(reliability: Array) -> float:
    """Average the difference of probability and accuracy over bins, by their cells: the expected calibration error."""
    n_cells, probability, accuracy = reliability[reliability[:, 0] > 0].T
    return float((n_cells * np.abs(probability - accuracy)).sum() / n_cells.sum())


def confusion(predicted: Codes, label: Codes, n_labels: int) -> NDArray[np.int64]:
    """Count cells by given (rows) and predicted label, (n_labels, n_labels)."""
    counts = np.bincount(label * n_labels + predicted, minlength=n_labels**2)
    return counts.reshape(n_labels, n_labels).astype(np.int64)


def predict(module: SCVI, data: CellData, stored: dict[str, Any]) -> Predicted:
    """Predict labels of any cells with a calibrated model."""
    assert isinstance(module, SCANVI)
    readings = read(module, data)
    probability, unlike = probabilities(readings, stored), novelty(readings, stored)
    codes, categories = probability.argmax(axis=1), [str(name) for name in stored["names"]]
    if "max_novelty" in stored:
        codes[unlike > stored["max_novelty"]] = len(categories)
        categories.append(UNKNOWN)
    return Predicted(codes, categories, probability, unlike)


def calibration(readings: Readings, codes: Codes, held_out: NDArray[np.bool_]) -> dict[str, Any]:
    """Learn from labelled cells what :func:`probabilities` and :func:`novelty` need; codes are 0 without a label."""
    label = codes - 1
    shown = (label >= 0) & ~held_out
    per_label = shown.sum() / (label.max() + 1)
    fitted: dict[str, Any] = {
        "density_weight": CELLS_PER_DENSITY / (CELLS_PER_DENSITY + per_label),
        **_moments(readings.codes[shown], label[shown]),
        **_expected_surprise(readings),
    }
    fitted["temperature"] = temperature(_logits(readings, fitted)[held_out], label[held_out])
    fitted |= _moments(readings.codes[label >= 0], label[label >= 0])  # better with the others, too
    # Cells that training has seen are less unlike than new ones, so those that it has not seen set the scale.
    known = held_out if held_out.sum() >= 20 else label >= 0
    for name in ("distance", "surprise"):
        middle, high = np.quantile(getattr(_unlikeness(readings, fitted), name)[known], [0.5, 0.84])
        fitted[f"{name}_scale"] = np.array([middle, max(high - middle, 1e-6)])
    joint = _joint(readings, fitted)[known]
    levels = np.quantile(joint, _LEVELS)
    tail = joint[joint >= levels[-1]].mean() - levels[-1]
    return fitted | {"novelty_levels": levels, "novelty_tail": max(float(tail), 1e-6)}


def probabilities(readings: Readings, fitted: dict[str, Any]) -> NDArray[np.float32]:
    """Calibrated probabilities of the labels, (n_cells, n_labels)."""
    return softmax(_logits(readings, fitted) / fitted["temperature"], axis=1).astype(np.float32)


def _logits(readings: Readings, fitted: dict[str, Any]) -> Array:
    """Logits of the network, and, the more the fewer labels there are, of a Normal density of codes per label.

    Densities need fewer labels than networks do, which are better once they have them :cite:p:`Ng2001`.
    """
    weight = fitted.get("density_weight", 0.0)  # of models from elsewhere, which are the network alone
    log_density = -0.5 * _squared_distance(readings.codes, fitted)
    logits: Array = (1 - weight) * log_softmax(readings.logits, axis=1) + weight * log_density
    return logits


def novelty(readings: Readings, fitted: dict[str, Any]) -> NDArray[np.float32]:
    """Share of cells of the known labels that are less unlike them than this cell, from 0 to 1, (n_cells,).

    What is beyond nine tenths of the known cells is told apart by an exponential tail.
    """
    joint = _joint(readings, fitted)
    beyond = np.maximum(joint - fitted["novelty_levels"][-1], 0) / fitted["novelty_tail"]
    share = np.interp(joint, fitted["novelty_levels"], _LEVELS)
    return (1 - (1 - share) * np.exp(-beyond)).astype(np.float32)


def temperature(logits: Array, label: Codes) -> float:
    """Divisor of the logits that makes held-out labels most likely :cite:p:`Guo2017`.

    A log-normal prior around 1.5, which is what networks trained to the end need, keeps it in place where few labels
    are held out.
    """

    def loss(log_temperature: float) -> float:
        log_probability = log_softmax(logits / np.exp(log_temperature), axis=1)
        prior = 0.5 * ((log_temperature - np.log(1.5)) / 0.5) ** 2
        return float(prior - log_probability[np.arange(len(label)), label].sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


class _Unlikeness(NamedTuple):
    """How unlike the labelled cells a cell is, in three ways, (n_cells,) each."""

    distance: Array
    """Of the code from the nearest label: finds types among the cells of training, which have codes of their own."""
    doubt: Array
    """Log of the probability of all labels but the first, from 0 for none: finds what lies between two labels."""
    surprise: Array
    """At the counts: finds types that training has not seen, which are encoded as others, and then not explained."""


def _unlikeness(readings: Readings, fitted: dict[str, Any]) -> _Unlikeness:
    distance = _squared_distance(readings.codes, fitted)
    doubt = np.log1p((1 - softmax(readings.logits, axis=1).max(axis=1)) / 1e-3)
    loc, spread = _by_depth(readings.log_depth, fitted)
    return _Unlikeness(np.sqrt(distance.min(axis=1)), doubt, (readings.surprise - loc) / spread)


def _squared_distance(codes: Array, fitted: dict[str, Any]) -> Array:
    """Mahalanobis distance of each label's mean, (n_cells, n_labels), squared."""
    difference = codes[:, None] - fitted["label_mean"]
    inverse = np.linalg.inv(fitted["covariance"])
    squared: Array = np.einsum("nld,de,nle->nl", difference, inverse, difference, optimize=True)
    return squared


def _joint(readings: Readings, fitted: dict[str, Any]) -> Array:
    """Sum of the three, distance and surprise in units of their spread among known cells, (n_cells,).

    The weights and the pooled covariance were chosen by measurement: docs/benchmarks.md.
    """
    parts = _unlikeness(readings, fitted)
    distance, surprise = (
        (getattr(parts, name) - fitted[f"{name}_scale"][0]) / fitted[f"{name}_scale"][1]
        for name in ("distance", "surprise")
    )
    joint: Array = distance + 0.5 * parts.doubt + 0.5 * surprise
    return joint


def _moments(codes: Array, label: Codes) -> dict[str, Array]:
    """Mean code of each label, and the covariance within labels."""
    mean = np.stack([codes[label == i].mean(axis=0) for i in range(label.max() + 1)])
    centred = codes - mean[label]
    covariance = centred.T @ centred / len(codes)
    # Finite for two labels of a cell each.
    least = 0.01 * np.trace(covariance) / len(covariance) + 1e-6
    return {"label_mean": mean, "covariance": covariance + least * np.eye(len(covariance))}


def _expected_surprise(readings: Readings) -> dict[str, Array]:
    """Mean and spread of the surprise as quadratic functions of the log depth: deep cells show what is amiss better."""
    span: Array = np.quantile(readings.log_depth, [0.01, 0.99])
    curve = _powers(readings.log_depth, span)
    loc = np.linalg.lstsq(curve, readings.surprise, rcond=None)[0]
    residual = np.abs(readings.surprise - curve @ loc)
    spread = np.linalg.lstsq(curve, residual, rcond=None)[0]
    return {
        "depth_span": span,
        "surprise_loc": loc,
        "surprise_spread": spread,
        "surprise_least": np.array(max(0.2 * residual.mean(), 1e-6)),
    }


def _by_depth(log_depth: Array, fitted: dict[str, Any]) -> tuple[Array, Array]:
    curve = _powers(log_depth, fitted["depth_span"])
    return curve @ fitted["surprise_loc"], np.maximum(curve @ fitted["surprise_spread"], fitted["surprise_least"])


def _powers(log_depth: Array, span: Array) -> Array:
    return np.vander(np.clip(log_depth, *span), 3)
