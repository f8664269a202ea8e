"""From a source to batches as a method sees them, by (epoch, index) alone, so a worker holds no state."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssl_vit.data.corrupt import ReadError, ReadErrors, Replacements
from ssl_vit.data.rng import uniforms
from ssl_vit.data.sources.base import Source
from ssl_vit.data.transforms.crops import Transform

Batch = dict[str, Any]
"""images: [B, C, H, W], uint8 or floats, or a list of such; label: int64 [B], -1 = none; index: int64 [B].

For a transform with color also random: its uniform numbers, float64 [B, num_random], which stay on the CPU. Where
data.on_error=skip skipped images, skipped: how many.
"""


@dataclass(eq=False)
class AugmentedDataset(Dataset):
    """One transform of each image, a batch at a time; numbers: of the images in a larger source, for random numbers."""

    source: Source
    transform: Transform
    seed: int
    labels: np.ndarray
    replacements: Replacements | None = None
    numbers: np.ndarray | None = None

    @property
    def read_errors(self) -> ReadErrors | None:
        """The record of images that cannot be read; None where such an image stops the run."""
        return None if self.replacements is None else self.replacements.read_errors

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """The batch of (epoch, index) keys of one epoch; with, or only, `read_errors` where images are unreadable."""
        keys = [key if isinstance(key, tuple) else (0, key) for key in keys]  # of Trainer(overfit_batches=1)'s sampler
        found: list[ReadError] = []
        skips = self.replacements is not None and self.replacements.skips
        batch = self._batch(keys, found, skips) or (self._batch(keys, found, False) if skips else {})
        return batch | {"read_errors": found} if found else batch

    def _batch(self, keys: list[tuple[int, int]], found: list[ReadError], skips: bool) -> Batch:
        """{} where an image can neither be read nor be replaced; with skips where that is true of all of them."""
        index = np.array([key[1] for key in keys])
        numbers = index if self.numbers is None else self.numbers[index]
        random_numbers = uniforms(self.seed, keys[0][0], numbers, self.transform.num_random)
        transformed, kept = [], []
        for place, number in enumerate(index.tolist()):
            image = self._image(number, found, skips)
            if image is not None:
                transformed.append(self.transform(image, random_numbers[place]))
                kept.append(place)
            elif not skips:
                return {}
        if not kept:
            return {}
        several = not isinstance(transformed[0], Tensor)
        stacks = [torch.stack(crops).contiguous() for crops in zip(*transformed, strict=True)] if several else []
        batch = {"images": stacks or torch.stack(transformed).contiguous(), "index": torch.from_numpy(numbers[kept])}
        batch |= {"label": torch.from_numpy(self.labels[index[kept]])}
        batch |= {"random": random_numbers[kept]} if hasattr(self.transform, "color") else {}
        return batch | {"skipped": len(keys) - len(kept)} if len(kept) < len(keys) else batch

    def _image(self, index: int, found: list[ReadError], skips: bool) -> Tensor | None:
        pixels = self.source.read(index) if self.replacements is None else self.replacements.read(index, found)
        if pixels is None and self.replacements is not None and not skips:
            pixels = self.replacements.replace(index, found)
        if pixels is None:
            return None
        return torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)  # PIL's memory is read-only
