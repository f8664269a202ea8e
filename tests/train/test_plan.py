"""What a run says of its images and steps before it does them is what it does."""

import numpy as np
import pytest
from PIL import Image
from small_runs import args_of

from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import DataConfig, EncoderConfig, RunConfig, TrainerConfig
from ssl_vit.config.tokenizer_schema import KMeansRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources.base import Source
from ssl_vit.models.preprocess import CenterCrop
from ssl_vit.train.plan import plan_lines
from ssl_vit.train.pretraining import pretrain

GRID = EncoderConfig(embed_dim=8, depth=1, num_heads=1, patch_size=4, image_size=8)


@pytest.fixture
def folder(tmp_path):
    for i in range(24):
        path = tmp_path / "set" / f"batch_{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return str(tmp_path / "set")


def data_of(**options) -> DataConfig:
    return DataConfig(batch_size=4, cache_gb=0, workers=0, **options)


def line(lines: list[str], name: str) -> str:
    (found,) = (line for line in lines if line.startswith(f"{name} "))
    return found[len("global batch  ") :]


@pytest.mark.parametrize("test", [False, True])
def test_a_fine_tuning_counts_the_images_that_it_trains_on(folder, tmp_path, test):
    """24 images and 24 steps were announced, where 5 were held out: 19 and 16 were done."""
    options = {"path": folder} | ({"test_path": folder} if test else {})
    config = FinetuneRun(data=data_of(**options), trainer=TrainerConfig(max_epochs=4, devices=1))
    data = ImageDataModule(CenterCrop((8, 8), 1), config.data, image_size=8, seed=config.seed, labeled=True)
    loader = data.train_dataloader()
    images, steps = (24, 24) if test else (19, 16)
    for splits in (None, data.splits):
        lines = plan_lines(config, GRID, labeled=True, splits=splits)
        assert line(lines, "images").startswith(f"{images} for training, {24 if test else 5} for evaluation: ")
        assert line(lines, "steps") == f"{steps}; {steps // 4} per epoch"
    assert (len(loader.sampler), 4 * len(loader)) == (images, steps)


def test_a_pretraining_trains_on_all_and_names_the_labels_it_evaluates_with(folder):
    """The folders of an unlabelled set were classes without a word."""
    config = resolve(RunConfig, ["method=mae", "data.source=folder", f"data.path={folder}", "data.batch_size=4"]).config
    lines = plan_lines(config)
    assert line(lines, "images") == "24 for training, 5 for evaluation: held-out 20 % of data.path, seed 0"
    assert line(lines, "labels") == "2 classes from folder names: batch_0, batch_1"
    config.data.labels = False
    lines = plan_lines(config)
    assert line(lines, "images") == "24 for training, 24 for evaluation: the first of the training images"
    assert line(lines, "labels") == "none: data.labels=false"


def test_k_means_makes_no_steps(folder):
    """Its announcement had a learning rate and steps that are never taken."""
    config = KMeansRun(data=data_of(path=folder, mean=[0.0] * 3, std=[1.0] * 3))
    lines = plan_lines(config)
    assert line(lines, "k-means") == "200,000 patches of 16 pixels to 8,192 tokens"
    assert not [text for text in lines if text.startswith(("steps", "learning rate", "global batch"))]


class Loaded(Source):
    """Images that have to be downloaded before anything is known of them."""

    downloads = True

    @classmethod
    def open(cls, data, channels, split):
        return cls(data, channels, np.arange(12) % 3, ["a", "b", "c"], "the net") if split == "train" else None

    def open_image(self, index):
        return Image.fromarray(np.full((16, 16, 3), index, np.uint8))

    def name(self, index):
        return f"image {index}"


def test_a_run_has_loaded_what_it_names(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("trainer.max_steps=1", "data.batch_size=4", "monitor.every_epochs=0", f"data.source={__name__}:Loaded")
    config = resolve(RunConfig, args_of("mae", *options)).config
    assert line(plan_lines(config), "images") == "not counted before loading for training"
    pretrain(config, "mae")
    lines = capsys.readouterr().out.splitlines()
    assert line(lines, "images") == "12 for training, 2 for evaluation: held-out 20 % of data.path, seed 0"
    assert line(lines, "labels") == "3 classes from the net: a, b, c"


def test_what_has_to_be_loaded_is_not_counted(tmp_path):
    config = resolve(RunConfig, ["method=mae", "data.source=torchvision", f"data.path=CIFAR10:{tmp_path}"]).config
    lines = plan_lines(config)
    assert line(lines, "images") == "not counted before loading for training"
    assert not list(tmp_path.iterdir())
