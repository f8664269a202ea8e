"""Pictures of what an encoder looks at: attention of the class token, masks of it, colours of its patch features.

Letters: B images, C channels, H x W pixels, h x w patch grid, N = h * w patches, D width.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ssl_vit.checkpoint import load_encoder
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig, VisualizeConfig
from ssl_vit.data.folder import Folder, scan
from ssl_vit.data.photometry import normalize
from ssl_vit.data.pictures import open_picture, pixels
from ssl_vit.encoder import VisionTransformer
from ssl_vit.runs import newest_run, write_atomic


def attention_pictures(
    attention: Float[Tensor, "B heads N"], grid: tuple[int, int], patch_size: int
) -> UInt8[Tensor, "B heads H W"]:
    """One grey picture a head: black where the class token does not look, white at its strongest patch."""
    shares = attention / attention.amax(-1, keepdim=True).clamp_min(1e-12)
    return enlarge((shares * 255).round().to(torch.uint8).unflatten(2, grid), patch_size)


def attention_mask(attention: Float[Tensor, "*b N"], mass: float) -> Bool[Tensor, "*b N"]:
    """The fewest patches that hold at least this share of the attention to patches (DINO's figure 4 keeps 0.6)."""
    values, order = attention.sort(-1, descending=True)
    before = values.cumsum(-1) - values
    kept = before < mass * values.sum(-1, keepdim=True)  # a patch is kept while those before it are not enough
    return torch.zeros_like(kept).scatter(-1, order, kept)


def principal_colours(features: list[Float[Tensor, "D _ _"]]) -> list[UInt8[Tensor, "3 _ _"]]:
    """Patch features of all pictures on their three principal components, as red, green, blue.

    One basis for all pictures, so that a colour means the same in each; 1st to 99th percentile over all is the range.
    """
    flat = torch.cat([maps.flatten(1).T for maps in features]).float()  # [all patches, D]
    centre = flat.mean(0)
    _, _, basis = torch.linalg.svd(flat - centre, full_matrices=False)
    basis = basis[:3] * basis[:3].sum(1, keepdim=True).sign()  # a singular vector's sign is arbitrary: fix it
    values = (flat - centre) @ basis.T
    low, high = (torch.quantile(_some(values), q, dim=0) for q in (0.01, 0.99))
    colours = []
    for maps in features:
        projected = (maps.flatten(1).T.float() - centre) @ basis.T
        shares = ((projected - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        shares = torch.nn.functional.pad(shares, (0, 3 - shares.shape[1]))
        colours.append((shares.T.unflatten(1, maps.shape[1:]) * 255).round().to(torch.uint8))
    return colours


def _some(values: Float[Tensor, "n k"], most: int = 1_000_000) -> Float[Tensor, "_ k"]:
    """At most so many rows, evenly spread: torch.quantile takes no more than 16 million values."""
    return values[:: math.ceil(len(values) / most)]


def enlarge(maps: UInt8[Tensor, "*b h w"], patch_size: int) -> UInt8[Tensor, "*b H W"]:
    """Each patch as a square of its size in pixels."""
    return maps.repeat_interleave(patch_size, -2).repeat_interleave(patch_size, -1)


def visualize(config: VisualizeConfig) -> list[Path]:
    """Write <name>-attention.png, -mask.png and -pca.png for each picture; returns the files.

    A picture keeps its size, cut at the right and at the bottom to a multiple of the patch; `size` scales its short
    side first.

    Raises:
        FileNotFoundError, ValueError: there is no encoder or no picture, or a picture cannot be read.
    """
    source = Path(config.encoder) if config.encoder else newest_run()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = load_encoder(source).to(device)
    folder = Path(config.out) if config.out else (source if source.is_dir() else source.parent) / "visualize"
    names, features, written = [], [], []
    for name, picture in read_pictures(config, encoder):
        images = normalized(picture[None].to(device), encoder)
        grid = encoder.grid_of(images)
        with torch.inference_mode():
            attention = encoder.attention_maps(images)
            features.append(encoder.feature_maps(images)[0][0].cpu())
        heads = attention_pictures(attention, grid, encoder.patch_size)[0].cpu()  # [heads, H, W]
        kept = attention_mask(attention, config.mass)[0].unflatten(1, grid).to(torch.uint8)
        masks = enlarge(kept, encoder.patch_size).cpu()
        shown = picture if len(picture) == 3 else picture[:1].expand(3, -1, -1)
        dimmed = (shown * (0.25 + 0.75 * masks[:, None])).round().to(torch.uint8)  # [heads, 3, H, W]
        rows = {"attention": heads[:, None].expand(-1, 3, -1, -1), "mask": dimmed}
        for kind, row in rows.items():
            written.append(_write(folder / f"{name}-{kind}.png", [shown, *row]))
        names.append((name, shown))
    for (name, shown), colours in zip(names, principal_colours(features), strict=True):
        written.append(_write(folder / f"{name}-pca.png", [shown, enlarge(colours, encoder.patch_size)]))
    return written


def read_pictures(config: VisualizeConfig, encoder: VisionTransformer) -> Iterator[tuple[str, UInt8[Tensor, "C H W"]]]:
    """(unique name, pixels) of the picture file, or of the first `limit` pictures below a folder."""
    path, channels, P = Path(config.images), encoder.config.channels, encoder.patch_size
    if not path.exists():
        raise FileNotFoundError(f"images={config.images}: there is no such file or folder")
    if path.is_file():
        with open_picture(str(path)) as image:
            arrays = [(path.stem, pixels(image, channels, DataConfig().white_16bit))]
    else:
        files = Folder(DataConfig(), channels, scan(os.fsencode(path), least_classes=2))
        if not len(files):
            raise ValueError(f"images={config.images} holds no pictures: {files.listing.other}")
        count = min(config.limit, len(files))
        arrays = ((f"{i:03}-{Path(files.name(i)).stem}", files.read(i)) for i in range(count))
    for name, array in arrays:
        picture = torch.from_numpy(array.copy()).permute(2, 0, 1)
        if config.size:
            from torchvision.transforms.v2.functional import resize

            picture = resize(picture, [config.size], antialias=True)
        H, W = (side // P * P for side in picture.shape[1:])
        if not (H and W):
            given = " x ".join(str(side) for side in picture.shape[1:])
            raise ValueError(f"{name} is {given} pixels, less than a patch of {P}: give size={P} or more")
        yield name, picture[:, :H, :W]


def normalized(images: UInt8[Tensor, "B C H W"], encoder: VisionTransformer) -> Float[Tensor, "B C H W"]:
    """As the encoder was trained to see them; ImageNet's statistics where it does not say."""
    return normalize(images, encoder.facts.get("mean", IMAGENET_MEAN), encoder.facts.get("std", IMAGENET_STD))


def _write(path: Path, pictures: list[UInt8[Tensor, "3 H W"]]) -> Path:
    from torchvision.io import encode_png
    from torchvision.utils import make_grid

    grid = make_grid(list(pictures), nrow=4, padding=2, pad_value=255)
    write_atomic(path, encode_png(grid).numpy().tobytes())
    return path
