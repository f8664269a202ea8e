"""Commands on images of one's own, with nothing else said."""

import csv

import numpy as np
import pytest
from PIL import Image

from ssl_vit.cli.main import run_command
from ssl_vit.cli.settings import resolve_command
from ssl_vit.config.evaluation_schema import EmbedConfig, VisualizeConfig
from ssl_vit.config.schema import EncoderConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on 8 images of 12 bits in nested folders, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        folder = tmp_path / "meine Bilder" / f"Röntgen {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(number).integers(0, 4096, (20, 24), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"膝 {number}.png")
    config = EncoderConfig(embed_dim=16, depth=1, num_heads=2, image_size=16, patch_size=8, channels=1)
    data = {"source": "folder", "path": "meine Bilder", "white_16bit": 4095}
    save_encoder(VisionTransformer(config), "runs/mae-auto-1", mean=[0.5], std=[0.3], data=data)
    return tmp_path


def test_embed_and_visualize_read_what_the_newest_run_was_trained_on(run):
    run_command("embed", "out=features.csv")
    with open("features.csv", newline="", encoding="utf-8") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) == 8
    run_command("visualize", "limit=2", "out=seen")
    assert len([*(run / "seen").iterdir()]) >= 2


def test_images_that_are_named_stay(run):
    resolved = resolve_command(EmbedConfig, ["images=elsewhere"])
    assert (resolved.config.images, resolved.origin["images"]) == ("elsewhere", "command line")


def test_of_a_run_without_a_folder_they_have_to_be_named(run):
    data = {"source": "digits"}
    config = EncoderConfig(embed_dim=16, depth=1, num_heads=2, image_size=16, patch_size=8)
    save_encoder(VisionTransformer(config), "runs/mae-digits-1", mean=[0.5] * 3, std=[0.3] * 3, data=data)
    assert resolve_command(VisualizeConfig, ["encoder=runs/mae-digits-1"]).config.images == ""
    with pytest.raises(ValueError, match="images= must be an image, or a folder of images"):
        run_command("visualize", "encoder=runs/mae-digits-1")
