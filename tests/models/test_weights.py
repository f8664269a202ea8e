"""Encoders come back from files as they went in; whatever does not fit is one line."""

import argparse
import json
import shutil
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer as TimmTransformer
from torch.utils.data import DataLoader

from ssl_vit.config.schema import DataConfig
from ssl_vit.methods.mae import MAE
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder, save_encoder, statistics_of, transfer

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "image_size": 16}


def same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), atol=0, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"pos_embed": "sincos", "num_registers": 2}, {"image_size": [16, 24], "channels": 1}]
)
def test_round_trip_by_folder_and_by_file(tmp_path, options):
    encoder = VisionTransformer(**{**SMALL, **options})
    save_encoder(encoder, tmp_path, mean=[0.5], std=[0.2], method="mae")
    shutil.copy(tmp_path / "encoder.safetensors", tmp_path / "moved.safetensors")
    for source in (tmp_path, tmp_path / "encoder.safetensors", tmp_path / "moved.safetensors"):
        loaded = load_encoder(source)
        same(loaded, encoder)
        assert loaded.config == VisionTransformer(**{**SMALL, **options}).config
        assert not loaded.training
        assert loaded.metadata["mean"] == [0.5]
    assert json.loads((tmp_path / "encoder.json").read_text())["method"] == "mae"


def test_from_a_lightning_checkpoint(tmp_path):
    method = MAE(SMALL, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    run = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    run.fit(method, DataLoader(torch.randn(8, 3, 16, 16), batch_size=8))
    run.save_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    same(load_encoder(tmp_path / "checkpoints" / "last.ckpt"), method.encoder)
    same(load_encoder(tmp_path), method.encoder)  # a run that has not ended yet


@pytest.fixture(scope="module")
def official() -> TimmTransformer:
    torch.manual_seed(1)
    return TimmTransformer(embed_dim=192, depth=12, num_heads=3, num_classes=0, img_size=64)


def checks(official: TimmTransformer, path: Path) -> None:
    encoder = load_encoder(path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), official.eval().forward_features(images), atol=1e-5, rtol=1e-5)


def test_from_the_authors_mae_checkpoint_with_its_decoder(tmp_path, official):
    weights = official.state_dict() | {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 192)}
    torch.save({"model": weights, "args": argparse.Namespace(lr=1)}, tmp_path / "mae.pth")
    checks(official, tmp_path / "mae.pth")


def test_from_the_authors_full_dino_checkpoint_the_teacher(tmp_path, official):
    teacher = {f"backbone.{name}": tensor for name, tensor in official.state_dict().items()}
    teacher["head.mlp.0.weight"] = torch.zeros(4, 192)
    student = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in teacher.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "dino.pth")
    checks(official, tmp_path / "dino.pth")


def test_from_plain_weights_in_timms_names(tmp_path, official):
    torch.save(official.state_dict(), tmp_path / "vit.pth")
    checks(official, tmp_path / "vit.pth")


@pytest.mark.parametrize("relative", [True, False])
def test_from_the_authors_beit_checkpoint(tmp_path, relative):
    torch.manual_seed(1)
    positions = {"use_shared_rel_pos_bias": relative, "use_abs_pos_emb": not relative}
    beit = Beit(
        embed_dim=192,
        depth=12,
        num_heads=3,
        num_classes=0,
        img_size=64,
        init_values=0.1,
        global_pool="token",
        **positions,
    )
    for parameter in beit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    weights = beit.state_dict() | {"mask_token": torch.zeros(1, 1, 192), "lm_head.weight": torch.zeros(8, 192)}
    if relative:
        weights["rel_pos_bias.relative_position_index"] = torch.zeros(17, 17, dtype=torch.long)
    torch.save({"model": weights}, tmp_path / "beit.pth")
    encoder, images = load_encoder(tmp_path / "beit.pth"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), beit.eval().forward_features(images), atol=1e-4, rtol=1e-4)
    assert encoder.config.resample == ("beit" if relative else "timm")
    if not relative:
        assert encoder.metadata["mean"] == [0.485, 0.456, 0.406]


INCEPTION, IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("beside", "branch", "expected"),
    [
        ({}, False, None),  # of v1, with either normalization, or of v2 without its branch: nothing says which
        ({"args": argparse.Namespace(lr=1.0)}, False, None),
        ({"args": argparse.Namespace(imagenet_default_mean_and_std=False)}, False, INCEPTION),  # v1 on ImageNet-22k
        ({"args": argparse.Namespace(imagenet_default_mean_and_std=True)}, False, IMAGENET),  # v1 on ImageNet-1k
        ({"args": argparse.Namespace(imagenet_default_mean_and_std=True)}, True, IMAGENET),
        ({"args": argparse.Namespace(imagenet_default_mean_and_std=False)}, True, INCEPTION),
        ({}, True, IMAGENET),  # v2, which has a branch of the class token
    ],
)
def test_how_images_of_beits_authors_are_normalized_is_read_and_never_guessed(tmp_path, beside, branch, expected):
    shape = {"embed_dim": 192, "depth": 12, "num_heads": 3, "patch_size": 16, "image_size": 64, "init_values": 0.1}
    weights = VisionTransformer(**shape, pos_embed="relative").state_dict()
    more = [name for name in weights if name.startswith("blocks.0.")] if branch else []
    weights |= {name.replace("blocks.0", "cls_pt_layers.0"): weights[name] for name in more}
    weights |= (
        {"cls_pt_layers.0.attn.q_bias": torch.zeros(192), "cls_pt_layers.0.attn.v_bias": torch.zeros(192)}
        if branch
        else {}
    )
    torch.save({"model": weights, **beside}, tmp_path / "beit.pth")
    encoder = load_encoder(tmp_path / "beit.pth")
    if expected:
        assert statistics_of(encoder.metadata, "encoder=beit.pth") == expected
        return
    with pytest.raises(ValueError, match=r"encoder=beit.pth does not say by which mean and std .* give data.mean= and"):
        statistics_of(encoder.metadata, "encoder=beit.pth", DataConfig(mean=[], std=[]))
    assert statistics_of(encoder.metadata, "encoder=beit.pth", DataConfig(mean=[0.4], std=[0.3])) == ([0.4], [0.3])


def test_weights_of_strangers_do_not_say_how_their_images_are_normalized(tmp_path):
    """timm's files are of models with ImageNet's mean and of models with .5."""
    shape = {"embed_dim": 192, "depth": 12, "num_heads": 3, "patch_size": 16, "image_size": 64}
    save_file(VisionTransformer(**shape).state_dict(), tmp_path / "model.safetensors")
    assert load_encoder(tmp_path / "model.safetensors").metadata == {}


def test_an_encoders_own_mean_is_not_replaced_without_a_word():
    metadata = {"mean": [0.5], "std": [0.25]}
    assert statistics_of(metadata, "encoder=run", DataConfig(mean=[0.5], std=[0.25])) == ([0.5], [0.25])
    with pytest.raises(ValueError, match=r"data.mean=\[0.4\] data.std=\[0.25\]: encoder=run was trained with \[0.5\]"):
        statistics_of(metadata, "encoder=run", DataConfig(mean=[0.4], std=[0.25]))


def test_from_the_authors_fine_tuned_beit_with_a_table_in_each_block(tmp_path):
    torch.manual_seed(1)
    positions = {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True, "use_abs_pos_emb": False}
    beit = Beit(embed_dim=192, depth=12, num_heads=3, num_classes=5, img_size=64, init_values=0.1, **positions)
    for parameter in beit.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    weights = beit.state_dict()
    weights |= {f"blocks.{i}.attn.relative_position_index": torch.zeros(17, 17, dtype=torch.long) for i in range(12)}
    torch.save({"model": weights}, tmp_path / "beit.pth")
    encoder, images = load_encoder(tmp_path / "beit.pth"), torch.randn(1, 3, 64, 64)
    assert encoder.config.pos_embed == "relative_per_block"
    with torch.no_grad():
        (x,) = encoder.hidden_states(encoder.embed(images), [-1])
        ours = encoder.norm(x[:, 1:].mean(1))  # the norm of a fine-tuned model is that of the mean
        theirs = beit.eval().forward_head(beit.forward_features(images), pre_logits=True)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


class Malicious:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_but_weights_is_unpickled(tmp_path, capsys):
    torch.save({"model": Malicious()}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="cannot be read as weights alone"):
        load_encoder(tmp_path / "bad.pth")
    assert "unpickled" not in capsys.readouterr().out


def test_missing_unknown_and_misshapen_weights_are_named(tmp_path):
    state = VisionTransformer(size="tiny", image_size=32).state_dict()
    for change, message in (
        ({"norm.bias": None}, "lacks norm.bias: it was made by another architecture"),
        ({"extra.weight": torch.zeros(1)}, "has the unknown extra.weight"),
        ({"norm.bias": torch.zeros(3)}, r"norm.bias is \[3\], but \[192\] is needed"),
    ):
        changed = {name: tensor for name, tensor in {**state, **change}.items() if tensor is not None}
        torch.save(changed, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path / "x.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "y.pth")
    with pytest.raises(ValueError, match="holds no Vision Transformer in timm's names"):
        load_encoder(tmp_path / "y.pth")
    with pytest.raises(FileNotFoundError, match=r"encoder=.*nowhere: there is no such file or run"):
        load_encoder(tmp_path / "nowhere")


def test_transfer_copies_weights_and_resamples_positions():
    start = VisionTransformer(**SMALL)
    encoder = VisionTransformer(**{**SMALL, "image_size": 24})
    transfer(start, encoder, "start")
    torch.testing.assert_close(encoder.blocks.state_dict(), start.blocks.state_dict())
    assert torch.equal(encoder.pos_embed[:, 0], start.pos_embed[:, 0])
    images = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(encoder(images), start(images))  # the start resamples on the fly
    with pytest.raises(ValueError, match="give the encoder"):
        transfer(start, VisionTransformer(**{**SMALL, "embed_dim": 64}), "start")


def test_a_full_disk_leaves_the_old_encoder(tmp_path, monkeypatch):
    old = VisionTransformer(**SMALL)
    save_encoder(old, tmp_path)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_encoder(VisionTransformer(**SMALL), tmp_path)
    same(load_encoder(tmp_path), old)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_student_and_teacher_of_a_dino_checkpoint(tmp_path, official):
    teacher = {f"backbone.{name}": tensor for name, tensor in official.state_dict().items()}
    student = {f"module.{name}": tensor + 1 for name, tensor in teacher.items()}
    torch.save({"student": student, "teacher": teacher}, tmp_path / "dino.pth")
    assert torch.equal(load_encoder(tmp_path / "dino.pth", which="student").norm.bias, official.norm.bias + 1)
    assert torch.equal(load_encoder(tmp_path / "dino.pth", which="teacher").norm.bias, official.norm.bias)
    torch.save({"model": official.state_dict()}, tmp_path / "mae.pth")
    with pytest.raises(ValueError, match=r"which=student: .*mae.pth has no student; it holds model"):
        load_encoder(tmp_path / "mae.pth", which="student")
    with pytest.raises(ValueError, match="which=pupil must be one of teacher, student"):
        load_encoder(tmp_path / "mae.pth", which="pupil")
