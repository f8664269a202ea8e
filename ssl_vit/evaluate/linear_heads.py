"""Linear heads trained together on cached features: learning rates x features, as DINOv2's (arXiv:2304.07193).

Heads that read the same feature share one weight tensor, so a step is one matrix product per feature however many there
are. They differ in their learning rate alone, and with SGD with momentum and without weight decay a rate per head is a
weight per head on its loss under a common rate: the momentum buffer and with it the step are linear in the gradient. So
one optimizer steps all of them, on loss = sum_h rate_h * CE_h at the common rate schedule(t).

Features are standardized by the training images' mean and std, each channel by itself; trained heads take both into
their weights.

Letters: n images, B of a batch, m of a subset, H heads, K classes, D feature channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ssl_vit.data.rng import permutation
from ssl_vit.evaluate.backbones import Feature
from ssl_vit.evaluate.features import FeatureBank
from ssl_vit.optim.schedules import cosine

MOMENTUM = 0.9
ROWS = 8192
"""Images at a time where all are passed through."""
EPSILON = 1e-6
"""Added to a variance, as in MAE's BatchNorm: a channel that never changes becomes 0."""


@dataclass(frozen=True)
class Heads:
    """Linear heads that read one feature: logits = features @ weight + bias."""

    feature: Feature
    weight: Float[Tensor, "H K D"]
    bias: Float[Tensor, "H K"]

    def logits(self, bank: FeatureBank, rows: Tensor) -> Float[Tensor, "m H K"]:
        """Of some of a bank's images."""
        weight, bias, logits = self.weight.flatten(0, 1), self.bias.flatten(), []
        for some in rows.split(ROWS):
            logits.append(F.linear(bank.select(self.feature, some).to(weight.device), weight, bias))
        return torch.cat(logits).unflatten(1, self.bias.shape)


@dataclass(frozen=True)
class Training:
    """How heads are trained."""

    classes: int
    epochs: int
    batch_size: int
    seed: int = 0
    """Of the order of the images."""
    device: str = "cpu"


def standard(bank: FeatureBank, rows: Int64[Tensor, " m"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and std of each channel over some of a bank's images, in two passes of ROWS at a time."""
    mean = torch.stack([bank.values[some].sum(0, dtype=torch.float64) for some in rows.split(ROWS)]).sum(0) / len(rows)
    center = mean.float()
    squares = [(bank.values[some] - center).square().sum(0, dtype=torch.float64) for some in rows.split(ROWS)]
    return center, (torch.stack(squares).sum(0) / len(rows) + EPSILON).sqrt().float()


def train_heads(
    bank: FeatureBank,
    features: Sequence[Feature],
    rates: Sequence[float],
    rows: Int64[Tensor, " m"],
    training: Training,
) -> list[Heads]:
    """For each feature a head for each learning rate, all trained together on some of a bank's images.

    SGD with momentum .9 from zero weights, the rate falling by a cosine per step to 0.

    Args:
        rates: learning rates of a step.
    """
    classes, epochs, device, H = training.classes, training.epochs, training.device, len(rates)
    mean, std = (figure.to(device) for figure in standard(bank, rows))
    columns = [torch.cat([torch.arange(some.start, some.stop) for some in bank.columns(f)]) for f in features]
    weights = [nn.Parameter(torch.zeros(H * classes, len(some), device=device)) for some in columns]
    biases = [nn.Parameter(torch.zeros(H * classes, device=device)) for _ in columns]
    scale = torch.tensor(rates, device=device)
    optimizer = torch.optim.SGD([*weights, *biases], lr=1.0, momentum=MOMENTUM)
    steps_per_epoch = -(-len(rows) // training.batch_size)
    for epoch in range(epochs):
        order = rows[torch.from_numpy(permutation(training.seed, epoch, len(rows)))]
        for step, some in enumerate(order.split(training.batch_size), start=epoch * steps_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = cosine(step / (epochs * steps_per_epoch), 1.0, 0.0)
            values = (bank.values[some].to(device) - mean) / std
            batch = FeatureBank(values, bank.labels[some].to(device), bank.holds)
            truth, loss = batch.labels.repeat_interleave(H), torch.zeros((), device=device)
            for feature, weight, bias in zip(features, weights, biases, strict=True):
                logits = F.linear(batch.select(feature), weight, bias).view(-1, classes)  # [B * H, K]
                losses = F.cross_entropy(logits, truth, reduction="none").view(-1, H).mean(0)
                loss = loss + (scale * losses).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    trained = []
    for feature, some, weight, bias in zip(features, columns, weights, biases, strict=True):
        raw = weight.detach() * (1 / std[some])
        shift = bias.detach() - raw @ mean[some]
        trained.append(Heads(feature, raw.unflatten(0, (H, classes)), shift.unflatten(0, (H, classes))))
    return trained
