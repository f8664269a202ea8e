"""VQ-KD: what its tokens are, how the codebook moves, what it learns of a teacher."""

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.tokenizers.base import load_tokenizer, save_tokenizer
from ssl_vit.tokenizers.vqkd import VQKDTraining, moved, spherical_kmeans, totals

SETTINGS = {"vocab_size": 16, "patch_size": 4, "image_size": 16, "width": 32, "depth": 2, "heads": 4, "code_dim": 8}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(2)
    encoder = VisionTransformer(embed_dim=24, depth=2, num_heads=2, patch_size=4, image_size=16)
    return str(save_encoder(encoder, tmp_path / "teacher", **HALF))


def make(teacher: str, optim: dict | None = None, **changes) -> VQKDTraining:
    torch.manual_seed(0)
    return VQKDTraining({"warmup_epochs": 0, **(optim or {})}, **{**SETTINGS, **changes}, teacher=teacher)


def test_a_token_is_the_nearest_direction_and_files_keep_it(teacher, tmp_path):
    tokenizer, images = make(teacher).tokenizer.eval(), torch.rand(2, 3, 16, 16)
    codes = tokenizer.codes(images)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(2, 16))
    expected = torch.cdist(codes, tokenizer.codebook[None]).argmin(-1)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = tokenizer(images)
    assert torch.equal(tokens, expected)
    assert torch.equal(load_tokenizer(save_tokenizer(tokenizer, tmp_path))(images), tokens)
    assert not tokenizer.decodes


def test_spherical_kmeans_finds_directions_and_leaves_what_stands_for_nothing():
    axes = torch.eye(4)
    codes = F.normalize(axes.repeat(50, 1) + 0.05 * torch.randn(200, 4), dim=1)
    start = F.normalize(torch.cat([codes[:4], -torch.ones(1, 4)]), dim=1)
    centers = spherical_kmeans(codes, start)
    assert (axes @ centers[:4].T).amax(1).min() > 0.99
    assert torch.equal(centers[4], start[4])


def test_the_codebook_moves_by_the_fraction_that_momentum_leaves():
    codebook, codes = F.normalize(torch.randn(3, 4), dim=1), F.normalize(torch.randn(6, 4), dim=1)
    tokens = torch.tensor([0, 0, 0, 2, 2, 2])
    new = moved(codebook, *totals(tokens, codes, 3), momentum=0.9)
    expected = F.normalize(0.9 * codebook[0] + 0.1 * F.normalize(codes[:3].sum(0), dim=0), dim=0)
    torch.testing.assert_close(new[0], expected)
    torch.testing.assert_close(new[1], codebook[1])


def test_gradients_pass_straight_through_to_the_code_and_none_to_the_teacher(teacher):
    training, images = make(teacher), torch.rand(2, 3, 16, 16)
    losses = training.losses(images)
    assert list(losses) == ["distillation", "commitment"]
    losses["distillation"].backward()
    assert float(training.tokenizer.to_code[2].weight.grad.norm()) > 0
    assert all(p.grad is None for p in training.teacher.parameters())


def test_the_first_batch_places_the_codebook_and_a_step_moves_it(teacher):
    training, images = make(teacher), torch.rand(8, 3, 16, 16)
    before = training.tokenizer.codebook.clone()
    images[:] = F.interpolate(images[:, :, ::4, ::4], 16)
    training.losses(images)
    placed = training.tokenizer.codebook.clone()
    assert not torch.equal(before, placed)
    codes = training.tokenizer.codes(images).detach().flatten(0, 1)
    assert float((codes @ placed.T).amax(1).mean()) > 0.8
    training.losses(torch.rand(8, 3, 16, 16))
    assert torch.equal(training.tokenizer.codebook, placed)  # placed once, and within a step it stays
    training.after_step()
    assert not torch.equal(training.tokenizer.codebook, placed)
    assert bool(training.started)


def test_codes_that_stand_for_nothing_are_put_on_patches(teacher):
    training, images = make(teacher, codebook_momentum=0.5, revive_below=0.5), torch.rand(8, 3, 16, 16)
    training.losses(images)
    codes = training.tokenizer.codes(images).detach().flatten(0, 1)
    training.tokenizer.codebook[3] = -F.normalize(codes.mean(0), dim=0)  # stands for none of them
    training.fraction[3] = 0.0
    training.after_step()
    assert float((codes @ training.tokenizer.codebook[3]).max()) == pytest.approx(1, abs=1e-5)
    assert float(training.fraction[3]) == pytest.approx(1 / 16)


def test_the_teacher_sees_images_as_it_was_trained_and_its_grid_is_resized(tmp_path):
    encoder = VisionTransformer(embed_dim=24, depth=1, num_heads=2, patch_size=8, image_size=32).eval()
    path = str(save_encoder(encoder, tmp_path, **HALF))
    training, images = make(path), torch.rand(2, 3, 16, 16)
    larger = F.interpolate((images - 0.5) / 0.5, (32, 32), mode="bicubic", antialias=True)
    (features,) = encoder.feature_maps(larger)
    assert features.shape[-2:] == (4, 4)
    torch.testing.assert_close(training.teacher_features(images), features.flatten(2).transpose(1, 2))
    coarse = make(path, patch_size=2)
    assert coarse.teacher_features(images).shape == (2, 64, 24)


def test_it_learns_what_the_teacher_sees(teacher, tmp_path):
    training = make(teacher, {"base_lr": 0.2, "min_lr": 0.0})
    images = F.interpolate(torch.rand(8, 3, 4, 4), 16)
    before = float(training.losses(images)["distillation"].detach())
    training._codes.clear()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, DataLoader([images] * 120, batch_size=None))  # pyright: ignore[reportArgumentType]
    training.eval()
    assert float(training.losses(images)["distillation"].detach()) < 0.5 * before
    assert len(training.tokenizer(images).unique()) >= 8


def test_a_missing_teacher_and_one_of_other_channels_are_one_line(teacher):
    with pytest.raises(ValueError, match=r"tokenizer.teacher= is missing: .* `ssl-vit pretrain method=dino`"):
        VQKDTraining(**SETTINGS)
    with pytest.raises(ValueError, match=r"tokenizer.teacher=.* reads 3 channels, tokenizer.channels=1"):
        make(teacher, channels=1)
