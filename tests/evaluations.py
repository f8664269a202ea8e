"""What tests of evaluations share: a small labeled folder, a small encoder, several processes."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ssl_vit.models.vit import VisionTransformer

CLASSES = ("bird", "cat", "dog")
TRAIN, TEST = 10, 4  # of each class


def make_labeled(folder: Path) -> Path:
    """A folder of noise in three classes, each with a brightness of its own: 30 images to train, 12 to test."""
    noise = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for number, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 180, (20, 20, 3)) + 25 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


def make_encoder() -> VisionTransformer:
    torch.manual_seed(3)
    return VisionTransformer(embed_dim=24, depth=3, num_heads=2, patch_size=4, image_size=16).eval()


def on_ranks(world_size: int, port: int, function: Callable[[], Any]) -> list[Any]:
    """What a function returns in each of several forked processes that see what torchrun would tell them."""
    context = multiprocessing.get_context("fork")

    def run(rank: int, sender: Any) -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
        os.environ["WORLD_SIZE"] = str(world_size)
        sender.send(function())

    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    processes = [context.Process(target=run, args=(rank, pipe[1])) for rank, pipe in enumerate(pipes)]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()  # so that a process that fails ends the waiting
    results = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join()
    return results
