"""A small labeled folder, a small encoder, and exams of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.config.evaluation_schema import KNNConfig, LinearProbeConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.evaluate.evaluation import Evaluation
from ssl_vit.evaluate.features import LOCAL
from ssl_vit.models.vit import VisionTransformer

CLASSES = ("bird", "cat", "dog")
TRAIN, TEST = 10, 4  # of each class


@pytest.fixture(scope="session")
def labeled(tmp_path_factory):
    """A folder of noise in three classes, each with a brightness of its own: 30 images to train, 12 to test."""
    folder, noise = tmp_path_factory.mktemp("labeled"), np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("test", TEST)):
        for number, name in enumerate(CLASSES):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 180, (20, 20, 3)) + 25 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{i}.png")
    return folder


@pytest.fixture
def encoder():
    torch.manual_seed(3)
    return VisionTransformer(embed_dim=24, depth=3, num_heads=2, patch_size=4, image_size=16).eval()


@pytest.fixture
def backbone(encoder):
    return EncoderBackbone(encoder)


@pytest.fixture
def data_config(labeled):
    return DataConfig(source="folder", path=str(labeled), batch_size=7, workers=0)


@pytest.fixture
def make_exam(data_config):
    """Exam of the labeled folder: linear_probe with settings as given, or knn."""

    def made(task: str = "linear_probe", resources=LOCAL, **settings):
        config_class = {"linear_probe": LinearProbeConfig, "knn": KNNConfig}[task]
        config = config_class(data=data_config, **settings)
        return Evaluation(config, ImageDataModule(None, data_config, image_size=16), resources)

    return made
