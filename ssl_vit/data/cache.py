"""Images decoded once, into one array that every forked worker sees. Letters: H W pixels, C channels."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from ssl_vit.data.sources.base import Source, UnreadableImageError

log = logging.getLogger(__name__)
_GROUP = 64  # images per task: a task costs as much as decoding a small image
_T = TypeVar("_T")


class Cached(Source):
    """A source whose decoded images lie one after the other in one uint8 array; unreadable ones have no place there."""

    def __init__(self, source: Source, shapes: np.ndarray, unreadable: dict[int, UnreadableImageError]) -> None:
        self.source, self.shapes, self.unreadable = source, shapes, unreadable
        self.labels, self.classes, self.label_note = source.labels, source.classes, source.label_note
        ends = np.cumsum(shapes.prod(axis=1) * source.channels)
        self.offsets = np.concatenate([[0], ends])
        self.values = np.empty(ends[-1] if len(ends) else 0, dtype=np.uint8)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def size(self, index: int) -> tuple[int, int]:
        height, width, _ = self.read(index).shape
        return height, width

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        if known := self.unreadable.get(index):
            raise UnreadableImageError(str(known), known.reason)
        return self.values[self.offsets[index] : self.offsets[index + 1]].reshape(*self.shapes[index], -1)

    def fill(self, index: int) -> None:
        """Decode one image into its place, which may be known turned. UnreadableImageError where it cannot be read."""
        image, place = self.source.read(index), self.values[self.offsets[index] : self.offsets[index + 1]]
        if image.size != place.size:
            reason = f"its header says {self.shapes[index]} pixels, {image.shape[:2]} came"
            raise UnreadableImageError(f"{self.name(index)} cannot be used: {reason}: delete or replace it", reason)
        self.shapes[index], place[:] = image.shape[:2], image.ravel()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gb(source: Source | None) -> float:
    """GB of decoded images that a source keeps in memory."""
    return source.values.nbytes / 1e9 if isinstance(source, Cached) else 0.0


def cached(source: Source, budget_gb: float, stops: bool = True) -> Source:
    """The source decoded, or itself where that needs more than budget_gb; stops: raise UnreadableImageError."""
    shapes: list[tuple[int, int]] = []
    unreadable: dict[int, UnreadableImageError] = {}

    def attempt(work: Callable[[int], _T], index: int) -> _T | None:
        try:
            return work(index) if index not in unreadable else None
        except UnreadableImageError as error:
            if stops:
                raise
            unreadable[index] = UnreadableImageError(str(error), error.reason)  # without the frames that saw it

    budget = budget_gb * 1e9
    with ThreadPoolExecutor(cores()) as pool:
        for size in _in_order(pool, partial(attempt, source.size), len(source)):
            shapes.append(size or (0, 0))
            budget -= math.prod(shapes[-1]) * source.channels
            if budget < 0:
                return source
        whole = Cached(source, np.array(shapes, dtype=np.int64).reshape(-1, 2), unreadable)
        logged = time.monotonic()
        for done, _ in enumerate(_in_order(pool, partial(attempt, whole.fill), len(source)), start=1):
            if time.monotonic() - logged > 5:
                logged = time.monotonic()
                log.info("decoded %d of %d images into memory", done, len(source))
    return whole


def _in_order(pool: ThreadPoolExecutor, work: Callable[[int], _T], count: int) -> Iterator[_T]:
    """work(0), work(1), ... on the pool. A caller that stops early cancels what has not begun."""

    def group(start: int) -> list[_T]:
        return [work(index) for index in range(start, min(start + _GROUP, count))]

    for results in pool.map(group, range(0, count, _GROUP)):
        yield from results
