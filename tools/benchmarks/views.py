"""Multi-crop views: ours beside lightly's DINOTransform, on one CPU core, from JPEG bytes to normalised floats.

Both make the 2 global and 6 local crops of DINO (Caron et al., 2021, arXiv:2104.14294), with the same sizes, scales,
strengths and probabilities. Pictures are JPEG-encoded parts of scikit-learn's two photographs.

Letters: B pictures of a batch.
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

from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from ssl_vit.config.tool_schema import BenchmarkConfig
from ssl_vit.data.loader import Batch, Views
from ssl_vit.data.sources.base import Source, open_picture
from ssl_vit.data.transforms.color import Photometry
from ssl_vit.data.transforms.crops import MultiCrop, RandomCrop

SIZES = (((500, 375), 224, 96), ((128, 128), 224, 96), ((32, 32), 32, 16))
"""(width, height) of the pictures, side of the global crops, side of the local crops; all pixels."""
LOCAL_CROPS = 6
JPEG_QUALITY = 90
PICTURES = 32
"""Of a batch."""


class Encoded(Source):
    """Pictures as JPEG bytes in memory, without labels."""

    def __init__(self, encoded: list[bytes]) -> None:
        super().__init__(DataConfig(), 3, np.full(len(encoded), -1), [])
        self.encoded = encoded

    def open(self, index: int) -> Image.Image:
        return open_picture(BytesIO(self.encoded[index]))

    def name(self, index: int) -> str:
        return f"picture {index}"


def photographs(count: int, size: tuple[int, int]) -> Encoded:
    """Parts of scikit-learn's photographs, each another one, resized to (width, height) and encoded."""
    from sklearn.datasets import load_sample_images

    whole: Any = load_sample_images()
    encoded = []
    for number in range(count):
        image = Image.fromarray(whole.images[number % len(whole.images)])
        share = 0.6 + 0.4 * number / count
        box = (0, 0, round(share * image.width), round(share * image.height))
        file = BytesIO()
        image.resize(size, Image.Resampling.BICUBIC, box).save(file, "JPEG", quality=JPEG_QUALITY)
        encoded.append(file.getvalue())
    return Encoded(encoded)


def multi_crop(global_side: int, local_side: int) -> MultiCrop:
    """DINO's crops: the first global one always blurred, the second at times solarised (section 3 and appendix B)."""
    whole, part = RandomCrop((global_side, global_side), (0.4, 1.0)), RandomCrop((local_side, local_side), (0.05, 0.4))
    first, second = Photometry(blur_p=1.0, solarize_p=0.0), Photometry(blur_p=0.1, solarize_p=0.2)
    return MultiCrop([(whole, first), (whole, second)] + [(part, Photometry(blur_p=0.5, solarize_p=0.0))] * LOCAL_CROPS)


def dino_transform(global_side: int, local_side: int) -> Callable[[Image.Image], Any]:
    """lightly's transform; its default strengths and probabilities are those of multi_crop."""
    from lightly.transforms.dino_transform import DINOTransform

    return DINOTransform(
        global_crop_size=global_side,
        global_crop_scale=(0.4, 1.0),
        local_crop_size=local_side,
        local_crop_scale=(0.05, 0.4),
        n_local_views=LOCAL_CROPS,
    )


def lightly_batch(source: Encoded, transform: Callable[[Image.Image], Any]) -> list[Tensor]:
    """All crops of all pictures by lightly, as float32 [B, 3, h, w]."""
    views = [transform(source.open(index).convert("RGB")) for index in range(len(source))]
    return [torch.stack(crops) for crops in zip(*views, strict=True)]


def on_the_device(view: MultiCrop, batch: Batch) -> list[Tensor]:
    """What ours leaves to the device: colours and normalisation."""
    return view.photometry(batch["images"], batch["draws"], (IMAGENET_MEAN, IMAGENET_STD))


def compare(size: tuple[int, int], global_side: int, local_side: int, pictures: int, repeats: int) -> Iterator[dict]:
    """Pictures a second of each pipeline, and ratios; pipelines take turns, so that a busy machine hits them alike.

    Time is CPU time of this process, which has one thread: what other processes use of the core does not count.
    """
    source, view = photographs(pictures, size), multi_crop(global_side, local_side)
    transform = dino_transform(global_side, local_side)
    views = Views(source, view, seed=0, labels=source.labels)
    taken: dict[str, list[float]] = {"lightly": [], "workers": [], "total": []}
    for repeat in range(repeats + 1):
        start = time.process_time()
        lightly_batch(source, transform)
        middle = time.process_time()
        batch = views.__getitems__([(repeat, index) for index in range(pictures)])
        workers = time.process_time()
        on_the_device(view, batch)
        if repeat:  # the first turn warms up
            taken["lightly"].append(middle - start)
            taken["workers"].append(workers - middle)
            taken["total"].append(time.process_time() - middle)
    about = {
        "suite": "views",
        "picture": f"{size[0]}x{size[1]}",
        "crops": f"2x{global_side}+{LOCAL_CROPS}x{local_side}",
    }
    for pipeline, seconds in taken.items():
        rate = round(pictures / median(seconds), 1)
        yield about | {"pipeline": pipeline, "pictures_per_second_per_core": rate}
    for pipeline in ("total", "workers"):
        ratios = [theirs / ours for theirs, ours in zip(taken["lightly"], taken[pipeline], strict=True)]
        yield about | {f"ratio_{pipeline}": round(median(ratios), 2)}


def run(config: BenchmarkConfig) -> None:
    """Print one JSON object a line."""
    torch.set_num_threads(1)
    for size, global_side, local_side in SIZES:
        for line in compare(size, global_side, local_side, PICTURES, config.repeats):
            print(json.dumps(line), flush=True)
