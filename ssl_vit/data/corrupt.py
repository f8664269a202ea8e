"""Images that cannot be read: what replaces them, and the record of them, counted once in the main process.

Which image replaces another depends on that one and on which others can be read alone: workers, processes and a resume
change nothing. Letters: n images of a source, m that may replace others.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from ssl_vit.config.checks import printable
from ssl_vit.data.sources.base import Source, UnreadableImageError

try:
    import fcntl
except ImportError:  # Windows: two processes that find an image at the same moment may list it twice
    fcntl = None

log = logging.getLogger(__name__)
ReadError = tuple[str, str]  # An image's name, and why it cannot be read.
NAMED = 5  # Images named in the log; a list of all is the file's.
_WINDOW = 1024  # images whose labels are compared at a time
_ESCAPED = {code: ascii(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}  # what a terminal would obey


class ReadErrors:
    """The record of images that cannot be read, each once. max_unreadable: largest legal fraction of all images."""

    def __init__(self, max_unreadable: float) -> None:
        self.max_unreadable = max_unreadable
        self.images = 0  # of training and test together
        self.found: dict[str, str] = {}  # name -> what is wrong with it
        self.path: Path | None = None
        self._end = 0  # of what has been read or written of the file, in bytes
        self._named, self._failed = 0, False

    def list_in(self, path: Path) -> None:
        """Keep the list in a file, a line each: name, tab, reason. What the file has from before a resume counts."""
        self.path = path
        if self.found or path.exists():
            self._append(self.found)

    def note(self, read_errors: Iterable[ReadError]) -> None:
        """Count images that were not known; list those that no process has listed, and log the first few."""
        named = {name.translate(_ESCAPED): reason.translate(_ESCAPED) for name, reason in read_errors}
        new = {name: reason for name, reason in named.items() if name not in self.found}
        for name, reason in (self._append(new) if new and self.path is not None else new).items():
            self._named += 1
            if self._named <= NAMED:
                log.warning(f"{printable(name)} cannot be read: {reason}")
            elif self._named == NAMED + 1:
                where = f"; {self.path} lists them all" if self.path is not None else ""
                log.warning(f"more images cannot be read, which are not named here{where}")
        self.found |= new

    def check(self) -> None:
        """ValueError where more images cannot be read than max_unreadable allows."""
        if self.too_many(len(self.found)):
            name, reason = list(self.found.items())[-1]
            listed = f"; {self.path} lists them: repair them and delete that list" if self.path else ": repair them"
            rule = f"more than data.max_unreadable={self.max_unreadable:g} of them, such as {name} ({reason}){listed}"
            line = f"{len(self.found)} of {self.images} images cannot be read, {rule}"
            raise ValueError(f"{line}, or raise data.max_unreadable=")

    def count(self) -> int:
        """Images that cannot be read, as far as any process that shares the file has found."""
        if self.path is not None:
            with suppress(OSError), self.path.open("rb", buffering=0) as file:  # there is none before the first image
                self._learn(file)
        return len(self.found)

    def too_many(self, count: int) -> bool:
        """Whether so many images that cannot be read are more than max_unreadable allows."""
        return count > 0 and count / self.images > self.max_unreadable  # not max_unreadable * images, which is rounded

    def _learn(self, file: FileIO) -> dict[str, str]:
        """What the file has since it was last read; a line that is still being written waits."""
        file.seek(self._end)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._end += len(whole)
        lines = (line.partition("\t") for line in os.fsdecode(whole).split("\n")[:-1])
        others = {name: reason for name, _, reason in lines}
        self.found |= others
        return others

    def _append(self, read_errors: dict[str, str]) -> dict[str, str]:
        assert self.path is not None
        try:
            with self.path.open("ab+", buffering=0) as file:  # each write is one line at the end of the file
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
                others = self._learn(file)
                read_errors = {name: reason for name, reason in read_errors.items() if name not in others}
                for name, reason in read_errors.items():
                    self._end += file.write(os.fsencode(f"{name}\t{reason}\n"))
        except OSError as error:
            if not self._failed:
                log.warning(f"{self.path} cannot be written: {error}; the run continues without it")
            self._failed = True
        return read_errors


@dataclass(eq=False)
class Replacements:
    """What data.on_error does where an image of a source cannot be read; skips: skip it where its batch has others."""

    source: Source
    labels: Int64[np.ndarray, " n"]  # of all; those of one label may replace one another, and any one without
    members: Int64[np.ndarray, " m"]  # sorted numbers of those that may: none that is held out for evaluation
    read_errors: ReadErrors
    skips: bool = False
    unreadable: set[int] = field(default_factory=set, init=False)  # not tried again in the place of others

    def read(self, index: int, found: list[ReadError]) -> UInt8[np.ndarray, "H W C"] | None:
        """An image; None where it cannot be read, which is appended to found."""
        try:
            return self.source.read(index)
        except UnreadableImageError as error:
            self.unreadable.add(index)
            found.append((self.source.name(index), error.reason))
            return None

    def replace(self, index: int, found: list[ReadError]) -> UInt8[np.ndarray, "H W C"] | None:
        """The next readable image of the label, cyclically; None where there is none, or too many are unreadable."""
        for other in self._others(index):
            if self.read_errors.too_many(len(self.unreadable)):
                return None
            if other not in self.unreadable and (pixels := self.read(other, found)) is not None:
                return pixels
        return None

    def _others(self, index: int) -> Iterator[int]:
        place, count, label = int(np.searchsorted(self.members, index)), len(self.members), self.labels[index]
        for start in range(1, count, _WINDOW):
            others = self.members[(place + np.arange(start, min(start + _WINDOW, count))) % count]
            yield from others[(label < 0) | (self.labels[others] == label)].tolist()
