"""DICOM images by pydicom: rescaled, windowed, in 8 bits. Letters: H W pixels, S bands.

The part of the standard that says how is PS3.3: C.7.6.3 (pixels), C.11.1 (rescale), C.11.2 (window).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

_PREAMBLE = 132  # bytes, the last four of which are DICM
_GRAY, _PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_PLUGINS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins like this is DICOM."""
    return head[_PREAMBLE - 4 : _PREAMBLE] == b"DICM"


def read_dicom(file: Any) -> tuple[tuple[int, ...], Callable[[], UInt8[np.ndarray, "H W ..."]]]:
    """Shape of an image, [H, W] or [H, W, 3], and what reads its pixels; by the header alone.

    ValueError: no image, several frames, a compression that nothing here decodes; pydicom is missing.
    """
    try:
        from pydicom import dcmread  # pyright: ignore[reportMissingImports]
        from pydicom.filereader import _read_file_meta_info  # pyright: ignore[reportMissingImports]
        from pydicom.pixels import get_decoder  # pyright: ignore
    except ImportError as error:
        raise ValueError("a DICOM image takes pydicom to be read, pip install 'ssl_vit[dicom]'") from error
    file.seek(_PREAMBLE)
    with _one_line():
        syntax = _read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax is None:
        raise ValueError("its header does not say how its pixels are stored (no Transfer Syntax UID)")
    if syntax.is_deflated:
        raise ValueError("it is deflated as a whole, and may unpack to any size: save it in another transfer syntax")
    file.seek(0)
    with _one_line():
        header = dcmread(file, stop_before_pixels=True)
    if not (header.get("Rows") and header.get("Columns")):
        raise ValueError(f"it holds no image, but {header.get('Modality') or 'other'} data")
    if (frames := int(header.get("NumberOfFrames") or 1)) > 1:
        raise ValueError(f"it holds {frames} frames, an image is one: save each as a file of its own")
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise ValueError(f"its compression, {syntax.name}, takes a plugin of pydicom: {_PLUGINS}")
    kind, samples = str(header.get("PhotometricInterpretation")), int(header.get("SamplesPerPixel") or 1)
    if kind not in ((*_GRAY, _PALETTE) if samples == 1 else _COLOR if samples == 3 else ()):
        raise ValueError(f"its {samples} bands are {kind}, which is neither gray, palette, RGB nor YBR")

    def values() -> UInt8[np.ndarray, "H W ..."]:
        file.seek(0)
        with _one_line():
            return _pixels(dcmread(file), kind)

    return (header.Rows, header.Columns, *([] if kind in _GRAY else [3])), values


@contextmanager
def _one_line() -> Iterator[None]:
    """ValueError in place of what pydicom raises of damaged files, which may be anything, of many lines."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _pixels(dataset: Any, kind: str) -> UInt8[np.ndarray, "H W ..."]:
    from pydicom.pixels import apply_color_lut, pixel_array  # pyright: ignore

    if "PixelData" not in dataset:
        raise ValueError("it holds no pixels of whole numbers")
    stored = pixel_array(dataset)  # YBR as RGB
    if kind in _GRAY:
        shades = _windowed(dataset, stored)
        return _to_bytes(1 - shades if kind == _GRAY[0] else shades)
    bits = dataset.BitsStored
    if kind == _PALETTE:
        stored, bits = apply_color_lut(stored, dataset), dataset.RedPaletteColorLookupTableDescriptor[2]
    return _to_bytes(stored.astype(np.float32) / (2**bits - 1))


def _windowed(dataset: Any, stored: Shaped[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W"]:
    """Shades, 0 to 1 inside the window: the first one, else a table of the file, else all that could be stored."""
    from pydicom.pixels import apply_modality_lut, apply_voi  # pyright: ignore

    bits, signed = dataset.BitsStored, dataset.PixelRepresentation
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if dataset.get("ModalityLUTSequence"):
        values = apply_modality_lut(stored, dataset)
        low, high = 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    else:
        slope, intercept = _first(dataset, "RescaleSlope", 1.0), _first(dataset, "RescaleIntercept", 0.0)
        values = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    center, width = _first(dataset, "WindowCenter", None), _first(dataset, "WindowWidth", None)
    if center is None or width is None:
        if dataset.get("VOILUTSequence"):
            table = dataset.VOILUTSequence[0].LUTDescriptor
            whole = np.rint(values).astype(np.int64)
            return apply_voi(whole, dataset).astype(np.float32) / (2 ** table[2] - 1)
        if bits > 16:
            raise ValueError(f"its {bits} bits have no fixed white, as it has no window")
        function, center, width = "LINEAR_EXACT", (low + high) / 2, high - low
    else:
        function = dataset.get("VOILUTFunction") or "LINEAR"
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise ValueError(f"its window, {center:g} and {width:g} wide, makes no image")
    distance = values.astype(np.float32) - np.float32(center)
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 / np.float32(width) * distance))
    if function == "LINEAR_EXACT":
        return distance / np.float32(width) + np.float32(0.5)
    return (distance + np.float32(0.5)) / np.float32(max(width - 1, 1e-3)) + np.float32(0.5)


def _first(dataset: Any, name: str, default: float | None) -> Any:
    """A number of the data set, of several the first."""
    value = dataset.get(name)
    if value is not None and not isinstance(value, str | float | int):
        value = next(iter(value), None)
    return default if value in (None, "") else float(value)


def _to_bytes(shades: Shaped[np.ndarray, "H W ..."]) -> UInt8[np.ndarray, "H W ..."]:
    return (np.clip(shades, 0, 1) * 255 + 0.5).astype(np.uint8)
