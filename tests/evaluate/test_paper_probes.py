"""The papers' probes on live crops, each against a plain loop over the same crops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_vit.data.rng import permutation, seeded_generator, stratified, uniforms
from ssl_vit.data.sources import open_source
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.evaluate.backbones import RawPixels
from ssl_vit.evaluate.paper_probes import lars
from ssl_vit.supervised.linear_probe import evaluate_live

EPOCHS, BATCH = 3, 12  # 30 images: the last batch of an epoch has 6


def batches(evaluation, epoch: int):
    """(normalized crops, labels, numbers in the source) of an epoch's batches, made image by image."""
    source, transform = open_source(evaluation.config.data, 3, "train"), RandomCrop((16, 16), (0.08, 1.0))
    order = permutation(0, epoch, len(source))
    for start in range(0, len(order), BATCH):
        some, crops = order[start : start + BATCH], []
        for index in some:
            image = torch.from_numpy(source.read(int(index)).copy()).permute(2, 0, 1)
            crops.append(transform(image, uniforms(0, epoch, np.array([index]), transform.num_random)[0]))
        images = evaluation.data.normalize(torch.stack(crops))
        yield images, torch.from_numpy(source.labels[some]), torch.from_numpy(some)


def normalized_test_images(evaluation):
    """Normalized test images."""
    return torch.cat([evaluation.data.normalize(batch["images"]) for batch in evaluation.data.eval_dataloader("test")])


def linear(width: int) -> torch.nn.Linear:
    """As the protocols draw it."""
    head = torch.nn.Linear(width, 3)
    torch.nn.init.normal_(head.weight, std=0.01, generator=seeded_generator(torch.device("cpu"), 0))
    torch.nn.init.zeros_(head.bias)
    return head


def evaluation_of(make_evaluation, protocol: str, **settings):
    return make_evaluation(protocol=protocol, epochs=EPOCHS, batch_size=BATCH, **settings)


@pytest.mark.parametrize("pool", [None, "both"])
def test_mae_is_a_batch_norm_and_a_linear_map_by_lars(make_evaluation, backbone, encoder, pool):
    """The update is written out from the authors' lars.py and lr_sched.py; 90 epochs have 10 of warm-up, 3 a third."""
    evaluation, lr, warmup = evaluation_of(make_evaluation, "mae", pool=pool), 0.1 * BATCH / 256, EPOCHS / 9
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
        features = encoder.features(normalized_test_images(evaluation), [-1], pool or "cls")
        expected = head(norm(features)).softmax(1)
    result = evaluate_live(evaluation, backbone)
    torch.testing.assert_close(result.probabilities, expected, atol=1e-5, rtol=1e-4)
    assert result.head == {"blocks": [3], "pool": pool or "cls", "lr": lr}


def test_lars_scales_matrices_and_takes_plain_steps_where_nothing_can_be_scaled():
    zero, bias, matrix = (
        torch.nn.Parameter(values) for values in (torch.zeros(2, 2), torch.ones(2), torch.randn(2, 2))
    )
    start, gradient = matrix.detach().clone(), torch.randn(2, 2)
    optimizer = lars([zero, bias, matrix], lr=0.5)
    zero.grad, bias.grad, matrix.grad = torch.ones(2, 2), torch.ones(2), gradient.clone()
    optimizer.step()
    assert torch.equal(zero.data, torch.full((2, 2), -0.5))
    assert torch.equal(bias.data, torch.full((2,), 0.5))
    torch.testing.assert_close(matrix.data, start - 0.5 * 0.001 * start.norm() / gradient.norm() * gradient)


@pytest.mark.parametrize("wide", [False, True])
def test_dino_reads_by_width_and_steps_by_epoch(make_evaluation, backbone, encoder, wide, monkeypatch):
    monkeypatch.setattr("ssl_vit.evaluate.paper_probes.WIDE", 24 if wide else 768)
    evaluation, lr = evaluation_of(make_evaluation, "dino"), 0.001 * BATCH / 256
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
        expected = head(encoder.features(normalized_test_images(evaluation), layers, pool)).softmax(1)
    result = evaluate_live(evaluation, backbone)
    torch.testing.assert_close(result.probabilities, expected, atol=1e-6, rtol=1e-5)
    assert result.head == {"blocks": [1 + layer for layer in layers], "pool": pool, "lr": lr}


def test_beit_chooses_a_block_on_training_images_that_its_chooser_never_saw(make_evaluation, backbone, encoder):
    evaluation, lr = evaluation_of(make_evaluation, "beit", base_lr=0.05), 0.05 * BATCH / 256
    held_out = stratified(evaluation.train_labels.numpy(), 6, 0)  # all images are labeled: their order is the source's
    unseen = torch.zeros(len(evaluation.train_labels), dtype=torch.bool)
    unseen[held_out] = True
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
    expected = heads[chosen, False](features(normalized_test_images(evaluation), chosen)).softmax(1).detach()
    result = evaluate_live(evaluation, backbone)
    assert result.head == {"blocks": [1 + chosen], "pool": "both", "lr": lr}
    torch.testing.assert_close(result.probabilities, expected, atol=2e-3, rtol=1e-3)  # Adam divides by its noise


@pytest.mark.parametrize("protocol", ["mae", "dino", "beit"])
def test_raw_pixels_are_evaluated_alike(make_evaluation, protocol):
    result = evaluate_live(evaluation_of(make_evaluation, protocol), RawPixels((16, 16), 3, 4))
    assert result.head["pool"] == "whole"
    assert result.probabilities.shape == (12, 3)


def test_a_last_batch_of_one_image_is_passed_over(make_evaluation, backbone):
    evaluation = make_evaluation(protocol="mae", epochs=1, batch_size=29)
    assert evaluate_live(evaluation, backbone).probabilities.isfinite().all()


def test_probing_leaves_the_encoder_alone(make_evaluation, backbone, encoder):
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    evaluate_live(evaluation_of(make_evaluation, "beit"), backbone)
    torch.testing.assert_close(encoder.state_dict(), before, atol=0, rtol=0)
    assert all(parameter.grad is None for parameter in encoder.parameters())
