"""The same file gives the same pixels, or the same error, by every road: each kind of image file times each road.

What is expected is computed from the values that a file was written with, not from what PIL reads.
"""

import importlib.util
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from dicom_files import dicom
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ssl_vit.config.evaluation_schema import ShardsConfig, VisualizeConfig
from ssl_vit.config.finetune_schema import PredictConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.cache import Cached, cached
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.shard_writer import make_shards, png_of_16_bits
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import Source, UnreadableImageError
from ssl_vit.evaluate.visualize import read_images
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.supervised import predict as prediction
from ssl_vit.supervised.classifier import Classifier

H, W, SIZE = 24, 36, 12
needs = {
    name: importlib.util.find_spec(name) is not None
    for name in ("tifffile", "webdataset", "pyarrow", "datasets", "pydicom")
}
TIFFFILE = "tifffile to be read in full, pip install 'ssl_vit\\[tiff\\]'"


def smooth(bands: int, top: int = 255) -> np.ndarray:
    """Waves in 0 .. top, each band its own; smooth, so that resized images agree."""
    rows, columns = np.mgrid[:H, :W]
    waves = [(1 + np.sin(rows / 7 + 2 * band) * np.cos(columns / 9 - band)) / 2 for band in range(bands)]
    return np.rint(np.stack(waves, axis=2) * top).astype(np.uint16 if top > 255 else np.uint8)


def scaled(values: np.ndarray, white: int = 65535) -> np.ndarray:
    return np.rint(np.clip(values.astype(np.float64) * (255 / white), 0, 255)).astype(np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stored = io.BytesIO()
    image.save(stored, kind, **options)
    return stored.getvalue()


def tiff(
    values: np.ndarray, photometric: int, order: str = "<", planar: int = 1, extras=(), kind: int = 1, turned: int = 1
) -> bytes:
    """Uncompressed, [H, W, bands]; extras: what the bands beyond the color are; kind 1: unsigned, 2: signed."""
    height, width, bands = values.shape
    stored = values.transpose(2, 0, 1) if planar == 2 else values
    data = stored.astype(values.dtype.newbyteorder(order)).tobytes()
    pieces = bands if planar == 2 else 1
    offsets = [8 + i * (len(data) // pieces) for i in range(pieces)]
    longs = {256: [width], 257: [height], 273: offsets, 278: [height], 279: [len(data) // pieces] * pieces}
    bits = [values.dtype.itemsize * 8] * bands
    shorts = {258: bits, 259: [1], 262: [photometric], 274: [turned], 277: [bands], 284: [planar], 339: [kind] * bands}
    shorts |= {338: list(extras)} if extras else {}
    tags = sorted([(tag, 4, "I", v) for tag, v in longs.items()] + [(tag, 3, "H", v) for tag, v in shorts.items()])
    pool, entries, start = b"", b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for tag, code, letter, numbers in tags:
        raw = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(raw) > 4:
            pool, raw = pool + raw, struct.pack(f"{order}I", start + len(pool))
        entries += struct.pack(f"{order}HHI", tag, code, len(numbers)) + raw.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + pool


def array(values: np.ndarray) -> bytes:
    stored = io.BytesIO()
    np.save(stored, values)
    return stored.getvalue()


def arrays(**named: np.ndarray) -> bytes:
    stored = io.BytesIO()
    np.savez_compressed(stored, **named)
    return stored.getvalue()


@dataclass
class Case:
    content: bytes
    ending: str
    expected: np.ndarray | str  # [H, W, C], or what the error says
    channels: int = 3
    white: int = 65535
    lossy: bool = False  # a JPEG, or a lossy WebP
    whole: bool = False  # packed as it is, whatever size=
    pil: bool = True  # whether a Dataset of PIL images can give it


RGB, GRAY, FOUR = smooth(3), smooth(1), smooth(4)
COLOR, GRAYS = Image.fromarray(RGB), Image.fromarray(GRAY[:, :, 0])
DEEP, TWELVE = smooth(4, 65535), smooth(4, 4095)
TEN = smooth(10)
three = lambda gray: np.repeat(gray, 3, axis=2)  # noqa: E731
BITS = np.where(np.indices((H, W)).sum(0) // 6 % 2, 255, 0).astype(np.uint8)
ALPHA = np.concatenate([RGB, np.where(BITS > 0, 255, 0).astype(np.uint8)[:, :, None]], axis=2)  # a logo on white
ALPHA[BITS == 0, :3] = 255
PALETTE = Image.fromarray(RGB).quantize(16)
PALETTE_RGB = np.asarray(PALETTE.convert("RGB"))
SIDEWAYS, GAMMA = Image.Exif(), PngInfo()
SIDEWAYS[0x112] = 6
GAMMA.add(b"gAMA", struct.pack(">I", 100000))
TURNED = np.rot90(RGB, -1)
CMYK = np.stack([255 - RGB[:, :, 0], 255 - RGB[:, :, 1], 255 - RGB[:, :, 2], FOUR[:, :, 3] // 2], axis=2)
INK = np.rint((255 - CMYK[:, :, :3].astype(float)) * (255 - CMYK[:, :, 3:]) / 255).astype(np.uint8)
NEEDS_TIFF = {} if needs["tifffile"] else {"expected": TIFFFILE}


def late_exif(content: bytes) -> bytes:
    """A PNG whose orientation comes behind its pixels."""
    exif = SIDEWAYS.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    end = content.index(b"IEND") - 4
    return content[:end] + chunk + content[end:]


def cases() -> dict[str, Case]:
    luma = np.asarray(COLOR.convert("L"))[:, :, None]
    tall16 = png_of_16_bits(DEEP[:, :, :3])
    made = {
        "1 png": Case(saved(Image.fromarray(BITS).convert("1")), "png", three(BITS[:, :, None])),
        "1 tiff": Case(saved(Image.fromarray(BITS).convert("1"), "TIFF"), "tif", three(BITS[:, :, None])),
        "L png": Case(saved(GRAYS), "png", three(GRAY)),
        "L png, one channel": Case(saved(GRAYS), "png", GRAY, channels=1),
        "L jpeg": Case(saved(GRAYS, "JPEG", quality=98), "jpg", three(GRAY), lossy=True),
        "L gif": Case(saved(GRAYS, "GIF"), "gif", three(GRAY)),
        "L tiff": Case(saved(GRAYS, "TIFF"), "tif", three(GRAY)),
        "L tiff, white is zero": Case(tiff(255 - GRAY, 0), "tif", three(GRAY)),
        "LA png": Case(saved(Image.fromarray(FOUR[:, :, :2], "LA")), "png", three(FOUR[:, :, :1])),
        "LA png, two channels": Case(saved(Image.fromarray(FOUR[:, :, :2], "LA")), "png", FOUR[:, :, :2], channels=2),
        "RGB png": Case(saved(COLOR), "png", RGB),
        "RGB png, one channel": Case(saved(COLOR), "png", luma, channels=1),
        "RGB png, gamma": Case(saved(COLOR, pnginfo=GAMMA), "png", RGB),
        "RGB png, ICC": Case(saved(COLOR, icc_profile=b"any"), "png", RGB),
        "RGB png, tRNS": Case(saved(COLOR, transparency=tuple(RGB[0, 0].tolist())), "png", RGB),
        "RGB png, EXIF": Case(saved(COLOR, exif=SIDEWAYS), "png", TURNED),
        "RGB png, EXIF behind the pixels": Case(late_exif(saved(COLOR)), "png", TURNED),
        "RGB jpeg, EXIF": Case(
            saved(COLOR, "JPEG", quality=98, subsampling=0, exif=SIDEWAYS), "jpg", TURNED, lossy=True
        ),
        "RGB webp, EXIF": Case(saved(COLOR, "WEBP", lossless=True, exif=SIDEWAYS), "webp", TURNED),
        "RGB tiff, EXIF": Case(saved(COLOR, "TIFF", exif=SIDEWAYS), "tif", TURNED),
        "RGB bmp": Case(saved(COLOR, "BMP"), "bmp", RGB),
        "RGB tiff, deflated": Case(saved(COLOR, "TIFF", compression="tiff_deflate"), "tif", RGB),
        "RGB tiff, planar": Case(tiff(RGB, 2, planar=2), "tif", RGB),
        "RGBA png": Case(saved(Image.fromarray(ALPHA)), "png", ALPHA[:, :, :3]),
        "RGBA png, four channels": Case(saved(Image.fromarray(ALPHA)), "png", ALPHA, channels=4),
        "RGBA webp": Case(saved(Image.fromarray(ALPHA), "WEBP", lossless=True, exact=True), "webp", ALPHA[:, :, :3]),
        "RGBA tiff": Case(tiff(ALPHA, 2, extras=[2]), "tif", ALPHA[:, :, :3]),
        "RGBX tiff": Case(tiff(FOUR, 2, extras=[0]), "tif", FOUR[:, :, :3], whole=True),
        "RGB + infrared tiff": Case(tiff(FOUR, 2, extras=[0]), "tif", FOUR, channels=4, whole=True),
        "RGB + infrared tiff, five": Case(
            tiff(FOUR, 2, extras=[0]),
            "tif",
            r"it has 4 bands \(RGB\), encoder.channels=5 needs 5",
            channels=5,
            whole=True,
        ),
        "RGB + infrared tiff, planar": Case(
            tiff(FOUR, 2, extras=[0], planar=2), "tif", FOUR[:, :, :3], whole=True, pil=False
        ),
        "P png": Case(saved(PALETTE), "png", PALETTE_RGB),
        "P gif": Case(saved(PALETTE, "GIF"), "gif", PALETTE_RGB),
        "P bmp": Case(saved(PALETTE, "BMP"), "bmp", PALETTE_RGB),
        "P png, transparent": Case(saved(PALETTE, transparency=bytes(range(0, 160, 10))), "png", PALETTE_RGB),
        "P gif, transparent": Case(saved(PALETTE, "GIF", transparency=3), "gif", PALETTE_RGB),
        "CMYK tiff": Case(saved(Image.fromarray(CMYK, "CMYK"), "TIFF"), "tif", INK),
        "CMYK tiff, four channels": Case(saved(Image.fromarray(CMYK, "CMYK"), "TIFF"), "tif", CMYK, channels=4),
        "CMYK jpeg": Case(saved(Image.fromarray(CMYK, "CMYK"), "JPEG", quality=98), "jpg", INK, lossy=True),
        "YCbCr tiff": Case(
            saved(COLOR.convert("YCbCr"), "TIFF"), "tif", np.asarray(COLOR.convert("YCbCr").convert("RGB"))
        ),
        "LAB tiff": Case(tiff(RGB, 8), "tif", np.asarray(Image.open(io.BytesIO(tiff(RGB, 8))).convert("RGB"))),
        "F tiff": Case(
            saved(Image.fromarray(GRAY[:, :, 0].astype(np.float32)), "TIFF"),
            "tif",
            "32-bit float pixels have no fixed white",
        ),
        "16-bit gray png": Case(png_of_16_bits(DEEP[:, :, :1]), "png", three(scaled(DEEP[:, :, :1]))),
        "16-bit gray + alpha png": Case(png_of_16_bits(DEEP[:, :, :2]), "png", three(scaled(DEEP[:, :, :1]))),
        "16-bit gray + alpha png, two": Case(png_of_16_bits(DEEP[:, :, :2]), "png", scaled(DEEP[:, :, :2]), channels=2),
        "16-bit RGB png": Case(tall16, "png", scaled(DEEP[:, :, :3])),
        "16-bit RGBA png": Case(png_of_16_bits(DEEP), "png", scaled(DEEP[:, :, :3])),
        "I;16 tiff": Case(tiff(DEEP[:, :, :1], 1), "tif", three(scaled(DEEP[:, :, :1]))),
        "I;16B tiff": Case(tiff(DEEP[:, :, :1], 1, ">"), "tif", three(scaled(DEEP[:, :, :1]))),
        "I tiff": Case(
            tiff(DEEP[:, :, :1].astype(np.uint32) * 2, 1), "tif", three(scaled(DEEP[:, :, :1].astype(np.uint32) * 2))
        ),
        "I tiff, signed": Case(
            tiff(DEEP[:, :, :1].astype(np.int32) - 9000, 1, kind=2),
            "tif",
            three(scaled(np.maximum(DEEP[:, :, :1].astype(np.int32) - 9000, 0))),
        ),
        "I;16 tiff, white is zero": Case(
            tiff(65535 - DEEP[:, :, :1], 0), "tif", three(scaled(DEEP[:, :, :1])), whole=True
        ),
        "12-bit tiff, white is zero": Case(
            tiff(4095 - TWELVE[:, :, :1], 0), "tif", three(scaled(TWELVE[:, :, :1], 4095)), white=4095, whole=True
        ),
        "I;16B tiff, white is zero": Case(
            tiff(65535 - DEEP[:, :, :1], 0, ">"), "tif", three(scaled(DEEP[:, :, :1])), whole=True, pil=False
        ),
        "16-bit RGB tiff": Case(tiff(DEEP[:, :, :3], 2), "tif", scaled(DEEP[:, :, :3]), whole=True),
        "16-bit RGB tiff, big-endian": Case(tiff(DEEP[:, :, :3], 2, ">"), "tif", scaled(DEEP[:, :, :3]), whole=True),
        "16-bit RGB tiff, planar": Case(tiff(DEEP[:, :, :3], 2, planar=2), "tif", scaled(DEEP[:, :, :3]), whole=True),
        "12-bit gray png": Case(
            png_of_16_bits(TWELVE[:, :, :1]), "png", three(scaled(TWELVE[:, :, :1], 4095)), white=4095
        ),
        "12-bit RGB png": Case(png_of_16_bits(TWELVE[:, :, :3]), "png", scaled(TWELVE[:, :, :3], 4095), white=4095),
        "12-bit RGBA png": Case(png_of_16_bits(TWELVE), "png", scaled(TWELVE[:, :, :3], 4095), white=4095),
        "12-bit gray + alpha png": Case(
            png_of_16_bits(TWELVE[:, :, :2]), "png", three(scaled(TWELVE[:, :, :1], 4095)), white=4095
        ),
        "12-bit RGB tiff": Case(
            tiff(TWELVE[:, :, :3], 2), "tif", scaled(TWELVE[:, :, :3], 4095), white=4095, whole=True
        ),
        "12-bit RGB + infrared tiff": Case(
            tiff(TWELVE, 2, extras=[0]), "tif", scaled(TWELVE[:, :, :3], 4095), white=4095, whole=True
        ),
        "ten bands npy": Case(array(TEN), "npy", TEN, channels=10, pil=False),
        "ten bands npz": Case(arrays(image=TEN), "npz", TEN, channels=10, pil=False),
        "ten bands of 12 bits npy": Case(
            array(smooth(10, 4095)), "npy", scaled(smooth(10, 4095), 4095), channels=10, white=4095, pil=False
        ),
        "three bands npy": Case(array(RGB), "npy", RGB, pil=False),
        "gray npy": Case(array(GRAY[:, :, 0]), "npy", three(GRAY), pil=False),
        "ten bands npy, three": Case(
            array(TEN), "npy", r"it has 10 bands \(NPY\), encoder.channels=3 needs 3", pil=False
        ),
        "floats npy": Case(
            array(TEN / 255), "npy", "it holds float64 .*must hold uint8 or uint16", channels=10, pil=False
        ),
        "objects npy": Case(
            array(np.array([[None]])), "npy", r"it holds object .*must hold uint8 or uint16", channels=1, pil=False
        ),
        "two arrays npz": Case(
            arrays(a=TEN, b=TEN), "npz", "it holds 2 arrays, an image is one", channels=10, pil=False
        ),
        "ten bands tiff": Case(tiff(TEN, 1, extras=[0] * 9), "tif", TEN, channels=10, whole=True, pil=False),
        "ten bands tiff, EXIF": Case(
            tiff(TEN, 1, extras=[0] * 9, turned=6), "tif", np.rot90(TEN, -1), channels=10, whole=True, pil=False
        ),
        "16-bit RGB png, EXIF behind the pixels": Case(
            late_exif(png_of_16_bits(TWELVE[:, :, :3])), "png", np.rot90(scaled(TWELVE[:, :, :3], 4095), -1), white=4095
        ),
        "big-endian npy": Case(
            array(smooth(10, 65535).astype(">u2")), "npy", scaled(smooth(10, 65535)), channels=10, pil=False
        ),
        "ten bands tiff, planar": Case(
            tiff(TEN, 1, planar=2, extras=[0] * 9), "tif", TEN, channels=10, whole=True, pil=False
        ),
        "ten bands tiff, three": Case(
            tiff(TEN, 1, extras=[0] * 9), "tif", "it has 10 bands .*encoder.channels=3 needs 3", whole=True, pil=False
        ),
        "ten pages tiff": Case(
            saved(
                Image.fromarray(TEN[:, :, 0]),
                "TIFF",
                save_all=True,
                append_images=[*map(Image.fromarray, np.moveaxis(TEN, 2, 0)[1:])],
            ),
            "tif",
            TEN,
            channels=10,
            whole=True,
        ),
    }
    if needs["pydicom"]:
        window = {"bits": 12, "WindowCenter": 2047.5, "WindowWidth": 4095, "VOILUTFunction": "LINEAR_EXACT"}
        shades = three(scaled(TWELVE[:, :, :1], 4095))
        made |= {
            "12-bit dcm": Case(dicom(TWELVE[:, :, 0], **window), "dcm", shades, pil=False),
            "12-bit dcm, white is zero": Case(
                dicom(4095 - TWELVE[:, :, 0], "MONOCHROME1", **window), "dcm", shades, pil=False
            ),
            "RGB dcm": Case(dicom(RGB, "RGB"), "dcm", RGB, pil=False),
            "frames dcm": Case(dicom(RGB[:, :, 0], NumberOfFrames=2), "dcm", "it holds 2 frames", pil=False),
        }
    if not needs["tifffile"]:
        for name in (
            *(
                "RGB + infrared tiff",
                "RGB + infrared tiff, planar",
                "I;16B tiff, white is zero",
                "16-bit RGB tiff, planar",
            ),
            *("12-bit RGB tiff", "12-bit RGB + infrared tiff", "ten bands tiff", "ten bands tiff, planar"),
            *("ten bands tiff, three", "ten bands tiff, EXIF", "ten pages tiff"),
        ):
            made[name].expected = TIFFFILE
    return made


CASES = cases()


class Items(torch.utils.data.Dataset):
    """PIL images, as a data set of one's own may give them: opened, not yet read."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.content))


def options(case: Case, **more) -> DataConfig:
    statistics = {"mean": [0.5] * case.channels, "std": [0.5] * case.channels}
    return DataConfig(white_16bit=case.white, **statistics, **more)


def opened(case: Case, path, source: str = "folder") -> Source:
    found = open_source(options(case, path=str(path), source=source), case.channels, "train")
    assert found is not None
    return found


def by_folder(case, folder):
    return opened(case, folder / "images").read(0)


def by_cache(case, folder):
    source = opened(case, folder / "images")
    kept = cached(source, 1.0)
    assert isinstance(kept, Cached)
    return kept.read(0)


def by_parquet(case, folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [{"bytes": case.content, "path": None}]}), folder / "images.parquet")
    return opened(case, folder / "images.parquet", "parquet").read(0)


def by_zip(case, folder):
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"images/a.{case.ending}", case.content)
    return opened(case, folder / "images.zip", "auto").read(0)


def by_hf(case, folder):
    import datasets

    rows = datasets.Dataset.from_dict({"image": [{"bytes": case.content, "path": None}]})
    rows.cast_column("image", datasets.Image(decode=False)).save_to_disk(folder / "saved")
    return opened(case, folder / "saved", "hf").read(0)


def by_shards(case, folder, size=0):
    out = folder / f"shards{size}"
    result = make_shards(ShardsConfig(data=options(case, path=str(folder / "images")), out=str(out), size=size))
    if not result["images"]:
        raise UnreadableImageError("skipped", "skipped")
    return opened(case, out, "webdataset").read(0)


def by_dataset(case, folder):
    return (
        ImageDataModule(
            data=None,
            source=Items(case.content),
            channels=case.channels,
            image_size=8,
            white_16bit=case.white,
            mean=[0.5] * case.channels,
            std=[0.5] * case.channels,
        )
        ._open("train")
        .read(0)
    )


def by_prediction(case, folder, monkeypatch):
    """What the model sees, by an evaluation crop that changes nothing."""
    seen, encoder = (
        [],
        VisionTransformer(embed_dim=8, depth=1, num_heads=1, patch_size=8, image_size=8, channels=case.channels),
    )
    model = Classifier(encoder, ["a", "b"])
    model.metadata = {"data": {"white_16bit": case.white}}
    monkeypatch.setattr(prediction, "load_classifier", lambda path: model)
    monkeypatch.setattr(
        prediction,
        "CenterCrop",
        lambda size, crop: lambda image: seen.append(image) or torch.zeros(case.channels, 8, 8, dtype=torch.uint8),
    )
    monkeypatch.setattr(prediction, "classify", lambda model, images, top: [{"a": 1.0}] * len(images))
    _, rows = prediction.predict(PredictConfig(images=str(folder / "images"), model="m", out=str(folder / "out.csv")))
    if rows[0]["error"]:
        raise UnreadableImageError(rows[0]["error"], rows[0]["error"])
    return seen[0].permute(1, 2, 0).numpy()


def by_visualization(case, folder):
    encoder = VisionTransformer(embed_dim=8, depth=1, num_heads=1, patch_size=4, image_size=8, channels=case.channels)
    encoder.metadata = {"data": {"white_16bit": case.white}}
    ((_, image),) = read_images(VisualizeConfig(images=str(folder / "images")), encoder)
    return image.permute(1, 2, 0).numpy()


def resized(expected: np.ndarray) -> np.ndarray:
    height, width = (max(SIZE, round(side * (SIZE / min(expected.shape[:2])))) for side in expected.shape[:2])
    bands = [
        Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC) for band in np.moveaxis(expected, 2, 0)
    ]
    return np.stack([np.asarray(band) for band in bands], axis=2)


def roads(case: Case, folder, monkeypatch) -> dict[str, Callable[[], np.ndarray]]:
    found = {"folder": lambda: by_folder(case, folder), "cache": lambda: by_cache(case, folder)}
    found |= {"zip": lambda: by_zip(case, folder)}
    found |= {"parquet": lambda: by_parquet(case, folder)} if needs["pyarrow"] else {}
    if needs["datasets"] and (case.channels, case.white) != (3, 65535):  # the bytes that parquet hands over too
        found |= {"hf": lambda: by_hf(case, folder)}
    if needs["webdataset"]:
        found |= {"shard": lambda: by_shards(case, folder), "resized": lambda: by_shards(case, folder, SIZE)}
    found |= {"dataset": lambda: by_dataset(case, folder)} if case.pil else {}
    found |= {"prediction": lambda: by_prediction(case, folder, monkeypatch)}
    return found | {"visualization": lambda: by_visualization(case, folder)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_every_road_gives_the_same_pixels_or_the_same_error(name, tmp_path, monkeypatch, caplog):
    case, wrong = CASES[name], {}
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / f"a.{case.ending}").write_bytes(case.content)
    for road, read in roads(case, tmp_path, monkeypatch).items():
        caplog.clear()
        try:
            found = read()
        except (UnreadableImageError, ValueError) as error:
            text = f"{error} {caplog.text}"
            if not (isinstance(case.expected, str) and re.search(case.expected, text) and "\n" not in str(error)):
                wrong[road] = text
            continue
        if isinstance(case.expected, str):
            wrong[road] = f"read {found.shape}"
            continue
        expected = resized(case.expected) if road == "resized" and not case.whole else case.expected
        if found.shape != expected.shape or found.dtype != np.uint8:
            wrong[road] = f"{found.dtype} {found.shape}, not {expected.shape}"
            continue
        gap = np.abs(found.astype(int) - expected.astype(int))
        bound = 24 if case.lossy else 2 if road == "resized" else 1
        if gap.max() > bound or (case.lossy and gap.mean() > 3):
            wrong[road] = f"off by {gap.max()}, {gap.mean():.1f} on average"
    assert not wrong, "\n".join(f"{road}: {text}" for road, text in wrong.items())
