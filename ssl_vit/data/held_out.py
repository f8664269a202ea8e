"""Which images are for evaluation: a test split of its own, or what is held out of the training images.

Letters: n images of a source, m of a split.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ssl_vit.data.rng import stratified
from ssl_vit.data.sources.base import Source

HELD_OUT = 0.2  # Fraction of a labeled source without a test split that is kept for evaluation.


@dataclass(frozen=True)
class EvalSplit:
    """Images for evaluation: some of a source, and its labels in the numbering of the training classes."""

    source: Source
    labels: Int64[np.ndarray, " n"]
    index: Int64[np.ndarray, " m"]


@dataclass(frozen=True)
class EvalSplits:
    """Both splits, and the classes of their labels, by name; foreign_classes: those of the test split alone."""

    train: EvalSplit
    test: EvalSplit
    classes: list[str]
    foreign_classes: list[str]
    has_labels: bool
    note: str  # how the test split came about


def eval_splits(train: Source, test: Source | None, seed: int, key: str = "data.path") -> EvalSplits:
    """With labels only labeled images; without a test split 20 % of them, drawn by seed, are held out as one."""
    for source in (train, test):
        if source is not None:
            source.find_labels()
    known, has_labels = list(train.classes), bool((train.labels >= 0).any())
    foreign = [name for name in test.classes if name not in known] if test is not None else []
    lowest = 0 if has_labels else -1  # label of an image to evaluate on
    kept = np.flatnonzero(train.labels >= lowest)
    if test is not None:
        shared = bool(set(test.classes) & set(known))
        numbers = np.array([*((known + foreign).index(name) for name in test.classes), -1])
        labels = numbers[test.labels] if shared else np.full(len(test), -1)  # -1 takes the last number, -1
        if len(index := np.flatnonzero(labels >= lowest)):
            own = EvalSplit(train, train.labels, kept), EvalSplit(test, labels, index)
            return EvalSplits(*own, known + foreign * shared, foreign, has_labels, "its own test split")
    held_out, note = kept, "the first of the training images" if key == "data.path" else f"the first of {key}"
    if has_labels:
        held_out = kept[stratified(train.labels[kept], max(1, round(HELD_OUT * len(kept))), seed)]
        kept = np.setdiff1d(kept, held_out)
        note = f"held-out {100 * HELD_OUT:.0f} % of {key}, seed {seed}"
        note += "" if test is None else " (its test split has none of its classes)"
    first, second = (EvalSplit(train, train.labels, index) for index in (kept, held_out))
    return EvalSplits(first, second, known, foreign, has_labels, note)
