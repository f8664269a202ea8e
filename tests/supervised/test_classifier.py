"""The classifier: what its head sees, how it is made from an encoder, files."""

import json
import shutil

import pytest
import torch
from torch import nn

import ssl_vit
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder, save_encoder
from ssl_vit.supervised.classifier import Classifier, load_classifier, save_classifier, tunable

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 4, "image_size": 16}
NAMES = ["cat", "dog", "eel"]


def images(side: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, side, side)


def loud(model: nn.Module) -> nn.Module:
    """Every weight far from where it began."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def test_the_mean_of_patches_goes_through_a_norm_of_its_own():
    encoder = VisionTransformer(**SMALL)
    model = loud(Classifier(tunable(encoder), NAMES))
    inner = model.encoder
    (x,) = inner.hidden_states(inner.embed(pixels := images()), [-1])
    torch.testing.assert_close(model(pixels), model.head(model.fc_norm(x[:, 1:].mean(1))))
    assert not any(name.startswith("encoder.norm") for name in model.state_dict())


def test_the_class_token_goes_through_the_encoders_norm():
    model = loud(Classifier(VisionTransformer(**SMALL), NAMES, pool="cls"))
    torch.testing.assert_close(model(pixels := images()), model.head(model.encoder(pixels)[:, 0]))


@pytest.mark.parametrize("registers", [0, 2])
def test_the_distillation_token_is_one_more_token(registers):
    model = loud(Classifier(VisionTransformer(**SMALL, num_registers=registers), NAMES, pool="cls", distilled=True))
    encoder, pixels = model.encoder, images()
    patches = torch.cat([encoder.embed(pixels), model.dist_token.expand(2, -1, -1)], dim=1)
    tokens = encoder.encode(patches)
    by_labels, by_teacher = model.both(pixels)
    torch.testing.assert_close(by_labels, model.head(tokens[:, 0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(by_teacher, model.head_dist(tokens[:, -1]), atol=1e-5, rtol=1e-5)


def test_fixed_positions_become_learned_ones_and_change_nothing():
    start = VisionTransformer(**SMALL, pos_embed="sincos").eval()
    encoder = tunable(start).eval()
    assert encoder.config.pos_embed == "learned"
    assert isinstance(encoder.pos_embed, nn.Parameter)
    assert torch.equal(encoder(pixels := images()), start(pixels))


def test_another_image_size_resamples_what_was_learned():
    start = loud(VisionTransformer(**SMALL))
    encoder = tunable(start, image_size=24).eval()
    assert encoder.grid == (6, 6)
    torch.testing.assert_close(encoder(pixels := images(24)), start(pixels))  # the start resamples on the fly


@pytest.mark.parametrize("side", [16, 24])
def test_a_table_for_each_block_starts_as_the_shared_one(side):
    start = loud(VisionTransformer(**SMALL, pos_embed="relative", init_values=0.1))
    encoder = tunable(start, image_size=side).eval()
    assert encoder.config.pos_embed == "relative_per_block"
    names = [name for name in encoder.state_dict() if name.endswith("bias_table")]
    assert names == [f"blocks.{i}.attn.relative_position_bias_table" for i in range(3)]
    pixels = images(side)
    torch.testing.assert_close(encoder(pixels), start(pixels), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(encoder.attention_maps(pixels, 1), start.attention_maps(pixels, 1))
    encoder.blocks[1].attn.relative_position_bias_table.data.add_(torch.randn(1, 4) + torch.arange(4.0))
    kept = [block.attn.relative_position_bias_table for block in encoder.blocks]
    assert torch.equal(kept[0], kept[2])
    encoder(pixels).sum().backward()
    assert all(float(table.grad.norm()) > 0 for table in kept)
    shared = tunable(start, image_size=side, rel_pos_per_block=False).eval()
    assert shared.config.pos_embed == "relative"
    torch.testing.assert_close(shared(pixels), start(pixels), atol=1e-6, rtol=1e-6)


def test_drop_path_is_the_fine_tunings():
    encoder = tunable(VisionTransformer(**SMALL, drop_path=0.5), drop_path=0.2)
    assert [round(block.drop_path.rate, 6) for block in encoder.blocks] == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("options", [{"pool": "cls"}, {"pool": "mean", "distilled": True}])
def test_round_trip_by_folder_and_by_file(tmp_path, options):
    model = loud(Classifier(tunable(VisionTransformer(**SMALL)), NAMES, **options))
    save_classifier(model, tmp_path, mean=[0.5] * 3, std=[0.2] * 3, method="finetune")
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "moved.safetensors")
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "moved.safetensors"):
        loaded = ssl_vit.load_classifier(source)
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), atol=0, rtol=0)
        assert torch.equal(loaded(pixels := images()), model(pixels))
        assert loaded.classes == NAMES
        assert not loaded.training
        assert loaded.metadata["mean"] == [0.5] * 3
    assert json.loads((tmp_path / "encoder.json").read_text())["method"] == "finetune"


def test_its_encoder_is_one_that_every_evaluation_reads(tmp_path):
    model = loud(Classifier(tunable(VisionTransformer(**SMALL)), NAMES))
    save_classifier(model, tmp_path)
    encoder = load_encoder(tmp_path)
    torch.testing.assert_close(encoder.norm.weight, model.fc_norm.weight)
    (x,) = model.encoder.hidden_states(model.encoder.embed(pixels := images()), [-1])
    torch.testing.assert_close(encoder(pixels), model.fc_norm(x))


def test_what_is_no_classifier_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model=.*nowhere: there is no such file or run"):
        load_classifier(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors: make one with `ssl-vit finetune"):
        load_classifier(tmp_path)
    save_encoder(VisionTransformer(**SMALL), tmp_path)
    with pytest.raises(ValueError, match=r"encoder.safetensors holds no classifier: make one with"):
        load_classifier(tmp_path / "encoder.safetensors")
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model=.*x.pth must be a fine-tuned run or its model.safetensors"):
        load_classifier(tmp_path / "x.pth")
