"""Attention and feature images: what they show, and for images of any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.config.evaluation_schema import VisualizeConfig
from ssl_vit.evaluate.visualize import (
    attention_images,
    attention_mask,
    enlarge,
    principal_colors,
    read_images,
    visualize,
)
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder


def test_mask_holds_the_fewest_patches_with_the_mass():
    attention = torch.tensor([[0.1, 0.5, 0.05, 0.35]])
    assert attention_mask(attention, 0.5).tolist() == [[False, True, False, False]]
    assert attention_mask(attention, 0.6).tolist() == [[False, True, False, True]]
    assert attention_mask(attention, 1.0).all()


def test_mask_is_of_the_attention_to_patches_whatever_went_to_the_class_token():
    attention = torch.rand(2, 3, 9)
    assert torch.equal(attention_mask(attention, 0.6), attention_mask(attention * 0.1, 0.6))


def test_attention_image_is_white_at_the_strongest_patch():
    images = attention_images(torch.tensor([[[0.1, 0.2, 0.0, 0.05]]]), (2, 2), 3)
    assert images.shape == (1, 1, 6, 6)
    assert images[0, 0, ::3, ::3].tolist() == [[128, 255], [0, 64]]


def test_enlarged_patches_are_squares():
    assert enlarge(torch.tensor([[1, 2]], dtype=torch.uint8), 2).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_colors_separate_what_features_separate_and_mean_the_same_in_every_image():
    kinds = torch.randn(3, 8)
    first = kinds[torch.tensor([[0, 1], [1, 2]])].permute(2, 0, 1)
    second = kinds[torch.tensor([[2, 0, 0]])].permute(2, 0, 1)
    one, two = principal_colors([first, second])
    assert one.shape == (3, 2, 2)
    assert two.shape == (3, 1, 3)
    assert torch.equal(one[:, 0, 1], one[:, 1, 0])
    assert torch.equal(one[:, 0, 0], two[:, 0, 1])
    assert torch.equal(one[:, 1, 1], two[:, 0, 0])
    assert not torch.equal(one[:, 0, 0], one[:, 0, 1])


@pytest.fixture
def encoder(tmp_path):
    made = VisionTransformer(embed_dim=32, depth=2, num_heads=4, patch_size=4, image_size=16)
    save_encoder(made, tmp_path, mean=[0.5] * 3, std=[0.2] * 3)
    return tmp_path


def image(path, width: int, height: int):
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def test_images_of_any_size_are_drawn(encoder, tmp_path):
    image(tmp_path / "in" / "wide.png", 50, 22)
    image(tmp_path / "in" / "small.jpg", 9, 9)
    written = visualize(VisualizeConfig(images=str(tmp_path / "in"), encoder=str(encoder)))
    names = sorted(path.name for path in written)
    kinds = ("attention", "mask", "pca")
    assert names == sorted(f"{name}-{kind}.png" for name in ("000-small", "001-wide") for kind in kinds)
    with Image.open(encoder / "visualize" / "001-wide-pca.png") as written:
        width, height = written.size  # of two images, cut to 48 x 20, enlarged, with white lines of 2; and two of text
        factor = (height - 2 * 16 - 4) // 20
        assert (height - 2 * 16 - 4) % 20 == 0
        assert width >= 2 * (48 * factor + 2) + 2 >= 256


def test_an_image_is_scaled_to_size(encoder, tmp_path):
    image(tmp_path / "in" / "one.png", 10, 20)
    out = tmp_path / "out"
    visualize(VisualizeConfig(images=str(tmp_path / "in" / "one.png"), encoder=str(encoder), size=16, out=str(out)))
    with Image.open(out / "one-pca.png") as written:
        width, height = written.size
        factor = (height - 2 * 16 - 4) // 32
        assert (height - 2 * 16 - 4) % 32 == 0
        assert width >= 2 * (16 * factor + 2) + 2 >= 256


@pytest.mark.parametrize(("name", "message"), [("absent", "there is no such file"), ("empty", "holds no images")])
def test_missing_images_are_one_line(encoder, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        visualize(VisualizeConfig(images=str(tmp_path / name), encoder=str(encoder)))


def test_an_image_less_than_a_patch_is_refused(encoder, tmp_path):
    image(tmp_path / "in" / "tiny.png", 3, 30)
    with pytest.raises(ValueError, match=r"tiny\.png is 30 x 3 pixels, less than a patch of 4: give size=4 or more"):
        visualize(VisualizeConfig(images=str(tmp_path / "in" / "tiny.png"), encoder=str(encoder)))


def test_what_cannot_be_drawn_is_named_and_the_others_are_drawn(encoder, tmp_path, caplog):
    """One damaged file among many ended all; and its name could write to the terminal."""
    image(tmp_path / "in" / "a.png", 9, 9)
    (tmp_path / "in" / "b\x1b[31m.png").write_bytes(b"no image")
    image(tmp_path / "in" / "c.png", 9, 9)
    image(tmp_path / "in" / "d.png", 3, 9)
    written = visualize(VisualizeConfig(images=str(tmp_path / "in"), encoder=str(encoder)))
    assert sorted({path.name.partition("-pca")[0] for path in written if "pca" in path.name}) == ["000-a", "002-c"]
    skipped = [message for message in caplog.messages if message.startswith("skipped: ")]
    assert len(skipped) == 2
    assert r"in/b\x1b[31m.png is no image that can be read" in skipped[0]
    assert "\x1b" not in "".join(skipped)


def test_with_nothing_to_draw_the_reason_is_named(encoder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^images=.*: none of 1 can be drawn: .*b\.png is no image that can be read"):
        visualize(VisualizeConfig(images=str(tmp_path / "in"), encoder=str(encoder)))


def test_without_images_nothing_is_drawn(encoder, tmp_path, monkeypatch):
    """images= took the current folder."""
    image(tmp_path / "in" / "a.png", 9, 9)
    monkeypatch.chdir(tmp_path / "in")
    with pytest.raises(ValueError, match="images= must be an image, or a folder of images"):
        visualize(VisualizeConfig(images="", encoder=str(encoder)))


@pytest.mark.parametrize("stem", ["x" * 250, "\u00e4" * 124, "\x1b[2J"])
def test_any_name_gives_a_file(encoder, tmp_path, stem):
    image(tmp_path / "in" / f"{stem}.png", 9, 9)
    for images in (tmp_path / "in", tmp_path / "in" / f"{stem}.png"):
        written = visualize(VisualizeConfig(images=str(images), encoder=str(encoder), out=str(tmp_path / "out")))
        assert all(path.exists() and path.name.isprintable() for path in written)


def test_more_patches_than_can_be_drawn_are_refused(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_vit.evaluate.visualize.MOST_PATCHES", 5)
    image(tmp_path / "in" / "a.png", 12, 8)
    rule = r"a\.png is 8 x 12 pixels, 6 patches of 4, more than 5: give a smaller size="
    with pytest.raises(ValueError, match=rule):
        visualize(VisualizeConfig(images=str(tmp_path / "in"), encoder=str(encoder)))


def test_white_is_what_the_encoder_was_trained_with(tmp_path):
    """A 12-bit scan was drawn almost black."""
    made = VisionTransformer(embed_dim=32, depth=1, num_heads=4, patch_size=4, image_size=8)
    made.metadata = {"data": {"white_16bit": 4095}}
    Image.fromarray(np.full((8, 8), 2048, np.uint16)).save(tmp_path / "a.png")
    ((_, found),) = read_images(VisualizeConfig(images=str(tmp_path / "a.png")), made)
    assert found.unique().tolist() == [128]
