"""From what a data set says of its images to numbered classes. Letters: n images, u different values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from ssl_vit.config.checks import printable

SHOWN = 3  # class names in a line


class Labels(NamedTuple):
    """The class of each image."""

    numbers: Int64[np.ndarray, " n"]  # -1: none
    classes: list[str]  # by these numbers; empty where no image has one
    note: str  # where they come from; without classes why there are none, or ""


def labels_of(values: Any, names: Sequence[str], origin: str) -> Labels:
    """Labels of n values, an array or a list: one for each image. names, origin: as of `number`."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufU":
        different, places = np.unique(values, return_inverse=True)
        return number(different.tolist(), places, names, origin)
    known, places = dict[Any, int](), list[int]()
    for value in values:
        plain = value.item() if isinstance(value, np.generic) else value
        try:
            places.append(known.setdefault(plain, len(known)))
        except TypeError:  # of a list, a dict
            return Labels(np.full(len(values), -1), [], unused(origin, type(plain).__name__))
    return number(list(known), np.array(places, dtype=np.int64), names, origin)


def number(values: list[Any], places: Int64[np.ndarray, " n"], names: Sequence[str], origin: str) -> Labels:
    """Labels of n images by the place of their value among u different ones; -1: none.

    Integers (also as floats) below len(names) are numbers of these classes; what else occurs comes after them, integers
    in their order, then texts in theirs, each named by itself. So 0 .. K-1 stay what they are. None, NaN, a negative
    number and an empty text are no label. Any other value leaves all labels unused, as the note then says.
    """
    integers, texts = dict[int, int](), dict[str, int]()  # value -> its place
    for place, value in enumerate(values):
        if isinstance(value, str):
            texts |= {value: place} if value.strip() else {}
        elif isinstance(value, int | float) and (value != value or value % 1 == 0):
            integers |= {int(value): place} if value >= 0 else {}
        elif value is not None:
            kind = repr(value) if isinstance(value, float) else type(value).__name__
            return Labels(np.full(len(places), -1), [], unused(origin, kind))
    beyond = [str(value) for value in sorted(integers) if value >= len(names)]
    named = set(names)
    classes = [*names, *dict.fromkeys(name for name in [*beyond, *sorted(texts)] if name not in named)]
    number_of = {name: i for i, name in reversed([*enumerate(classes)])}
    codes = np.full(len(values) + 1, -1)  # the last one of place -1
    for value, place in integers.items():
        codes[place] = value if value < len(names) else number_of[str(value)]
    for text, place in texts.items():
        codes[place] = number_of[text]
    return Labels(codes[places], classes, origin) if integers or texts else Labels(codes[places], [], "")


def unused(origin: str, kind: str) -> str:
    """Why a column's labels are none."""
    return f"{origin} holds {kind}, which names no class: left unused"


def labels_line(classes: Sequence[str], note: str) -> str:
    """How many classes there are, where they come from, and the first names; or that there are none, and why."""
    if not classes:
        return f"none: {note}" if note else "none"
    first = ", ".join(printable(name[:40]) for name in classes[:SHOWN]) + ", ..." * (len(classes) > SHOWN)
    return f"{len(classes):,} class{'es' * (len(classes) > 1)}{f' from {note}' * bool(note)}: {first}"
