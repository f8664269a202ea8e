"""Images of any source packed into tar shards as WebDataset's, in a random order that is the same every time."""

import logging
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image, ImageOps

from ssl_vit.config.checks import require
from ssl_vit.config.evaluation_schema import ShardsConfig
from ssl_vit.data.cache import cores
from ssl_vit.data.rng import permutation
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import Source, Split, UnreadableImageError
from ssl_vit.data.sources.webdataset import INDEX, MEMBERS, UNFINISHED, scan
from ssl_vit.run.files import write_atomic, write_json

log = logging.getLogger("ssl_vit")
JPEG_QUALITY = 95  # Of images that are scaled down.
# By PIL's name of the format; MPO is a JPEG with further images behind it.
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}
_GROUP = 64  # images in memory at once


def make_shards(config: ShardsConfig) -> dict[str, Any]:
    """Write train-*.tar, test-*.tar where there are test images, index.json and members.npy into config.out.

    Until all is written index.json says so, and the shards are not read. Returns out, and how many shards, images,
    bytes and skipped (unreadable) images there are. ValueError: no place to write to, the source cannot be opened or is
    a remote stream, or none of its images can be read; OSError: the disk is full.
    """
    if config.data.remote:
        line = f"data.path={config.data.path} is a remote stream, whose images cannot be mixed"
        raise ValueError(f"{line}: bring its files to this machine and pack those")
    out = Path(config.out)
    free = bool(config.out) and (not out.exists() or (out.is_dir() and not any(out.iterdir())))
    require(free, "out", config.out, "an empty or a new folder")
    # The number of channels matters to decoding alone.
    sources = [
        (split, source) for split in get_args(Split) if (source := open_source(config.data, 3, split)) is not None
    ]
    write_json(out / INDEX, {UNFINISHED: True})
    classes = list(dict.fromkeys(name for _, source in sources for name in source.classes))
    shards, members = dict[str, dict[str, int]](), [np.empty((0, 3), np.int64)]
    for split, source in sources:
        samples = _samples(source, np.array([*map(classes.index, source.classes), -1]), config.size)
        for number, first in enumerate(samples):
            path = out / f"{split}-{number:06}.tar"
            _write(path, chain([first], samples), config.shard_mb * 1e6)
            members.append(scan(path).members)
            shards[path.name] = {"images": len(members[-1]), "bytes": path.stat().st_size}
        if split == "train" and not shards:
            (out / INDEX).unlink()
            raise ValueError(
                f"data.path={config.data.path}: none of {len(source)} images can be read, nothing is packed"
            )
    table = BytesIO()
    np.save(table, np.concatenate(members))
    write_atomic(out / MEMBERS, table.getvalue())
    write_json(out / INDEX, {"classes": classes, "shards": shards})
    images, size = (sum(shard[key] for shard in shards.values()) for key in ("images", "bytes"))
    skipped = sum(len(source) for _, source in sources) - images
    return {"out": str(out), "shards": len(shards), "images": images, "bytes": size, "skipped": skipped}


def _write(path: Path, samples: Iterator[dict[str, Any]], size: float) -> None:
    """A shard of at least `size` bytes, or of what samples are left, under another name until it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                while tar.offset < size and (sample := next(samples, None)) is not None:
                    _add(tar, sample)
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]  # which would grow
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        advice = "free some space, delete the folder and pack again"
        raise OSError(error.errno, f"{path} was not written ({error.strerror}): {advice}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, sample: dict[str, Any]) -> None:
    for ending in sorted(sample.keys() - {"__key__"}):
        header = tarfile.TarInfo(f"{sample['__key__']}.{ending}")
        header.size, header.mode = len(sample[ending]), 0o444
        tar.addfile(header, BytesIO(sample[ending]))


def _samples(source: Source, numbers: np.ndarray, size: int) -> Iterator[dict[str, Any]]:
    """numbers: of the source's classes in the index, the last one -1 for images without a label."""

    def sample(index: int) -> dict[str, Any] | UnreadableImageError:
        try:
            content, ending = source.inspect(index, lambda image: encoded(image, size))
        except UnreadableImageError as error:
            return error
        label = int(numbers[source.labels[index]])
        return {"__key__": f"{index:09}", ending: content} | ({"cls": str(label).encode()} if label >= 0 else {})

    order = permutation(0, 0, len(source)).tolist()
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(order), _GROUP):
            if start and start % (100 * _GROUP) == 0:
                log.info("packed %d of %d images", start, len(order))
            for result in pool.map(sample, order[start : start + _GROUP]):
                if isinstance(result, UnreadableImageError):
                    log.warning("skipped: %s", result)
                else:
                    yield result


def encoded(image: Image.Image, size: int) -> tuple[bytes, str]:
    """An image as a file's bytes, and the ending: the file's own where its short side is at most size pixels (0: any).

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
        width, height = (max(size, round(side * (size / min(image.size)))) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    stored, kind = BytesIO(), "JPEG" if ending == "jpg" else "PNG"
    image.save(stored, kind, **({"quality": JPEG_QUALITY, "subsampling": 0} if kind == "JPEG" else {}))
    return stored.getvalue(), "jpg" if kind == "JPEG" else "png"
