"""Images of any source packed into tar shards, with their labels, in a mixed order: what tools/make_shards.py does.

The order is a random one, the same every time, so that images of one class or patient lie apart and a stream needs
but a small shuffle buffer. Shards are written whole or not at all, the index last.
"""

import logging
import os
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ssl_vit.config.checks import require
from ssl_vit.config.tool_schema import ShardsConfig
from ssl_vit.data.cache import cores
from ssl_vit.data.rng import permutation
from ssl_vit.data.sources.base import Source, UnreadableImageError
from ssl_vit.data.sources.registry import Split, open_source
from ssl_vit.data.sources.webdataset import INDEX, MEMBERS
from ssl_vit.run.files import write_atomic, write_json

log = logging.getLogger("ssl_vit")
SPLITS: tuple[Split, ...] = ("train", "test")
JPEG_QUALITY = 95
"""Of images that are scaled down."""
# By PIL's name of the format; MPO is a JPEG with further images behind it.
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}
_GROUP = 64  # images handed to the threads at once


class Shard:
    """One tar file being written, under another name until it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.members = path, list[tuple[int, int, int]]()
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self.tar = tarfile.open(self.temporary, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  # closed by close()

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self.tar.offset

    def add(self, key: str, encoded: bytes, ending: str, label: int) -> None:
        """Append an image, and its label where it has one (label >= 0)."""
        files = {ending: encoded} | ({"cls": str(label).encode()} if label >= 0 else {})
        for suffix, content in files.items():
            header = tarfile.TarInfo(f"{key}.{suffix}")
            header.size = len(content)
            if suffix == ending:
                self.members.append((self.tar.offset + tarfile.BLOCKSIZE, len(content), label))
            self.tar.addfile(header, BytesIO(content))

    def close(self) -> None:
        """End the file and give it its name."""
        self.tar.close()
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self.temporary, self.path)


def make_shards(config: ShardsConfig) -> dict[str, Any]:
    """Write train-*.tar, test-*.tar where there are test images, index.json and members.npy into config.out.

    Images that cannot be read are named in the log and left out.

    Returns:
        out, and how many shards, images, bytes and left_out there are.

    Raises:
        ValueError: no place to write to, or the source cannot be opened; OSError: the disk is full.
    """
    out = Path(config.out)
    free = bool(config.out) and (not out.exists() or (out.is_dir() and not any(out.iterdir())))
    require(free, "out", config.out, "an empty or a new folder")
    # The number of channels matters to decoding alone.
    sources: dict[Split, Source | None] = {split: open_source(config.data, 3, split) for split in SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    shards, members, classes, skipped = dict[str, dict[str, int]](), list[tuple[int, int, int]](), list[str](), 0
    for split, source in sources.items():
        if source is None:
            continue
        classes += [name for name in source.classes if name not in classes]
        for shard in _written(out, split, source, classes, config):
            shards[shard.path.name] = {"images": len(shard.members), "bytes": shard.path.stat().st_size}
            members += shard.members
        skipped += len(source)
    skipped -= len(members)
    table = BytesIO()
    np.save(table, np.array(members, dtype=np.int64).reshape(-1, 3))
    write_atomic(out / MEMBERS, table.getvalue())
    write_json(out / INDEX, {"classes": classes, "shards": shards})
    size = sum(shard["bytes"] for shard in shards.values())
    return {"out": str(out), "shards": len(shards), "images": len(members), "bytes": size, "left_out": skipped}


def _written(out: Path, split: Split, source: Source, classes: list[str], config: ShardsConfig) -> Iterator[Shard]:
    """Whole shards, one after the other."""
    images, made = _encoded(source, config.size), 0
    numbers = [classes.index(name) for name in source.classes]
    following = next(images, None)
    while following is not None:
        shard, made = Shard(out / f"{split}-{made:06}.tar"), made + 1
        try:
            while following is not None and shard.size < config.shard_mb * 1e6:
                index, content, ending = following
                label = int(source.labels[index])
                shard.add(f"{index:09}", content, ending, numbers[label] if label >= 0 else -1)
                following = next(images, None)
            shard.close()
        finally:
            shard.temporary.unlink(missing_ok=True)
        yield shard


def _encoded(source: Source, size: int) -> Iterator[tuple[int, bytes, str]]:
    """(index, file's bytes, ending) of every image that can be read, in a random order that is always the same."""

    def one(index: int) -> tuple[int, bytes, str] | UnreadableImageError:
        try:
            return (index, *source.look(index, lambda image: encoded(image, size)))
        except UnreadableImageError as error:
            return error

    order, told = permutation(0, 0, len(source)).tolist(), time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(order), _GROUP):
            if time.monotonic() - told > 5:
                told = time.monotonic()
                log.info("packed %d of %d images", start, len(order))
            for result in pool.map(one, order[start : start + _GROUP]):
                if isinstance(result, UnreadableImageError):
                    log.warning("left out: %s", result)
                else:
                    yield result


def encoded(image: Image.Image, size: int) -> tuple[bytes, str]:
    """An image as a file's bytes, and the ending that goes with them.

    The bytes of the file that it comes from, where there is one and its short side is at most size pixels (0: any).
    Scaled down it is upright, a JPEG stays one, and anything else becomes a PNG, as does an image without a file.
    """
    ending, file = _ENDINGS.get(image.format or "", "png"), getattr(image, "fp", None)
    shrink = 0 < size < min(image.size)
    if file is not None and not shrink:
        file.seek(0)
        return file.read(), ending
    if shrink:
        ImageOps.exif_transpose(image, in_place=True)
        image = image.convert("RGBA" if "transparency" in image.info else "RGB") if image.mode == "P" else image
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    stored = BytesIO()
    if ending == "jpg":
        image.save(stored, "JPEG", quality=JPEG_QUALITY, subsampling=0)
        return stored.getvalue(), "jpg"
    image.save(stored, "PNG")
    return stored.getvalue(), "png"
