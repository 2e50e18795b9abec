"""What a report warns of: numbers in, plain words out.

Thresholds lie between what good fits of five real data sets gave and what the same checks gave on fits that were made
bad on purpose; the numbers stand beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from scipy import sparse

    Array = NDArray[np.float64]
    Codes = NDArray[np.integer]

N_NAMED = 5
MIN_CELLS = 20
"""Batches and labels with fewer cells are not judged."""
NOT_AT_ALL = 0.9
"""Single batches that are apart by more, on a scale from 0 to 1, are not mixed at all; up to 0.3 in good fits."""


class Finding(NamedTuple):
    """A warning: what it is about, what was found, and what to do."""

    title: str
    found: str
    advice: str


class CountStatistics(NamedTuple):
    """Statistics of counts per gene, (n_genes,), and per cell, (n_cells,)."""

    mean: Array
    variance: Array
    zeros: Array
    """Share of cells without a count."""
    library_size: Array


def count_statistics(counts: sparse.csr_array) -> CountStatistics:
    """Describe counts, (n_cells, n_genes)."""
    counts, n_cells = counts.astype(np.float64), counts.shape[0]
    mean, zeros = counts.sum(axis=0) / n_cells, (n_cells - (counts > 0).sum(axis=0)) / n_cells
    # The mean of squares less the square of the mean would not be exactly 0 for a constant gene.
    squares = counts.copy()
    squares.data = (counts.data - mean[counts.indices]) ** 2
    return CountStatistics(mean, squares.sum(axis=0) / n_cells + zeros * mean**2, zeros, counts.sum(axis=1))


def convergence(history: pd.DataFrame, *, default_epochs: int, early_stopping: bool) -> list[Finding]:
    """Warn of training that ended too early."""
    findings = []
    elbo = _elbo(history)
    window = max(1, len(elbo) // 10)
    rise = elbo.iloc[-window:].mean() - elbo.iloc[-2 * window : -window].mean() if len(elbo) > window else 0.0
    if rise > 0.02 * _span(elbo):  # 0.002 to 0.01 with defaults
        findings.append(
            Finding(
                "Training has not converged",
                f"The ELBO was still rising at the end, by {rise:.1f} nats per cell over the last {window} of "
                f"{len(elbo)} epochs.",
                "Train for longer: raise max_epochs.",
            )
        )
    elif len(history) < default_epochs / 2 and not early_stopping:  # the learning rate falls to 0, so curves are flat
        findings.append(
            Finding(
                "Training was short",
                f"It took {len(history)} epochs; {default_epochs} are the default for this number of cells. The curve "
                "is flat at the end of any training, since the learning rate falls to zero, so it does not show what "
                "is missing.",
                "Train for longer: raise max_epochs, or leave it out.",
            )
        )
    if "kl_weight" in history and history["kl_weight"].iloc[-1] < 0.99:
        findings.append(
            Finding(
                "The KL divergence never had its full weight",
                f"Its weight was {history['kl_weight'].iloc[-1]:.2f} in the last epoch, so batches may be mixed badly.",
                "Pass a smaller n_epochs_kl_warmup, or train for longer.",
            )
        )
    return findings


def overfitting(history: pd.DataFrame) -> list[Finding]:
    """Warn of training that went on while held-out cells were modelled worse and worse."""
    if "validation_elbo" not in history:
        return []
    elbo = _elbo(history)
    level = elbo.rolling(max(1, len(elbo) // 10), min_periods=1).mean()  # less noisy
    fall = level.max() - level.iloc[-1]
    if fall < 0.03 * _span(elbo):  # up to 0.013 in good fits, 0.14 and more in bad ones
        return []
    return [
        Finding(
            "The model overfits",
            f"The validation ELBO was best near epoch {level.idxmax()} and has fallen by {fall:.1f} nats per cell "
            "since, while the model learnt its training cells by heart.",
            "Stop at the best epoch with early_stopping=True, or lower max_epochs.",
        )
    ]


def _elbo(history: pd.DataFrame) -> pd.Series:
    """ELBO by epoch, of validation cells where there are any."""
    return history["validation_elbo" if "validation_elbo" in history else "train_elbo"].dropna()


def _span(elbo: pd.Series) -> float:
    return max(float(np.ptp(elbo.to_numpy())), 1e-9)


def mixing(same: Array, mixed: Array, batches: Codes, names: Sequence[str], *, has_labels: bool) -> list[Finding]:
    """Warn of batches that stay apart: share of same-batch neighbours, and what perfect mixing would give."""
    are_apart = _excess(same, mixed) >= 0.5  # 0.1 to 0.25 in good fits, 0.6 to 0.96 in bad ones
    if not are_apart and not apart(same, mixed, batches, names, NOT_AT_ALL):
        return []
    worst = apart(same, mixed, batches, names, 0.5)
    caveat = "" if has_labels else " Batches of different cell types are right to stay apart; pass labels_key= to tell."
    return [
        Finding(
            "Batches are not mixed" if are_apart or len(worst) > 1 else "A batch is not mixed with the others",
            f"{same.mean():.0%} of a cell's nearest neighbours are of its own batch; {mixed.mean():.0%} would be if "
            f"batches were mixed. Furthest apart: {named(worst)}.{caveat}",
            "Train with batch_key=, and for the default number of epochs; compare a higher batch_alignment=.",
        )
    ]


def apart(same: Array, mixed: Array, batches: Codes, names: Sequence[str], threshold: float) -> list[str]:
    """Name the batches that stay apart, the furthest first: 0 is for perfect mixing, 1 for none at all."""
    by_batch = {
        name: _excess(same[batches == code], mixed[batches == code])
        for code, name in enumerate(names)
        if (batches == code).sum() >= MIN_CELLS
    }
    return [name for name in sorted(by_batch, key=lambda name: -by_batch[name]) if by_batch[name] > threshold]


def _excess(same: Array, mixed: Array) -> float:
    """0 for batches that are mixed perfectly, 1 for batches apart; 0, too, where there is nothing to mix."""
    room = 1 - mixed.mean()
    return float((same.mean() - mixed.mean()) / room) if room > 0.05 else 0.0


def over_correction(before: Array, after: Array, labels: Codes, names: Sequence[str]) -> list[Finding]:
    """Warn of labels that were apart before and are not any more: share of same-label neighbours of each cell."""
    lost = {
        name: (before[labels == code].mean(), after[labels == code].mean())
        for code, name in enumerate(names)
        if (labels == code).sum() >= MIN_CELLS
    }
    # Up to 0.06 in good fits; 0.24 to 0.43 where batches differ in cell types and were forced together.
    worst = sorted(
        (name for name in lost if lost[name][0] - lost[name][1] > 0.15), key=lambda n: lost[n][1] - lost[n][0]
    )
    if not worst:
        return []
    shares = [f"{name} (from {lost[name][0]:.0%} to {lost[name][1]:.0%})" for name in worst]
    return [
        Finding(
            "Over-correction suspected",
            f"Cells have lost neighbours of their own label: {named(shares)}.",
            "Biology may have been removed together with the batch effect. Is a label found in one batch only? Compare "
            "a lower batch_alignment=, such as 10, and check marker genes before trusting these labels.",
        )
    ]


def lost_structure(kept: Array, chance: Array, batches: Codes, names: Sequence[str]) -> list[Finding]:
    """Warn of codes in which cells of one batch are not beside those that they were beside before.

    Takes the share of neighbours within the batch that are neighbours in both embeddings, and that share by chance.
    """
    share = {}
    for code, name in enumerate(names):
        members = batches == code
        if members.sum() >= 3 * MIN_CELLS:
            share[name] = float((kept[members].mean() - chance[members].mean()) / (1 - chance[members].mean()))
    lost = [f"{name} ({share[name]:.0%})" for name in sorted(share, key=lambda n: share[n]) if share[name] < 0.05]
    if not lost:  # 0.15 to 0.5 in good fits, 0.01 to 0.02 for random codes
        return []
    return [
        Finding(
            "The latent codes tell cells hardly apart",
            f"Cells of one batch have other neighbours than before; kept beyond chance: {named(lost)}.",
            "The batch effect may have been removed together with the biology, or the counts of these batches hold "
            "little else than noise. Check them, train for longer, and compare batch_alignment=0.",
        )
    ]


def genes(real: CountStatistics, simulated: CountStatistics, names: Sequence[str]) -> list[Finding]:
    """Warn of genes whose counts the model does not reproduce."""
    n_cells = len(real.library_size)
    tiny = 1e-9
    zeros = real.zeros - simulated.zeros
    ratio = np.log2((real.mean + tiny) / (simulated.mean + tiny))
    error = np.sqrt((real.variance + simulated.variance) / n_cells) + tiny
    spread = np.log2((real.variance + tiny) / (simulated.variance + tiny))
    # How far each is beyond its threshold. Good fits: zeros differ by up to 0.21, the mean by up to 0.7 doublings where
    # it is known well, and genes with a count per cell have at least a quarter of the variance.
    is_known = np.abs(real.mean - simulated.mean) > 5 * error
    bad = np.stack(
        [np.abs(zeros) / 0.25, np.where(is_known, np.abs(ratio) / 0.75, 0), np.where(real.mean >= 1, -spread / 3, 0)]
    )
    worst = [int(gene) for gene in np.argsort(-bad.max(axis=0), kind="stable") if bad[:, gene].max() > 1]
    if not worst:
        return []
    listed = []
    for gene in worst[:N_NAMED]:
        text, statistic = (
            ("share of zeros {:.0%}, expected {:.0%}", "zeros"),
            ("mean {:.2g}, expected {:.2g}", "mean"),
            ("variance {:.2g}, expected {:.2g}", "variance"),
        )[bad[:, gene].argmax()]
        found, expected = (getattr(statistics, statistic)[gene] for statistics in (real, simulated))
        listed.append(f"{names[gene]} ({text.format(found, expected)})")
    return [
        Finding(
            f"{len(worst)} of {len(names)} genes are fitted badly" if len(worst) > 1 else "A gene is fitted badly",
            f"Real counts differ from what the model expects. Worst: {named(listed, len(worst))}.",
            "Do not interpret imputed values and fold changes of these genes. If they are many, train for longer, or "
            "compare gene_likelihood='zinb' and dispersion='gene-batch'; if they are few, check or leave them out.",
        )
    ]


def batches(surprise: NDArray[np.floating], codes: Codes, names: Sequence[str]) -> list[Finding]:
    """Warn of batches whose counts are less likely than simulated ones; takes what ``posterior.surprise`` returns."""
    excess = {}
    for code, name in enumerate(names):
        members = codes == code
        if members.sum() >= MIN_CELLS:
            more, expected = surprise[members].T
            # By two standard errors, of 0.7 % each for 50 cells of the mixtures, which once had 2.2 % by chance.
            if more.mean() - 2 * more.std() / np.sqrt(members.sum()) > 0.02 * expected.mean():
                excess[name] = float(more.mean() / expected.mean())
    bad = [f"{name} ({excess[name]:+.1%})" for name in sorted(excess, key=lambda n: -excess[n])]
    title = "A batch is fitted badly" if len(bad) == 1 else f"{len(bad)} of {len(names)} batches are fitted badly"
    title = title if len(names) > 1 else "The counts are fitted badly"
    if not bad:  # -0.06 to 0.011 in good fits of all cells, 0.04 for a batch of shuffled counts
        return []
    return [
        Finding(
            title,
            "Real counts are less likely, in nats, than counts that the model simulates for the same cells: "
            f"{named(bad)}.",
            "Check the quality of these cells (ambient RNA, doublets, damaged cells) and how they were processed. If "
            "they are good, compare dispersion='gene-batch'.",
        )
    ]


def confused_labels(confusion: NDArray[np.integer], names: Sequence[str]) -> list[Finding]:
    """Warn of labels in each other's place, by counts of given (rows) and predicted ones of held-out cells."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    pairs = [(i, j) for i, j in np.argwhere((share > 0.2) & (confusion >= 5)) if i != j]
    if not pairs:
        return []
    pairs.sort(key=lambda pair: -share[pair])
    listed = [f"{share[i, j]:.0%} of {names[i]} are called {names[j]}" for i, j in pairs]
    first, second = (names[i] for i in pairs[0])
    return [
        Finding(
            f"Labels {first} and {second} are confused",
            f"Of labelled cells that were kept from training, {named(listed)}.",
            "Join these labels, or check how they were given; do not compare numbers of such cells between samples.",
        )
    ]


def unknown_cells(novelty: NDArray[np.floating], predicted: Codes, names: Sequence[str]) -> list[Finding]:
    """Warn of more cells with a novelty of 0.99 than the hundredth of known types that has it."""
    is_novel = novelty > 0.99
    n_novel = {
        name: int(is_novel[predicted == code].sum())
        for code, name in enumerate(names)
        if is_novel[predicted == code].sum() >= MIN_CELLS and is_novel[predicted == code].mean() > 0.15
    }
    if not n_novel and not (is_novel.mean() > 0.05 and is_novel.sum() >= MIN_CELLS):
        return []  # 0.02 of the cells of a good fit with labels in one of three batches
    listed = [f"{n_novel[name]} that are called {name}" for name in sorted(n_novel, key=lambda name: -n_novel[name])]
    return [
        Finding(
            f"{is_novel.sum()} cells look like none of the labelled types",
            f"They have a novelty above 0.99, {is_novel.mean():.1%} of the cells; of known types one in a hundred has."
            + (f" Among them: {named(listed)}." if listed else ""),
            "Cluster these cells and look at their marker genes; they may be a type without a label, doublets, or "
            "cells of another quality. With max_novelty=0.99 they are called unknown.",
        )
    ]


def named(names: Sequence[str], n_total: int | None = None) -> str:
    """Join the first few names, and count the others."""
    n_total = len(names) if n_total is None else n_total
    shown = names[:N_NAMED]
    return ", ".join(shown) + (f", and {n_total - len(shown)} more" if n_total > len(shown) else "")
