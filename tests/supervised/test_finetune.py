"""Fine-tuning: layer-wise rates, losses against plain formulas, laws of a step, resuming to the bit."""

import math

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ssl_vit.models.vit import VisionTransformer
from ssl_vit.optim.param_groups import layer_groups
from ssl_vit.supervised.classifier import Classifier
from ssl_vit.supervised.finetune import (
    FineTune,
    balancing_weights,
    hard_distillation,
    layer_of,
    soft_cross_entropy,
    soft_distillation,
)

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 4, "image_size": 16, "pos_embed": "sincos"}
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "erasing_p": 0.0, "label_smoothing": 0.0, "randaugment": 0.0, "drop_path": 0.0}
NAMES = ["a", "b", "c", "d"]


def make(optim: dict | None = None, plain: bool = True, encoder: dict | None = None, **options) -> FineTune:
    torch.manual_seed(0)
    start = VisionTransformer(**{**SMALL, **(encoder or {})})
    return FineTune(start, NAMES, {"warmup_epochs": 0, **(optim or {})}, **{**(PLAIN if plain else {}), **options})


def make_images(count: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % len(NAMES)


def fit(objective: FineTune, tmp_path, batches: int = 3, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    settings = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path, **quiet, **options}
    trainer = pl.Trainer(enable_model_summary=False, **settings)
    trainer.fit(objective, loader(batches), ckpt_path=None)
    return trainer


def loader(batches: int = 3) -> DataLoader:
    return DataLoader(TensorDataset(*make_images(8 * batches)), batch_size=8)


# The decay of the learning rate from layer to layer.


def test_rates_of_a_base_model_are_those_of_a_table_made_by_hand():
    with torch.device("meta"):
        encoder = VisionTransformer(size="base", pos_embed="learned")
        model = Classifier.__new__(Classifier)
        nn.Module.__init__(model)
        model.encoder, model.fc_norm, model.head = encoder, nn.LayerNorm(768), nn.Linear(768, 10)
    groups = layer_groups(
        model.named_parameters(), 0.05, lambda name, p: p.ndim > 1, lambda name: layer_of(name, 12), 13, 0.65
    )
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    # MAE's lr_decay.py with .65 and twelve blocks: .65 ** 13 .. 1
    expected = [0.0037, 0.00569, 0.00875, 0.01346, 0.02071, 0.03186, 0.04902, 0.07542, 0.11603, 0.17850, 0.27462]
    expected += [0.4225, 0.65, 1.0]
    named = dict(model.named_parameters())
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        assert scale[id(named[f"encoder.{name}"])] == pytest.approx(expected[0], rel=2e-3)
    for i in range(12):
        for part in ("norm1.weight", "attn.qkv.weight", "mlp.fc2.bias"):
            assert scale[id(named[f"encoder.blocks.{i}.{part}"])] == pytest.approx(expected[i + 1], rel=2e-3)
    for name in ("fc_norm.weight", "head.weight", "head.bias"):
        assert scale[id(named[name])] == 1
    assert len(scale) == len(named)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.blocks.2.attn.relative_position_bias_table", 3),
        ("encoder.rel_pos_bias.relative_position_bias_table", 4),
        ("encoder.reg_token", 0),
        ("encoder.norm.weight", 4),
        ("dist_token", 4),
        ("head_dist.weight", 4),
    ],
)
def test_tables_go_with_their_block_a_shared_one_and_what_is_new_with_the_top(name, layer):
    assert layer_of(name, 3) == layer


def test_what_decays_is_what_the_authors_decay():
    objective = make(optim={"weight_decay": 0.3}, teacher=Counting())
    model = objective.model
    groups = objective.configure_optimizers().param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert {group["weight_decay"] for group in groups} == {0.0, 0.3}
    assert {"head.weight", "dist_token", "encoder.patch_embed.proj.weight"} <= names
    assert not {"encoder.cls_token", "encoder.pos_embed", "head.bias", "fc_norm.weight"} & names


def test_each_group_steps_at_its_share_of_the_rate(tmp_path):
    objective = make(optim={"base_lr": 0.256}, layer_decay=0.5)
    seen: list = []
    objective.after_step = lambda: seen.append(  # type: ignore[method-assign]
        {round(g["lr"] / g["scale"], 9) for g in objective.optimizers().optimizer.param_groups}
    )
    fit(objective, tmp_path)
    assert all(len(rates) == 1 for rates in seen)
    assert seen[0] == {0.256 * 8 / 256}


# Losses.


def test_cross_entropy_is_pytorchs_for_plain_and_for_smoothed_labels():
    logits, labels = torch.randn(16, 4) * 3, torch.arange(16) % 4
    one_hot = F.one_hot(labels, 4).float()
    torch.testing.assert_close(soft_cross_entropy(logits, one_hot), F.cross_entropy(logits, labels))
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, one_hot * 0.9 + 0.025), smoothed)


def test_labels_are_smoothed_once_whether_mixed_or_not():
    images, labels = make_images()
    objective = make(label_smoothing=0.1)
    with torch.no_grad():
        loss = objective.losses((images, labels))["classification"]
        expected = F.cross_entropy(objective.model(images), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


def test_class_weights_are_pytorchs():
    logits, labels = torch.randn(20, 4), torch.tensor([0] * 12 + [1] * 5 + [2] * 2 + [3])
    weights = balancing_weights(torch.bincount(labels))
    torch.testing.assert_close(weights, torch.tensor([20 / 48, 20 / 20, 20 / 8, 20 / 4]))
    ours = soft_cross_entropy(logits, F.one_hot(labels, 4).float(), weights)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, weight=weights))


def test_a_mixture_counts_by_its_mixed_weight():
    logits, weights = torch.randn(2, 2), torch.tensor([1.0, 3.0])
    targets = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    each = -(targets * logits.log_softmax(1)).sum(1)
    expected = (2.5 * each[0] + 1.0 * each[1]) / 3.5
    torch.testing.assert_close(soft_cross_entropy(logits, targets, weights), expected)


def test_distillation_is_deits():
    student, teacher = torch.randn(6, 5), torch.randn(6, 5)
    hard = -sum(student[b].log_softmax(0)[int(teacher[b].argmax())] for b in range(6)) / 6
    torch.testing.assert_close(hard_distillation(student, teacher), hard)
    q, p = (student / 3).softmax(1), (teacher / 3).softmax(1)
    divergence = sum(float(p[b, k]) * math.log(float(p[b, k]) / float(q[b, k])) for b in range(6) for k in range(5))
    assert float(soft_distillation(student, teacher, 3.0)) == pytest.approx(divergence * 9 / 30, rel=1e-5)


# Laws.


def test_overfits_eight_images(tmp_path):
    objective = make(optim={"base_lr": 0.1, "weight_decay": 0.0})
    images, labels = make_images()
    before = float(objective.losses((images, labels))["classification"].detach())
    assert before == pytest.approx(math.log(4), abs=1e-3)  # a head of 2e-5 says nothing at first
    fit(objective, tmp_path, batches=1, max_epochs=150)
    assert float(objective.losses((images, labels))["classification"].detach()) < 0.05
    assert bool((objective.final_model().eval()(images).argmax(1) == labels).all())


def run(tmp_path, seed: int, drawn_before: int) -> dict:
    objective = make(plain=False, drop_path=0.3, seed=seed)
    torch.manual_seed(drawn_before)  # what else is drawn in the process must not matter
    fit(objective, tmp_path, max_epochs=2)
    return objective.state_dict()


def test_the_same_seed_learns_the_same_with_all_that_is_random(tmp_path):
    first, again, other = (run(tmp_path, seed, before) for seed, before in ((0, 7), (0, 8), (1, 7)))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path):
    checkpoints = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = make(plain=False, drop_path=0.3, ema=0.5)
    fit(whole, tmp_path, max_epochs=2, callbacks=[checkpoints], enable_checkpointing=True)
    torch.manual_seed(99)
    rest = make(plain=False, drop_path=0.3, ema=0.5)
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, max_epochs=2, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(rest, loader(), ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert trainer.global_step == 6
    assert all(torch.equal(tensor, rest.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_averaged_weights_follow_and_are_what_is_judged(tmp_path):
    objective = make(optim={"base_lr": 0.1}, ema=0.5)
    start = objective.model.head.weight.detach().clone()
    fit(objective, tmp_path, batches=1)
    now = objective.model.head.weight.detach()
    assert objective.final_model() is objective.averaged
    assert not torch.equal(now, start)
    torch.testing.assert_close(objective.averaged.head.weight, (start + now) / 2)
    alone = make()
    assert alone.final_model() is alone.model


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.seen = nn.Linear(768, 4), []

    def forward(self, images):
        self.seen.append((images.detach().clone(), self.training))
        return self.linear(images.flatten(1))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_the_teacher_is_frozen_and_sees_what_the_student_sees(kind):
    teacher = Counting().train()
    objective = make(teacher=teacher, distill={"kind": kind, "alpha": 0.25}, mixup=0.8, erasing_p=1.0).train()
    model, seen = objective.model, list[torch.Tensor]()
    both = model.both
    model.both = lambda images: seen.append(images) or both(images)  # type: ignore[method-assign]
    losses = objective.losses(make_images())
    sum(losses.values()).backward()
    assert list(losses) == ["classification", "distillation"]
    assert torch.equal(teacher.seen[0][0], seen[0])
    assert not teacher.seen[0][1]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert float(model.head_dist.weight.grad.norm()) > 0
    assert float(losses["classification"].detach()) == pytest.approx(0.75 * math.log(4), abs=0.01)


def test_two_heads_learn_from_labels_and_from_the_teacher_and_answer_together():
    model = make(teacher=Counting()).model
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.head_dist.weight)
    both = model.both(make_images()[0])
    torch.testing.assert_close(model(make_images()[0]), (both[0] + both[1]) / 2)
    assert not torch.allclose(both[0], both[1])


def test_an_odd_batch_is_mixed_too_and_the_global_generators_stay():
    objective = make(plain=False, randaugment=0.0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    images, targets = objective.augment(*make_images(7), 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert images.shape == (7, 3, 16, 16)
    torch.testing.assert_close(targets.sum(1), torch.ones(7))
    again, _ = objective.augment(*make_images(7), 5)
    assert torch.equal(images, again)


# What is refused.


def test_mistakes_are_one_line():
    with pytest.raises(ValueError, match=r"finetune.randaugment=9 must be 0 for images of 5 channels: colors are"):
        make(plain=False, encoder={"channels": 5})
    with pytest.raises(ValueError, match=r"finetune.jitter=0.4 must be 0 for images of 5 channels"):
        make(encoder={"channels": 5}, jitter=0.4)
    with pytest.raises(ValueError, match="class_weights=true needs counts="):
        make(class_weights=True)
    with pytest.raises(ValueError, match="a batch has no labels: give"):
        make().inputs(make_images()[0])
    with pytest.raises(ValueError, match=r"has no place with encoder.pos_embed=relative_per_block"):
        make(teacher=Counting(), encoder={"pos_embed": "relative"})
