"""What an encoder sees in images of any size: attention of the class token, masks of it, colors of its patch features.

Letters: B images, C channels, H x W pixels, h x w patch grid, N = h * w patches, D width.
"""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ssl_vit.config.checks import ConfigError, printable
from ssl_vit.config.evaluation_schema import VisualizeConfig
from ssl_vit.data.sources.folder import Folder
from ssl_vit.evaluate.features import local_device
from ssl_vit.evaluate.legend import titled_grid
from ssl_vit.models.preprocess import normalize, pixel_settings
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder, statistics_of
from ssl_vit.run.files import newest_run, write_atomic

log = logging.getLogger("ssl_vit")
MOST_PATCHES = 65_536  # of an image, 4096 x 4096 pixels of 16: time and memory grow with their square
LONGEST_NAME = 200  # bytes of an image's name in those of the files that are written, which may have 255
QUANTILE_ROWS = 1_000_000  # patches that quantiles are of, evenly spread: torch.quantile takes 16 million values


def visualize(config: VisualizeConfig) -> list[Path]:
    """Write <name>-attention.png, -mask.png, -pca.png of each image; those that cannot be read are logged and skipped.

    FileNotFoundError, ValueError: none can be read.
    """
    source = Path(config.encoder) if config.encoder else newest_run()
    encoder = load_encoder(source).to(local_device())
    mean, std = statistics_of(encoder.metadata, f"encoder={source}")
    folder = Path(config.out) if config.out else (source if source.is_dir() else source.parent) / "visualize"
    names, features, written = [], [], []
    for name, image in read_images(config, encoder):
        images = normalize(image[None].to(local_device()), mean, std)
        grid = encoder.grid_of(images)
        with torch.inference_mode():
            attention = encoder.attention_maps(images)
            features.append(encoder.feature_maps(images)[0][0].cpu())
        heads = attention_images(attention, grid, encoder.patch_size)[0].cpu()  # [heads, H, W]
        kept = attention_mask(attention, config.mass)[0].unflatten(1, grid).to(torch.uint8)
        masks = enlarge(kept, encoder.patch_size).cpu()
        shown = image if len(image) == 3 else image[:1].expand(3, -1, -1)
        dimmed = (shown * (0.25 + 0.75 * masks[:, None])).round().to(torch.uint8)  # [heads, 3, H, W]
        numbers = range(1, 1 + len(heads))
        titles = ["image", *(f"attention of head {i}" for i in numbers)]
        gray = heads[:, None].expand(-1, 3, -1, -1)
        written.append(_write(folder / f"{name}-attention.png", [shown, *gray], titles, name))
        titles = ["image", *(f"{config.mass:.0%} of head {i}" for i in numbers)]
        written.append(_write(folder / f"{name}-mask.png", [shown, *dimmed], titles, name))
        names.append((name, shown))
    for (name, shown), colors in zip(names, principal_colors(features), strict=True):
        drawn, titles = [shown, enlarge(colors, encoder.patch_size)], ["image", "main directions of features"]
        written.append(_write(folder / f"{name}-pca.png", drawn, titles, name))
    return written


def read_images(config: VisualizeConfig, encoder: VisionTransformer) -> Iterator[tuple[str, UInt8[Tensor, "C H W"]]]:
    """(unique name, pixels) of the image file, or of the first `limit` images below a folder.

    What cannot be drawn is logged and skipped. FileNotFoundError, ValueError: nothing can be.
    """
    if not config.images:
        raise ConfigError("images= must be an image, or a folder of images")
    data = pixel_settings(encoder.metadata, f"encoder={config.encoder}")
    files, numbered = Folder.at("images", config.images, data, encoder.config.channels), Path(config.images).is_dir()
    count, unreadable = min(config.limit, len(files)), []
    for i in range(count):
        try:
            image = _cut(files.read(i), config.size, encoder.patch_size, printable(files.name(i)))
        except ValueError as error:
            unreadable.append(str(error))
            if len(unreadable) == count:
                raise ValueError(f"images={config.images}: none of {count} can be drawn: {unreadable[0]}") from error
            log.warning("skipped: %s", error)
        else:
            stem = printable(Path(files.name(i)).stem).encode()[:LONGEST_NAME].decode(errors="ignore")
            yield f"{i:03}-" * numbered + stem, image


def _cut(pixels: UInt8[np.ndarray, "H W C"], size: int, P: int, name: str) -> UInt8[Tensor, "C h w"]:
    """An image with this short side (0: its own), cut to whole patches. ValueError: too small, or too large."""
    from torchvision.transforms.v2.functional import resize

    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    image = resize(image, [size], antialias=True) if size else image
    h, w = (side // P for side in image.shape[1:])
    given = " x ".join(str(side) for side in image.shape[1:])
    if not (h and w):
        raise ValueError(f"{name} is {given} pixels, less than a patch of {P}: give size={P} or more")
    if h * w > MOST_PATCHES:
        rule = f"{h * w} patches of {P}, more than {MOST_PATCHES}"
        raise ValueError(f"{name} is {given} pixels, {rule}: give a smaller size=")
    return image[:, : h * P, : w * P]


def _write(path: Path, images: list[UInt8[Tensor, "3 H W"]], titles: list[str], caption: str) -> Path:
    from torchvision.io import encode_png

    write_atomic(path, encode_png(titled_grid(images, titles, 4, caption)).numpy().tobytes())
    return path


def attention_images(
    attention: Float[Tensor, "B heads N"], grid: tuple[int, int], patch_size: int
) -> UInt8[Tensor, "B heads H W"]:
    """One gray image a head: black where the class token does not attend, white at its strongest patch."""
    fractions = attention / attention.amax(-1, keepdim=True).clamp_min(1e-12)
    return enlarge((fractions * 255).round().to(torch.uint8).unflatten(2, grid), patch_size)


def attention_mask(attention: Float[Tensor, "*b N"], mass: float) -> Bool[Tensor, "*b N"]:
    """The fewest patches that hold at least this fraction of the attention to patches (DINO's figure 4 keeps 0.6)."""
    values, order = attention.sort(-1, descending=True)
    before = values.cumsum(-1) - values
    kept = before < mass * values.sum(-1, keepdim=True)  # a patch is kept while those before it are not enough
    return torch.zeros_like(kept).scatter(-1, order, kept)


def principal_colors(features: list[Float[Tensor, "D _ _"]]) -> list[UInt8[Tensor, "3 _ _"]]:
    """Patch features on the three principal components of all images, 1st to 99th percentile, as red, green, blue."""
    flat = torch.cat([maps.flatten(1).T for maps in features]).float()  # [all patches, D]
    center = flat.mean(0)
    _, _, basis = torch.linalg.svd(flat - center, full_matrices=False)
    basis = basis[:3] * basis[:3].sum(1, keepdim=True).sign()  # a singular vector's sign is arbitrary: fix it
    values = (flat - center) @ basis.T
    some = values[:: math.ceil(len(values) / QUANTILE_ROWS)]
    low, high = (torch.quantile(some, q, dim=0) for q in (0.01, 0.99))
    fractions = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    colors = torch.nn.functional.pad(fractions * 255, (0, 3 - values.shape[1])).round().to(torch.uint8)
    images = zip(colors.split([maps[0].numel() for maps in features]), features, strict=True)
    return [image.T.unflatten(1, maps.shape[1:]) for image, maps in images]


def enlarge(maps: UInt8[Tensor, "*b h w"], patch_size: int) -> UInt8[Tensor, "*b H W"]:
    """Each patch as a square of its size in pixels."""
    return maps.repeat_interleave(patch_size, -2).repeat_interleave(patch_size, -1)
