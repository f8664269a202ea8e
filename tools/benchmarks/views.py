"""Multi-crop views: ours beside lightly's DINOTransform, on one CPU core, from JPEG bytes to normalized floats.

Both make the 2 global and 6 local crops of DINO (Caron et al., 2021, arXiv:2104.14294), with the same sizes, scales,
strengths and probabilities. Images are JPEG-encoded parts of scikit-learn's two photographs.

Letters: B images of a batch.
"""

import json
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ssl_vit.config.evaluation_schema import BenchmarkConfig
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from ssl_vit.data.dataset import AugmentedDataset, Batch
from ssl_vit.data.sources.base import Source
from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import MultiCrop, RandomCrop
from ssl_vit.models.decode import open_encoded

SIZES = (((500, 375), 224, 96), ((128, 128), 224, 96), ((32, 32), 32, 16))
"""(width, height) of the images, side of the global crops, side of the local crops; all pixels."""
LOCAL_CROPS = 6
JPEG_QUALITY = 90
NUM_IMAGES = 32
"""Of a batch."""


class Encoded(Source):
    """Images as JPEG bytes in memory, without labels."""

    def __init__(self, encoded: list[bytes]) -> None:
        super().__init__(DataConfig(), 3, np.full(len(encoded), -1), [])
        self.encoded = encoded

    def open_image(self, index: int) -> Image.Image:
        return open_encoded(self.encoded[index])

    def name(self, index: int) -> str:
        return f"image {index}"


def photographs(count: int, size: tuple[int, int]) -> Encoded:
    """Parts of scikit-learn's photographs, each another one, resized to (width, height) and encoded."""
    from sklearn.datasets import load_sample_images

    whole: Any = load_sample_images()
    encoded = []
    for number in range(count):
        image = Image.fromarray(whole.images[number % len(whole.images)])
        fraction = 0.6 + 0.4 * number / count
        box = (0, 0, round(fraction * image.width), round(fraction * image.height))
        file = BytesIO()
        image.resize(size, Image.Resampling.BICUBIC, box).save(file, "JPEG", quality=JPEG_QUALITY)
        encoded.append(file.getvalue())
    return Encoded(encoded)


def multi_crop(global_side: int, local_side: int) -> MultiCrop:
    """DINO's crops: the first global one always blurred, the second at times solarized (section 3 and appendix B)."""
    whole, part = RandomCrop((global_side, global_side), (0.4, 1.0)), RandomCrop((local_side, local_side), (0.05, 0.4))
    first, second = ColorAugmentation(blur_p=1.0, solarize_p=0.0), ColorAugmentation(blur_p=0.1, solarize_p=0.2)
    return MultiCrop(
        [(whole, first), (whole, second)] + [(part, ColorAugmentation(blur_p=0.5, solarize_p=0.0))] * LOCAL_CROPS
    )


def dino_transform(global_side: int, local_side: int) -> Callable[[Image.Image], Any]:
    """lightly's theirs; its default strengths and probabilities are those of multi_crop."""
    from lightly.transforms.dino_transform import DINOTransform

    return DINOTransform(
        global_crop_size=global_side,
        global_crop_scale=(0.4, 1.0),
        local_crop_size=local_side,
        local_crop_scale=(0.05, 0.4),
        n_local_views=LOCAL_CROPS,
    )


def lightly_batch(source: Encoded, theirs: Callable[[Image.Image], Any]) -> list[Tensor]:
    """All crops of all images by lightly, as float32 [B, 3, h, w]."""
    views = [theirs(source.open_image(index).convert("RGB")) for index in range(len(source))]
    return [torch.stack(crops) for crops in zip(*views, strict=True)]


def on_the_device(transform: MultiCrop, batch: Batch) -> list[Tensor]:
    """What ours leaves to the device: colors and normalization."""
    return transform.color(batch["images"], batch["random"], (IMAGENET_MEAN, IMAGENET_STD))


def compare(size: tuple[int, int], global_side: int, local_side: int, images: int, repeats: int) -> Iterator[dict]:
    """Images a second of each pipeline, and ratios; pipelines take turns, so that a busy machine hits them alike.

    Time is CPU time of this process, which has one thread: what other processes use of the core does not count.
    """
    source, transform = photographs(images, size), multi_crop(global_side, local_side)
    theirs = dino_transform(global_side, local_side)
    dataset = AugmentedDataset(source, transform, seed=0, labels=source.labels)
    taken: dict[str, list[float]] = {"lightly": [], "workers": [], "total": []}
    for repeat in range(repeats + 1):
        start = time.process_time()
        lightly_batch(source, theirs)
        middle = time.process_time()
        batch = dataset.__getitems__([(repeat, index) for index in range(images)])
        workers = time.process_time()
        on_the_device(transform, batch)
        if repeat:  # the first turn warms up
            taken["lightly"].append(middle - start)
            taken["workers"].append(workers - middle)
            taken["total"].append(time.process_time() - middle)
    about = {
        "suite": "views",
        "image": f"{size[0]}x{size[1]}",
        "crops": f"2x{global_side}+{LOCAL_CROPS}x{local_side}",
    }
    for pipeline, seconds in taken.items():
        rate = round(images / median(seconds), 1)
        yield about | {"pipeline": pipeline, "images_per_second_per_core": rate}
    for pipeline in ("total", "workers"):
        ratios = [theirs / ours for theirs, ours in zip(taken["lightly"], taken[pipeline], strict=True)]
        yield about | {f"ratio_{pipeline}": round(median(ratios), 2)}


def run(config: BenchmarkConfig) -> None:
    """Print one JSON object a line."""
    torch.set_num_threads(1)
    for size, global_side, local_side in SIZES:
        for line in compare(size, global_side, local_side, NUM_IMAGES, config.repeats):
            print(json.dumps(line), flush=True)
