"""The one table of sources, and a source from outside."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import SOURCES, count, open_shards, open_source, source_class
from ssl_vit.data.sources.base import Source


class Stripes(Source):
    """A source as a user writes one: images that are their number."""

    @classmethod
    def open(cls, data, channels, split):
        return cls(data, channels, np.arange(6) % 2, ["even", "odd"]) if split == "train" else None

    def open_image(self, index):
        return Image.fromarray(np.full((8, 8, 3), index, np.uint8))

    def name(self, index):
        return f"stripe {index}"


def test_every_row_is_a_source():
    assert all(issubclass(source_class(name), Source) for name in SOURCES)


def test_a_source_from_outside_is_used_like_any_other():
    data = DataConfig(source=f"{__name__}:Stripes", batch_size=2)
    assert count(data) is None
    module = ImageDataModule(None, data, image_size=8, seed=0)
    batches = [*module.eval_dataloader("train"), *module.eval_dataloader("test")]
    values = sorted(int(image[0, 0, 0]) for batch in batches for image in batch["images"])
    assert values == list(range(6))
    assert module.classes == ["even", "odd"]
    with pytest.raises(ValueError, match=r"^data.source=.*:Stripes cannot be streamed$"):
        open_shards(data, None)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere.at_all:X", ": No module named 'nowhere' (is it installed, or on PYTHONPATH?)"),
        ("ssl_vit.data.rng:Nothing", ": ssl_vit.data.rng has no Nothing"),
        ("ssl_vit.data.rng:uniforms", " must be a class that inherits from ssl_vit.data.sources.base.Source"),
    ],
)
def test_what_is_no_source_is_one_line(path, message):
    with pytest.raises(ValueError, match=r"^data.source=") as caught:
        open_source(DataConfig(source=path), 3, "train")
    assert str(caught.value).startswith(f"data.source={path}{message}")


def test_counting_needs_no_torch(tmp_path):
    code = (
        "import sys; from ssl_vit.data.sources import count; from ssl_vit.config.schema import DataConfig;"
        f"print(count(DataConfig(source='digits')), count(DataConfig(source='torchvision', path='CIFAR10:{tmp_path}')),"
        "*[name for name in ('torch', 'torchvision', 'sklearn', 'pyarrow') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1437", "None"]
