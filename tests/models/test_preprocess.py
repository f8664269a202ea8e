"""An image as a user has it becomes what the encoder's own evaluation is shown."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.models.preprocess import CenterCrop
from ssl_vit.models.vit import VisionTransformer

SHAPE = {"embed_dim": 8, "depth": 1, "num_heads": 1, "patch_size": 8}


@pytest.fixture
def scans(tmp_path):
    """12-bit gray scans in 16-bit files, landscape and portrait."""
    values = np.random.default_rng(0).integers(0, 4096, (4, 60, 90), dtype=np.uint16)
    for i, scan in enumerate(values):
        Image.fromarray(scan if i % 2 else scan.T).save(tmp_path / f"{i}.png")
    return tmp_path


def test_it_is_the_runs_own_evaluation(scans):
    """By its path, as a PIL image and as an array; size, crop, white, mean and std are those of the training."""
    data = DataConfig(path=str(scans), mean=[0.4], std=[0.2], white_16bit=4095, eval_crop=0.75, cache_gb=0)
    encoder = VisionTransformer(**SHAPE, image_size=[24, 32], channels=1)
    encoder.metadata = {"mean": data.mean, "std": data.std, "data": {"white_16bit": 4095, "eval_crop": 0.75}}
    module = ImageDataModule(CenterCrop((24, 32), 0.75), data, image_size=(24, 32), channels=1)
    batches = list(module.eval_dataloader("train"))
    shown = {n: x for b in batches for n, x in zip(b["index"].tolist(), module.normalize(b["images"]), strict=True)}
    assert len(shown) >= 2  # the others are held out
    for number, found in shown.items():
        path = scans / f"{number}.png"
        assert torch.equal(encoder.preprocess(path), found)
        assert torch.equal(encoder.preprocess(str(path)), found)
        with Image.open(path) as image:
            assert torch.equal(encoder.preprocess(np.asarray(image)), found)
            assert torch.equal(encoder.preprocess(image), found)


def test_without_a_known_crop_it_is_imagenets_and_without_mean_and_std_an_error():
    encoder = VisionTransformer(**SHAPE, image_size=16)
    with pytest.raises(ValueError, match="this encoder does not say by which mean and std"):
        encoder.preprocess(Image.new("RGB", (40, 40)))
    encoder.metadata = {"mean": [0.5] * 3, "std": [0.5] * 3}
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))
    expected = CenterCrop((16, 16), 0.875)(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
    assert torch.equal(encoder.transform.crop(image), expected)


def test_it_travels_to_a_datasets_workers_without_the_weights():
    encoder = VisionTransformer(**SHAPE, image_size=16)
    encoder.metadata = {"mean": [0.5] * 3, "std": [0.5] * 3}
    packed = pickle.dumps(encoder.transform)
    assert len(packed) < 1000
    image = Image.new("L", (20, 30), 77)
    assert torch.equal(pickle.loads(packed)(image), encoder.preprocess(image))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "a path, a PIL image or a NumPy array, not a int"),
        (np.zeros((4, 4)), r"it holds float64 \[4, 4\]"),
        (np.zeros((40, 40, 4), np.uint8), "it has 4 bands"),
        (np.zeros((0, 4), np.uint8), r"uint8 \[0, 4\]"),
        (np.zeros((4, 4000), np.uint8), "more than 100 times"),
    ],
)
def test_what_is_no_image_is_one_line(image, message):
    encoder = VisionTransformer(**SHAPE, image_size=16)
    encoder.metadata = {"mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(ValueError, match=message):
        encoder.preprocess(image)
