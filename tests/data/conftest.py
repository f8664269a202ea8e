"""Images that the tests of the data layer share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write a random RGB image: write(path, height=8, width=8, seed=0)."""

    def image(path: Path, height: int = 8, width: int = 8, seed: int = 0) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return image
