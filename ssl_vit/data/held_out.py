"""Which images are for evaluation: a test split of its own, or what is held out of the training images.

Letters: n images of a source, m of a split.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from ssl_vit.data.labels import labels_line
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
    label_note: str  # where the labels come from; without labels why there are none

    def lines(self, images: int, test_images: int) -> list[str]:
        """What a header says of so many images to train on and to evaluate on."""
        counts = f"{images:,} for training, {test_images:,} for evaluation: {self.note}"
        lines = [f"images        {counts}"]
        foreign = set(self.foreign_classes)
        known = [name for name in self.classes if name not in foreign] if self.has_labels else []
        lines += [f"labels        {labels_line(known, self.label_note)}"]
        lines += [f"              {labels_line(self.foreign_classes, 'the test images alone')}"] if foreign else []
        return lines


def eval_splits(train: Source, test: Source | None, seed: int, key: str = "data.path") -> EvalSplits:
    """With labels only labeled images; without a test split 20 % of them, drawn by seed, are held out as one."""
    for source in (train, test):
        if source is not None:
            source.find_labels()
    known, has_labels, why = list(train.classes), bool((train.labels >= 0).any()), train.label_note
    number_of = {name: i for i, name in reversed([*enumerate(known)])}
    foreign = [name for name in test.classes if name not in number_of] if test is not None else []
    lowest = 0 if has_labels else -1  # label of an image to evaluate on
    kept = np.flatnonzero(train.labels >= lowest)
    if test is not None:
        shared = len(foreign) < len(test.classes)
        number_of |= {name: len(known) + i for i, name in enumerate(foreign)}
        same = known + [""] * len(test.classes)  # two classes may have one name: then their places tell
        numbers = np.array([*(i if name == same[i] else number_of[name] for i, name in enumerate(test.classes)), -1])
        labels = numbers[test.labels] if shared else np.full(len(test), -1)  # -1 takes the last number, -1
        if len(index := np.flatnonzero(labels >= lowest)):
            own = EvalSplit(train, train.labels, kept), EvalSplit(test, labels, index)
            return EvalSplits(*own, known + foreign * shared, foreign, has_labels, "its own test split", why)
    held_out, note = kept, "the first of the training images" if key == "data.path" else f"the first of {key}"
    if has_labels:
        held_out = kept[stratified(train.labels[kept], max(1, round(HELD_OUT * len(kept))), seed)]
        kept = np.setdiff1d(kept, held_out)
        note = f"held-out {100 * HELD_OUT:.0f} % of {key}, seed {seed}"
        note += "" if test is None else " (its test split has none of its classes)"
    first, second = (EvalSplit(train, train.labels, index) for index in (kept, held_out))
    return EvalSplits(first, second, known, foreign, has_labels, note, why)
