"""Whether memory is flat over an epoch of 200,000 small images: read from shards, and from a folder of files.

Each data set is made in a temporary folder (TMPDIR) and read in a process of its own, by the data module as a training
would, with one worker. Memory is the resident set of that process and of its worker together; pages of shared
libraries count twice, and forked pages that neither has written to.
"""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_vit.config.evaluation_schema import BenchmarkConfig

NUM_IMAGES = 200_000
PER_SHARD = 10_000
SIDE = 16
"""Pixels of an image."""
MEASURED = range(10, 101, 10)
"""Per cent of the epoch."""


def make_images() -> Iterator[tuple[str, bytes]]:
    """(name, JPEG) of each image: 1,000 different ones, again and again."""
    num_random, encoded = np.random.default_rng(0), []
    for _ in range(1000):
        stored = BytesIO()
        Image.fromarray(num_random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(stored, "JPEG")
        encoded.append(stored.getvalue())
    for number in range(NUM_IMAGES):
        yield f"{number:06}.jpg", encoded[number % len(encoded)]


def write_folder(root: Path) -> None:
    """A file for each image, 1,000 to a folder."""
    for name, encoded in make_images():
        folder = root / name[:3]
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(encoded)


def write_shards(root: Path) -> None:
    """Tar files of PER_SHARD images."""
    shard = None
    for number, (name, encoded) in enumerate(make_images()):
        if number % PER_SHARD == 0:
            if shard is not None:
                shard.close()
            shard = tarfile.open(root / f"{number // PER_SHARD:03}.tar", "w")  # noqa: SIM115  # closed above and below
        header = tarfile.TarInfo(name)
        header.size = len(encoded)
        assert shard is not None
        shard.addfile(header, BytesIO(encoded))
    if shard is not None:
        shard.close()


def resident_mb() -> float:
    """Memory of this process and its children, in MB, from /proc."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in ["self", *children])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def epoch(source: str, path: str) -> Iterator[dict]:
    """Memory along one epoch of the data module, and images a second."""
    from ssl_vit.data.datamodule import ImageDataModule
    from ssl_vit.data.transforms.crops import RandomCrop

    view = RandomCrop((SIDE, SIDE), (0.2, 1.0))
    data = ImageDataModule(view, source=source, path=path, image_size=SIDE, batch_size=100, workers=1, cache_gb=0.0)
    start = time.perf_counter()
    loader = data.train_dataloader()
    about = {"suite": "memory", "source": source, "images": NUM_IMAGES}
    yield about | {"per_cent": 0, "mb": round(resident_mb(), 1), "seconds": round(time.perf_counter() - start, 1)}
    start, due = time.perf_counter(), list(MEASURED)
    for done, _ in enumerate(loader, start=1):
        if due and done * 100 >= due[0] * len(loader):
            seconds = round(time.perf_counter() - start, 1)
            yield about | {"per_cent": due.pop(0), "mb": round(resident_mb(), 1), "seconds": seconds}


def run(config: BenchmarkConfig) -> None:
    """Print one JSON object a line."""
    for source, write in (("webdataset", write_shards), ("folder", write_folder)):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            subprocess.run([sys.executable, __file__, source, folder], check=True)


if __name__ == "__main__":
    for line in epoch(*sys.argv[1:]):
        print(json.dumps(line), flush=True)
