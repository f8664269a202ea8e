"""The papers' probes on live crops, each against a plain loop over the same crops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.utils import lars

from ssl_vit.data.rng import permutation, seeded_generator, stratified, uniforms
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.evaluate.backbones import RawPixels
from ssl_vit.evaluate.paper_probes import LARS, evaluate_beit, evaluate_dino, evaluate_mae

EPOCHS, BATCH = 3, 12  # 30 images: the last batch of an epoch has 6


def batches(evaluation, epoch: int):
    """(normalized crops, labels, numbers in the source) of an epoch's batches, made image by image."""
    part, transform = evaluation.data._parts["train"], RandomCrop((16, 16), (0.08, 1.0))
    order = part.index[permutation(0, epoch, len(part.index))]
    for start in range(0, len(order), BATCH):
        some, crops = order[start : start + BATCH], []
        for index in some:
            image = torch.from_numpy(part.source.read(int(index)).copy()).permute(2, 0, 1)
            crops.append(transform(image, uniforms(0, epoch, np.array([index]), transform.num_random)[0]))
        yield evaluation.data.normalize(torch.stack(crops)), torch.from_numpy(part.labels[some]), torch.from_numpy(some)


def images_to_judge(evaluation):
    """Normalized test images."""
    return torch.cat([evaluation.data.normalize(batch["images"]) for batch in evaluation.data.eval_dataloader("test")])


def linear(width: int) -> torch.nn.Linear:
    """As the protocols draw it."""
    head = torch.nn.Linear(width, 3)
    torch.nn.init.normal_(head.weight, std=0.01, generator=seeded_generator(torch.device("cpu"), 0))
    torch.nn.init.zeros_(head.bias)
    return head


def exam_of(make_exam, protocol: str, **settings):
    return make_exam(protocol=protocol, epochs=EPOCHS, batch_size=BATCH, **settings)


@pytest.mark.parametrize("pool", [None, "both"])
def test_mae_is_a_batch_norm_and_a_linear_map_by_lars(make_exam, backbone, encoder, pool):
    """The update is written out from the authors' lars.py and lr_sched.py; 90 epochs have 10 of warm-up, 3 a third."""
    evaluation, lr, warmup = exam_of(make_exam, "mae", pool=pool), 0.1 * BATCH / 256, EPOCHS / 9
    norm = torch.nn.BatchNorm1d(48 if pool else 24, affine=False, eps=1e-6)
    head = linear(48 if pool else 24)
    momentum = {parameter: torch.zeros_like(parameter) for parameter in head.parameters()}
    for epoch in range(EPOCHS):
        for step, (images, labels, _) in enumerate(batches(evaluation, epoch)):
            done = epoch + step / 3
            rising, falling = done / warmup, 0.5 * (1 + math.cos(math.pi * (done - warmup) / (EPOCHS - warmup)))
            rate = lr * (rising if done < warmup else falling)
            with torch.no_grad():
                features = encoder.features(images, [-1], pool or "cls")
            head.zero_grad()
            F.cross_entropy(head(norm(features)), labels).backward()
            for parameter, buffer in momentum.items():
                change = parameter.grad
                if parameter.ndim > 1:
                    change = change * 0.001 * parameter.data.norm() / change.norm()
                buffer.mul_(0.9).add_(change)
                parameter.data -= rate * buffer
    norm.eval()
    with torch.no_grad():
        features = encoder.features(images_to_judge(evaluation), [-1], pool or "cls")
        expected = head(norm(features)).softmax(1)
    result = evaluate_mae(evaluation, backbone)
    torch.testing.assert_close(result.probabilities, expected, atol=1e-5, rtol=1e-4)
    assert result.head == {"blocks": [3], "pool": pool or "cls", "lr": lr}


def test_lars_is_lightlys_where_that_scales_at_all():
    """lightly scales only what has weight decay; 1e-30 is enough of it, and moves nothing. Its eps is 1e-8."""
    ours, theirs = linear(7), linear(7)
    optimizers = [
        LARS([ours.weight], lr=0.5),
        lars.LARS([theirs.weight], lr=0.5, momentum=0.9, weight_decay=1e-30, trust_coefficient=0.001),
    ]
    features, labels = torch.randn(20, 7), torch.arange(20) % 3
    for _ in range(5):
        for head, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(head(features), labels).backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-7, rtol=1e-5)
    assert not torch.allclose(ours.weight, linear(7).weight, atol=1e-5)


def test_lars_takes_plain_steps_on_vectors_and_where_nothing_can_be_scaled():
    zero = torch.nn.Parameter(torch.zeros(2, 2))
    bias = torch.nn.Parameter(torch.ones(2))
    optimizer = LARS([zero, bias], lr=0.5)
    zero.grad, bias.grad = torch.ones(2, 2), torch.ones(2)
    optimizer.step()
    assert torch.equal(zero.data, torch.full((2, 2), -0.5))
    assert torch.equal(bias.data, torch.full((2,), 0.5))


@pytest.mark.parametrize("wide", [False, True])
def test_dino_reads_by_width_and_steps_by_epoch(make_exam, backbone, encoder, wide, monkeypatch):
    monkeypatch.setattr("ssl_vit.evaluate.paper_probes.WIDE", 24 if wide else 768)
    evaluation, lr = exam_of(make_exam, "dino"), 0.001 * BATCH / 256
    layers, pool = ([2], "both") if wide else ([0, 1, 2], "cls")  # it has three blocks, not four
    head = linear(48 if wide else 72)
    sgd = torch.optim.SGD(head.parameters(), lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, EPOCHS)
    for epoch in range(EPOCHS):
        for images, labels, _ in batches(evaluation, epoch):
            with torch.no_grad():
                features = encoder.features(images, layers, pool)
            sgd.zero_grad()
            F.cross_entropy(head(features), labels).backward()
            sgd.step()
        schedule.step()
    with torch.no_grad():
        expected = head(encoder.features(images_to_judge(evaluation), layers, pool)).softmax(1)
    result = evaluate_dino(evaluation, backbone)
    torch.testing.assert_close(result.probabilities, expected, atol=1e-6, rtol=1e-5)
    assert result.head == {"blocks": [1 + layer for layer in layers], "pool": pool, "lr": lr}


def test_beit_chooses_a_block_on_training_images_that_its_chooser_never_saw(make_exam, backbone, encoder):
    evaluation, lr = exam_of(make_exam, "beit", base_lr=0.05), 0.05 * BATCH / 256
    part = evaluation.data._parts["train"]
    held_out = stratified(part.labels[part.index], 6, 0)
    unseen = torch.zeros(len(part.labels), dtype=torch.bool)
    unseen[part.index[held_out]] = True
    heads = {(block, chooser): linear(48) for block in range(3) for chooser in (False, True)}
    optimizers = {key: torch.optim.AdamW(head.parameters(), lr, weight_decay=1e-4) for key, head in heads.items()}

    def features(images, block):
        with torch.no_grad():
            tokens = encoder.hidden_states(encoder.embed(images), [block])[0]
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)

    for epoch in range(EPOCHS):
        for images, labels, index in batches(evaluation, epoch):
            for (block, chooser), head in heads.items():
                seen = ~unseen[index] if chooser else torch.ones(len(index), dtype=torch.bool)
                optimizer = optimizers[block, chooser]
                optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * epoch / EPOCHS))
                optimizer.zero_grad()
                F.cross_entropy(head(features(images, block)[seen]), labels[seen]).backward()
                optimizer.step()
    train = torch.cat(
        [evaluation.data.normalize(batch["images"]) for batch in evaluation.data.eval_dataloader("train")]
    )
    truth = evaluation.train_labels[held_out]
    hits = [int((heads[b, True](features(train[held_out], b)).argmax(1) == truth).sum()) for b in range(3)]
    chosen = hits.index(max(hits))
    expected = heads[chosen, False](features(images_to_judge(evaluation), chosen)).softmax(1).detach()
    result = evaluate_beit(evaluation, backbone)
    assert result.head == {"blocks": [1 + chosen], "pool": "both", "lr": lr}
    torch.testing.assert_close(result.probabilities, expected, atol=2e-3, rtol=1e-3)  # Adam divides by its noise


@pytest.mark.parametrize(
    ("protocol", "judge"), [("mae", evaluate_mae), ("dino", evaluate_dino), ("beit", evaluate_beit)]
)
def test_raw_pixels_are_judged_alike(make_exam, protocol, judge):
    result = judge(exam_of(make_exam, protocol), RawPixels((16, 16), 3, 4))
    assert result.head["pool"] == "whole"
    assert result.probabilities.shape == (12, 3)


def test_a_last_batch_of_one_image_is_passed_over(make_exam, backbone):
    evaluation = make_exam(protocol="mae", epochs=1, batch_size=29)
    assert evaluate_mae(evaluation, backbone).probabilities.isfinite().all()


def test_probing_leaves_the_encoder_alone(make_exam, backbone, encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    evaluate_beit(exam_of(make_exam, "beit"), backbone)
    torch.testing.assert_close(encoder.state_dict(), before, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in encoder.parameters())
