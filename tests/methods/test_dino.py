"""Laws and behavior of DINO: crops, teacher, center, schedules, collapse."""

import math

import pytest
import torch
from fitting import assert_resumes_to_the_bit, fit

from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import RunConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.transforms.crops import MultiCrop
from ssl_vit.methods.dino import DINO, cross_entropy_of_pairs, sinkhorn_targets
from ssl_vit.models.weights import load_encoder, save_encoder
from ssl_vit.optim.param_groups import clip_each

ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "image_size": 16, "drop_path": 0.0}
SMALL = {"local_crops": 2, "local_size": 8, "prototypes": 24, "head_hidden": 16, "head_bottleneck": 8}


def make(optim: dict | None = None, encoder: dict | None = None, **options) -> DINO:
    torch.manual_seed(0)
    return DINO({**ENCODER, **(encoder or {})}, {"warmup_epochs": 0, **(optim or {})}, **{**SMALL, **options})


def crops(B: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, 3, side, side, generator=generator) for side in (16, 16, 8, 8)]


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_packed_crops_equal_crop_by_crop_gradients_included(positions):
    method, images = make(encoder={"pos_embed": positions}), crops()
    if positions == "relative":
        torch.nn.init.normal_(method.encoder.rel_pos_bias.relative_position_bias_table)
    together = method.extract_features(method.encoder, images)
    alone = torch.cat([method.encoder(crop)[:, 0] for crop in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(together)
    packed = torch.autograd.grad((together * weight).sum(), list(method.encoder.parameters()))
    apart = torch.autograd.grad((alone * weight).sum(), list(method.encoder.parameters()))
    torch.testing.assert_close(packed, apart, atol=1e-4, rtol=1e-4)


def test_mean_pool_describes_a_crop_by_its_patches():
    method, images = make(pool="mean"), crops()
    expected = torch.cat([method.encoder(crop)[:, 1:].mean(1) for crop in images])
    torch.testing.assert_close(method.extract_features(method.encoder, images), expected, atol=1e-5, rtol=1e-5)


def test_a_crop_is_never_compared_with_itself():
    teacher, student = torch.randn(2, 3, 10), torch.randn(2, 3, 10)
    targets = teacher.softmax(-1)
    crossed = -(targets[0] * student[1].log_softmax(-1) + targets[1] * student[0].log_softmax(-1)).sum(-1).mean() / 2
    torch.testing.assert_close(cross_entropy_of_pairs(student, targets, 1.0), crossed)


def test_uniform_outputs_lose_the_logarithm_of_the_prototypes():
    loss = cross_entropy_of_pairs(torch.zeros(4, 3, 24), torch.full((2, 3, 24), 1 / 24), 0.1)
    assert loss == pytest.approx(math.log(24), rel=1e-6)


def test_sinkhorn_gives_every_crop_mass_one_and_every_prototype_the_same():
    targets = sinkhorn_targets(torch.rand(2, 40, 5), 0.05, iterations=50)
    torch.testing.assert_close(targets.sum(-1), torch.ones(2, 40))
    torch.testing.assert_close(targets.sum((0, 1)), torch.full((5,), 16.0), rtol=1e-4, atol=1e-4)


def test_no_gradient_reaches_the_teacher_and_it_shares_no_memory():
    method = make()
    sum(method.losses(crops()).values()).backward()
    teacher = [*method.teacher_encoder.parameters(), *method.teacher_head.parameters()]
    student = [*method.encoder.parameters(), *method.head.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in teacher)
    assert not {p.data_ptr() for p in teacher} & {p.data_ptr() for p in student}


def test_drop_path_is_in_the_student_alone():
    method = make(encoder={"drop_path": 0.5}).train()
    assert not method.teacher_encoder.training
    assert method.encoder.training
    torch.manual_seed(1)
    first, second = (method.extract_features(method.teacher_encoder, crops()) for _ in range(2))
    assert torch.equal(first, second)
    first, second = (method.extract_features(method.encoder, crops()) for _ in range(2))
    assert not torch.equal(first, second)


def test_center_moves_after_the_loss_once_per_step_by_the_mean_of_raw_logits(tmp_path):
    class Recorded(DINO):
        def losses(self, images):
            before.append(self.center.clone())
            features = self.extract_features(self.teacher_encoder, images[:2])
            means.append(self.teacher_head(features).mean(0))
            return super().losses(images)

    before, means = [], []
    torch.manual_seed(0)
    method = Recorded(ENCODER, **SMALL)
    fit(method, [(crops(seed=i),) for i in range(4)], tmp_path, accumulate_grad_batches=2)
    expected = torch.zeros(24)
    assert torch.equal(before[0], expected)
    assert torch.equal(before[1], expected)  # two batches make a step
    expected = 0.9 * expected + 0.1 * (means[0] + means[1]) / 2
    torch.testing.assert_close(before[2], expected)
    torch.testing.assert_close(method.center, 0.9 * expected + 0.1 * (means[2] + means[3]) / 2)


def test_teacher_moves_once_per_step_by_the_momentum_of_that_step(tmp_path):
    start = make().encoder.state_dict()["blocks.0.mlp.fc1.weight"].clone()
    method = make(momentum=0.9)
    fit(method, [(crops(seed=i),) for i in range(2)], tmp_path, accumulate_grad_batches=2)
    student = method.encoder.state_dict()["blocks.0.mlp.fc1.weight"]
    teacher = method.teacher_encoder.state_dict()["blocks.0.mlp.fc1.weight"]
    assert not torch.equal(student, start)
    torch.testing.assert_close(teacher, 0.9 * start + 0.1 * student)


def test_schedules_at_the_start_in_the_middle_and_at_the_last_step(tmp_path):
    class Recorded(DINO):
        def on_before_optimizer_step(self, optimizer):
            super().on_before_optimizer_step(optimizer)
            decayed, free = optimizer.param_groups
            rows.append((self.momentum(), decayed["weight_decay"], free["weight_decay"], self.teacher_temperature()))

    rows: list = []
    method = Recorded(ENCODER, {"warmup_epochs": 1}, **SMALL, warmup_teacher_temp_epochs=5)
    fit(method, [(crops(seed=i),) for i in range(2)], tmp_path, max_epochs=10)
    momentum, decayed, free, temperature = zip(*rows, strict=True)
    assert len(rows) == 20
    assert (momentum[0], decayed[0], temperature[0]) == pytest.approx((0.996, 0.04, 0.04))
    assert momentum[10] == pytest.approx((0.996 + 1) / 2)
    assert decayed[10] == pytest.approx((0.04 + 0.4) / 2)
    assert temperature[5] == pytest.approx(0.055)
    assert temperature[10:] == (0.07,) * 10
    assert 0.99995 < momentum[-1] < 1
    assert 0.39 < decayed[-1] < 0.4
    assert set(free) == {0.0}


def test_prototypes_do_not_move_in_the_first_epoch(tmp_path):
    batches = [(crops(seed=i),) for i in range(2)]
    frozen, free = make(), make(freeze_last_layer=0)
    start = frozen.head.last_layer.weight_v.clone()
    fit(frozen, batches, tmp_path)
    fit(free, batches, tmp_path)
    assert torch.equal(frozen.head.last_layer.weight_v, start)
    assert not torch.equal(free.head.last_layer.weight_v, start)
    thawed = make()
    fit(thawed, batches, tmp_path, max_epochs=2)
    assert not torch.equal(thawed.head.last_layer.weight_v, start)


def test_each_gradient_is_clipped_by_its_own_norm():
    large, small = torch.nn.Parameter(torch.zeros(4)), torch.nn.Parameter(torch.zeros(4))
    untouched = torch.nn.Parameter(torch.zeros(1))
    large.grad, small.grad = torch.full((4,), 50.0), torch.full((4,), 0.5)
    clip_each([large, small, untouched], 3.0)
    assert large.grad.norm() == pytest.approx(3.0, rel=1e-5)
    assert torch.equal(small.grad, torch.full((4,), 0.5))


def test_overfits_eight_images(tmp_path):
    optim = {"base_lr": 0.05, "warmup_epochs": 1, "weight_decay": 0.0}
    method = make(optim, head_norm=True, freeze_last_layer=0, momentum=0.9, warmup_teacher_temp=0.02, teacher_temp=0.02)
    batch = (crops(8),)
    start = float(method.losses(batch[0])["cross_entropy"])
    method._teacher_means.clear()
    fit(method, [batch], tmp_path, max_epochs=60)
    loss = float(method.losses(batch[0])["cross_entropy"])
    spread = float(method.extra_metrics["teacher_mean_entropy"])
    assert loss < 0.5 * start
    assert spread > 0.3 * math.log(24)  # and not because one prototype won


def test_same_seed_same_weights_to_the_bit(tmp_path):
    weights = []
    for _ in range(2):
        method = make()
        fit(method, [(crops(seed=i),) for i in range(3)], tmp_path)
        weights.append(method.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_loss_that_is_no_number_moves_neither_weights_nor_teacher_nor_center(tmp_path):
    method = make()
    start = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    unreadable = [crop * math.nan for crop in crops()]
    fit(method, [(unreadable,)], tmp_path)
    assert method.guard.in_a_row == 1
    assert all(torch.equal(tensor, start[name]) for name, tensor in method.state_dict().items())
    fit(method, [(crops(),)], tmp_path)
    assert method.center.isfinite().all()
    assert not torch.equal(method.center, start["center"])


def test_views_are_the_papers_crops_and_train_from_a_data_module(tmp_path):
    method = make()
    view = method.transform()
    assert isinstance(view, MultiCrop)
    data = ImageDataModule(view, source="digits", batch_size=16, image_size=16, seed=0)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert [tuple(crop.shape) for crop in batch["images"]] == [(16, 3, side, side) for side in (16, 16, 8, 8)]
    images = data.on_after_batch_transfer(batch, 0)["images"]
    assert all(crop.dtype == torch.float32 for crop in images)
    assert method.losses(images)["cross_entropy"].isfinite()


@pytest.mark.parametrize(
    ("images", "given"), [(torch.zeros(2, 3, 16, 16), "one tensor"), ([torch.zeros(2, 3, 16, 16)] * 3, "3 tensors")]
)
def test_other_images_than_the_crops_are_refused(images, given):
    message = rf"images arrive as {given}; DINO takes a list of method.global_crops=2 \+ method.local_crops=2 crops"
    with pytest.raises(ValueError, match=message):
        make().losses(images)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("method.global_crops=1 method.local_crops=0", "method.global_crops=1 must be large enough for two crops"),
        ("method.global_crops=0", "method.global_crops=0 must be a positive integer"),
        ("method.local_size=15", "method.local_size=15 must be a multiple of encoder.patch_size=4"),
        ("method.prototypes=0", "method.prototypes=0 must be 2 or more"),
        ("data.batch_size=1", "data.batch_size=1 must be 2 or more: the teacher's center is a mean over images"),
        ("encoder.channels=2 data.mean=[0,0] data.std=[1,1]", "method.jitter_p=.* must be 0 for encoder.channels=2"),
        ("method.hue=0.7", r"method.hue=0.7 must be in \[0, 0.5\]"),
        ("method.centering=center", r"method.centering=center must be one of mean, sinkhorn"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(args, message):
    with pytest.raises(ConfigError, match=message):
        resolve(RunConfig, ["method=dino", "encoder.patch_size=4", *args.split()])


def step(rank: int) -> None:
    """One of two processes: half of the batch, one step."""
    torch.distributed.init_process_group("gloo")
    method, images = make(), [crop[rank::2] for crop in crops(8)]
    loss = method.losses(images)["cross_entropy"]
    method.after_step()
    targets = sinkhorn_targets(torch.stack(images[:2]).flatten(2)[..., :24], 1.0)
    torch.save((loss.detach(), method.center, targets), f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_center_and_loss_on_two_processes_are_those_of_one_with_the_joint_batch(tmp_path, nursery):
    nursery.ranks(tmp_path, step)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    method, images = make(), crops(8)
    loss = method.losses(images)["cross_entropy"]
    method.after_step()
    torch.testing.assert_close((ranks[0][0] + ranks[1][0]) / 2, loss.detach())
    for rank in range(2):
        torch.testing.assert_close(ranks[rank][1], method.center)
    joint = sinkhorn_targets(torch.stack(images[:2]).flatten(2)[..., :24], 1.0)
    for rank in range(2):
        torch.testing.assert_close(ranks[rank][2], joint[:, rank::2], rtol=1e-4, atol=1e-7)


def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = make(freeze_last_layer=0)
    rest = DINO(ENCODER, {"warmup_epochs": 0}, **SMALL, freeze_last_layer=0)
    assert_resumes_to_the_bit(whole, rest, [(crops(seed=i),) for i in range(3)], tmp_path)


def test_the_teacher_is_exported_and_a_checkpoint_keeps_both(tmp_path):
    method = make()
    trainer = fit(method, [(crops(),)], tmp_path)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    for which, network in (
        ("", method.teacher_encoder),
        ("teacher", method.teacher_encoder),
        ("student", method.encoder),
    ):
        loaded = load_encoder(tmp_path / "both.ckpt", which=which).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in network.state_dict().items())
    assert method.export_encoder() is method.teacher_encoder


def test_images_show_what_each_head_looks_at():
    columns = make().visualize(*[torch.randn(2, 3, 16, 16)] * 2)
    assert list(columns) == [
        "image",
        "attention of head 1",
        "attention of head 2",
        "attention of head 3",
        "attention of head 4",
    ]
    assert columns["attention of head 1"].shape == (2, 1, 16, 16)
    assert columns["attention of head 1"].dtype == torch.uint8


def test_starting_from_other_weights_starts_the_teacher_there_too(tmp_path):
    other = make().encoder
    torch.nn.init.normal_(other.cls_token)
    save_encoder(other, tmp_path)
    method = make()
    method.start_from(str(tmp_path))
    assert torch.equal(method.encoder.cls_token, other.cls_token)
    assert torch.equal(method.teacher_encoder.cls_token, other.cls_token)
