"""What of a tar file is an image, and which label it has; nothing is unpickled, and what is skipped is counted.

A sample is the files in a row whose names agree up to the first dot, as in WebDataset: an image, and where there are
classes a `cls` or a `json` with a `label`. Of images with and without a further dot (`0.jpg`, `0.seg.png`) the one
without counts; without any such each counts (`2024.05.07.png`, `0.left.png`), with the label of its own name, else of
the sample's. A name that comes again begins another sample.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ssl_vit.config.auto_source import ARRAYS, IMAGES
from ssl_vit.data.tar import Member, TarReader

_ENDINGS = (*IMAGES, *ARRAYS)  # of a sample's image; of several the first counts
_LABELS = ("cls", "json")
_LARGEST_SAMPLE = 64  # files; more that agree up to the first dot are dates or versions
_LARGEST_LABEL = 2**20  # bytes of its file
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own files
Label = int | str | None  # -1 where there is none; a class name; None: neither an integer nor a name


class Found(NamedTuple):
    """An image in a shard, or where `size` is negative a damaged part of so many bytes."""

    encoded: bytes  # empty where only places are asked for
    offset: int
    size: int
    label: Label


@dataclass
class _Group:
    """The files of a sample: images by their name without the last ending, in their order, and labels likewise."""

    key: str
    images: dict[str, list[tuple[str, Found]]] = field(default_factory=dict)
    labels: dict[tuple[str, str], Label] = field(default_factory=dict)
    seen: set[tuple[str, str]] = field(default_factory=set)

    def chosen(self, skipped: Counter[str]) -> Iterator[Found]:
        """The images that count; the others are counted as skipped, and labels that nobody takes."""
        stems = [self.key] if self.key in self.images else list(self.images)
        for stem, images in self.images.items():
            images.sort(key=lambda image: _ENDINGS.index(image[0]))
            for ending, _ in images[stem in stems :]:
                skipped[_shown(f"{stem[len(self.key) :]}.{ending}"[1:])] += 1
        for stem, ending in self.labels:
            if stem not in stems and not (stem == self.key and stems):
                skipped[f".{ending}"] += 1
        for stem in stems:
            label = next((self.labels[at, e] for at in (stem, self.key) for e in _LABELS if (at, e) in self.labels), -1)
            if label is None:
                skipped["labels that are neither an integer nor a name"] += 1
            yield self.images[stem][0][1]._replace(label=-1 if label is None else label)


def samples(reader: TarReader, skipped: Counter[str], located: bool) -> Iterator[Found]:
    """The images of a tar file in their order, and its damaged parts; what is neither image nor label adds to skipped.

    located: where the images lie alone, without their bytes. Raises what the reader does.
    """
    group, last = _Group(""), ""
    for member in reader:
        if member.kind == "folder":
            continue
        folder, slash, base = member.name.rpartition("/")
        stem, dot, ending = base.rpartition(".")
        key, stem, ending = folder + slash + base.partition(".")[0], folder + slash + stem, ending.lower() * bool(dot)
        if member.kind != "file" or _hidden(member.name) or ending not in (*_ENDINGS, *_LABELS):
            if member.kind != "damage":
                skipped[_named(member, ending)] += 1
                continue
            yield from group.chosen(skipped)
            group = _Group("")
            yield Found(b"", member.offset, -member.size, -1)
            continue
        large = len(group.seen) >= _LARGEST_SAMPLE and stem != last
        if key != group.key or large or (stem, ending) in group.seen:
            yield from group.chosen(skipped)
            group = _Group(key)
        group.seen.add((stem, ending))
        last = stem
        if ending in _ENDINGS:
            encoded = b"" if located else reader.read(member.size)
            group.images.setdefault(stem, []).append((ending, Found(encoded, member.offset, member.size, -1)))
        elif member.size <= _LARGEST_LABEL:
            group.labels[stem, ending] = _label(ending, reader.read(member.size))
        else:
            group.labels[stem, ending] = None
    yield from group.chosen(skipped)


def _label(ending: str, content: bytes) -> Label:
    try:
        value: Any = json.loads(content) if ending == "json" else content.decode("utf-8-sig")
    except (ValueError, RecursionError):  # no JSON, no text
        return None
    if ending == "json":
        value = value.get("label") if isinstance(value, dict) else None
        if value is None:
            return -1
    text = str(value).strip() if type(value) in (int, str) else ""
    if re.fullmatch(r"[-+]?\d{1,18}", text, re.ASCII):
        return max(int(text), -1)
    number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|[-+]?(nan|inf(inity)?)", text, re.ASCII | re.IGNORECASE)
    return None if number or not text or len(text) > 255 or not text.isprintable() else text


def _hidden(name: str) -> bool:
    parts = name.split("/")
    return bool(_META.match(name)) or any(part.startswith(".") and part not in (".", "..") for part in parts)


def _named(member: Member, ending: str) -> str:
    if member.kind != "file":
        return f"{member.kind}s"
    return "hidden" if _hidden(member.name) else _shown(ending)


def _shown(ending: str) -> str:
    return f".{ending}" if re.fullmatch(r"[\w.-]{1,32}", ending) else "of other names"
