"""How far apart our way and the authors' are where docs/methods/ says that they differ: colors, blur, positions.

Pixels are in 0 .. 255, of parts of scikit-learn's two photographs. Letters: B images, C channels, H W pixels.
"""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from ssl_vit.config.evaluation_schema import BenchmarkConfig
from ssl_vit.data.transforms import color
from ssl_vit.models.pos_embed import resample, resample_relations, sincos_2d

SIDE, RADIUS = 128, 6  # pixels; of DINO's widest blur
FACTORS = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
"""The ends of what DINO draws."""
SIGMAS = (0.1, 0.5, 1.0, 1.5, 2.0)
VIT_SMALL, GRID, LOCAL, FINE = 384, (14, 14), (6, 6), (24, 24)


def run(config: BenchmarkConfig) -> None:
    """Print each difference as one JSON object a line."""
    for what, figures in [*colors(), *blurs(), *positions()]:
        rounded = {name: float(f"{figure:.3g}") for name, figure in figures.items()}
        print(json.dumps({"suite": "differences", "what": what, **rounded}), flush=True)


def photographs() -> Tensor:
    """[B, C, H, W]: all whole squares of the two."""
    from sklearn.datasets import load_sample_images

    whole = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    parts = whole.unfold(2, SIDE, SIDE).unfold(3, SIDE, SIDE).permute(0, 2, 3, 1, 4, 5)
    return parts.flatten(0, 2).contiguous()


def by_pil(images: Tensor, operation: Callable[[Any], Any]) -> Tensor:
    """An operation of PIL's on each."""
    changed = [np.asarray(operation(Image.fromarray(image.permute(1, 2, 0).numpy()))) for image in images]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).float()


def spread(apart: Tensor) -> dict[str, float]:
    """Mean and largest difference."""
    return {"mean": float(apart.mean()), "max": float(apart.max())}


def colors() -> list[tuple[str, dict[str, float]]]:
    """Color jitter and gray beside torchvision's on PIL images, by mean and largest difference."""
    images, found = photographs(), []
    ways = {
        "brightness": color.adjust_brightness,
        "contrast": color.adjust_contrast,
        "saturation": lambda floats, factor: color.mix(floats, color.saturation_mix(factor)),
        "hue": lambda floats, factor: color.turn_hue(floats, color.hue_mix(factor)),
    }
    for name, ours in ways.items():
        for factor in FACTORS[name]:
            theirs = by_pil(images, partial(getattr(F, f"adjust_{name}"), **{f"{name}_factor": factor}))
            apart = (ours(images.float(), torch.full((len(images),), factor)) - theirs).abs()
            found.append((f"{name} {factor}", spread(apart)))
    apart = (color.to_gray(images.float()) - by_pil(images, partial(F.rgb_to_grayscale, num_output_channels=3))).abs()
    return [*found, ("gray", spread(apart))]


def blurs() -> list[tuple[str, dict[str, float]]]:
    """Blur beside PIL's: inside, and in the pixels that the kernel sees the edge from."""
    images, found = photographs(), []
    edge = torch.ones(SIDE, SIDE, dtype=torch.bool)
    edge[RADIUS:-RADIUS, RADIUS:-RADIUS] = False
    for sigma in SIGMAS:
        band = color.gaussian_band(torch.full((len(images),), sigma), RADIUS)
        theirs = by_pil(images, lambda image, sigma=sigma: image.filter(ImageFilter.GaussianBlur(sigma)))
        apart = (color.convolve(images.float(), band) - theirs).abs()
        found.append((f"blur {sigma}", {"inside_max": float(apart[..., ~edge].max()), **spread(apart[..., edge])}))
    return found


def positions() -> list[tuple[str, dict[str, float]]]:
    """Positions of another grid in timm's way and in the authors', by their rms and that of what differs."""
    torch.manual_seed(0)
    fresh = torch.nn.init.trunc_normal_(torch.empty(1, GRID[0] * GRID[1], VIT_SMALL), std=0.02)
    tables = {"fresh positions": fresh, "smooth positions": sincos_2d(*GRID, VIT_SMALL)}
    pairs = {name: [resample(table, GRID, LOCAL, way) for way in ("timm", "dino")] for name, table in tables.items()}
    offset = torch.arange(1.0 - GRID[0], GRID[0])
    for std in (2.0, 3.0, 4.5):
        bell = torch.exp(-(offset[:, None] ** 2 + offset**2) / (2 * std**2)).flatten()[:, None]
        table = torch.cat([bell, torch.zeros(3, 1)])
        pairs[f"bell-shaped relations, std {std}"] = [
            resample_relations(table, GRID, FINE, way) for way in ("timm", "beit")
        ]
    return [
        (name, {"ours": rms(ours), "theirs": rms(theirs), "apart": rms(ours - theirs) / rms(theirs)})
        for name, (ours, theirs) in pairs.items()
    ]


def rms(values: Tensor) -> float:
    """Root of the mean square."""
    return float(values.square().mean().sqrt())
