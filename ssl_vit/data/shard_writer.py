"""Images of any source packed into tar shards as WebDataset's, in a random order that is the same every time."""

import logging
import os
import struct
import tarfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Shaped, UInt16
from PIL import Image

from ssl_vit.config.checks import require
from ssl_vit.config.evaluation_schema import ShardsConfig
from ssl_vit.data.cache import cores
from ssl_vit.data.rng import permutation
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import Source, Split, UnreadableImageError
from ssl_vit.data.sources.webdataset import INDEX, MEMBERS, UNFINISHED, scan
from ssl_vit.models.decode import WHITE, Bands, bands_by_pil, bands_of, decode, is_deep, is_inverted
from ssl_vit.run.files import write_atomic, write_json

log = logging.getLogger("ssl_vit")
JPEG_QUALITY = 95  # Of images that are scaled down.
# By PIL's name of the format; MPO is a JPEG with further images behind it.
_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}
_ENDINGS |= {"NPY": "npy", "NPZ": "npz", "DICOM": "dcm"}
_PACKED_AS = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}
_PACKED_AS |= dict.fromkeys(("YCbCr", "LAB", "HSV"), "RGB")
_GROUP = 64  # images in memory at once


def make_shards(config: ShardsConfig) -> dict[str, Any]:
    """Write train-*.tar, test-*.tar where there are test images, index.json and members.npy into config.out.

    Until all is written index.json says so, and the shards are not read. Returns out, and how many shards, images,
    bytes and skipped (unreadable) images there are. ValueError: no place to write to, the source cannot be opened or is
    a remote stream, or none of its images can be read; OSError: the disk is full.
    """
    require_packable(config)
    out = Path(config.out)
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


def require_packable(config: ShardsConfig) -> None:
    """ValueError: there is no place to write to, or the source is a remote stream."""
    if config.data.remote:
        line = f"data.path={config.data.path} is a remote stream, whose images cannot be mixed"
        raise ValueError(f"{line}: bring its files to this machine and pack those")
    out = Path(config.out)
    free = bool(config.out) and (not out.exists() or (out.is_dir() and not any(out.iterdir())))
    require(free, "out", config.out, "an empty or a new folder")


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

    Scaled down it is upright, and each band by itself. A JPEG stays one; gray, color and transparency of 8 and 16 bits
    become a PNG, as does an image without a file; other bands become a TIFF (CMYK) or an array (.npy). What PIL reads
    in part, or by data.white_16bit, of a TIFF is packed as it is.
    """
    ending, file = _ENDINGS.get(image.format or "", "png"), getattr(image, "fp", None)
    shrink = 0 < size < min(image.size)
    partial = isinstance(image, Bands) or is_deep(image) or bands_of(image) != bands_by_pil(image) or is_inverted(image)
    partial = partial and image.format == "TIFF"
    if file is not None and (not shrink or partial):
        file.seek(0)
        return file.read(), ending
    decoded, lossy = decode(image, is_deep(image)), ending == "jpg" and shrink
    if isinstance(decoded, np.ndarray):
        values, mode = decoded, "" if isinstance(image, Bands) else "I;16"
    else:
        converted = _PACKED_AS.get(decoded.mode)
        decoded = decoded.convert(converted) if converted else decoded
        values, mode = np.atleast_3d(np.asarray(decoded)), decoded.mode
    if shrink:
        height, width = (max(size, round(side * (size / min(values.shape[:2])))) for side in values.shape[:2])
        values = np.stack([_resized(band, (width, height)) for band in np.moveaxis(values, 2, 0)], axis=2)
    stored = BytesIO()
    if not mode:
        np.save(stored, values)
        return stored.getvalue(), "npy"
    if mode == "I;16":
        return png_of_16_bits(values), "png"
    kind, options = ("JPEG", {"quality": JPEG_QUALITY, "subsampling": 0}) if lossy else ("PNG", {})
    if mode == "CMYK" and not lossy:
        kind, options = "TIFF", {"compression": "tiff_deflate"}
    Image.frombytes(mode, (values.shape[1], values.shape[0]), values.tobytes()).save(stored, kind, **options)
    return stored.getvalue(), _ENDINGS[kind]


def _resized(band: Shaped[np.ndarray, "H W"], size: tuple[int, int]) -> Shaped[np.ndarray, "h w"]:
    if band.dtype == np.uint8:
        return np.asarray(Image.fromarray(band).resize(size, Image.Resampling.BICUBIC))
    values = np.asarray(Image.fromarray(band.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
    return np.clip(np.rint(values), 0, WHITE).astype(np.uint16)


def png_of_16_bits(values: UInt16[np.ndarray, "H W S"]) -> bytes:
    """A PNG of gray, gray and alpha, RGB or RGBA, which PIL does not write with 16 bits."""
    height, width, bands = values.shape
    rows = np.pad(values.astype(">u2").reshape(height, -1).view(np.uint8), ((0, 0), (1, 0)))  # 0: a row as it is
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
