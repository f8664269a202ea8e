"""Linear heads trained together on cached features: learning rates x features, as DINOv2 judges (arXiv:2304.07193).

Heads that read the same feature share one weight tensor, so a step is one matrix product per feature however many there
are. They differ in their learning rate alone, and with SGD with momentum and without weight decay a rate per head is a
weight per head on its loss under a common rate: the momentum buffer and with it the step are linear in the gradient. So
one optimizer steps all of them, on loss = sum_h rate_h * CE_h at the common rate schedule(t).

Features are standardized by the training images' mean and deviation, each by itself, which a head then takes into
its weights.

Letters: n images, B of a batch, m of a part, H heads, K classes, D feature channels.
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
        """Of some of a table's images."""
        H, K, _ = self.weight.shape
        parts = []
        for some in rows.split(ROWS):
            features = bank.select(self.feature, some).to(self.weight.device)
            parts.append(F.linear(features, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(1, (H, K)))
        return torch.cat(parts)


@dataclass(frozen=True)
class Training:
    """How heads are trained."""

    classes: int
    epochs: int
    batch_size: int
    seed: int = 0
    """Draws the order of the images."""
    device: str = "cpu"


def standard(bank: FeatureBank, rows: Int64[Tensor, " m"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and deviation of each channel over some of a table's images, in two passes of ROWS at a time."""
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
    """For each feature a head for each learning rate, trained on some of a table's images in one pass over them.

    SGD with momentum .9 from zero weights, the rate falling by a cosine per step to 0.

    Args:
        rates: learning rates of a step.
    """
    classes, epochs, device, H = training.classes, training.epochs, training.device, len(rates)
    mean, std = (figure.to(device) for figure in standard(bank, rows))
    widths = [sum(part.stop - part.start for part in bank.columns(feature)) for feature in features]
    weights = [nn.Parameter(torch.zeros(H * classes, width, device=device)) for width in widths]
    biases = [nn.Parameter(torch.zeros(H * classes, device=device)) for _ in widths]
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
    for feature, weight, bias in zip(features, weights, biases, strict=True):
        gain = torch.cat([1 / std[part] for part in bank.columns(feature)])
        center = torch.cat([mean[part] for part in bank.columns(feature)])
        raw = weight.detach() * gain
        shift = bias.detach() - raw @ center
        trained.append(Heads(feature, raw.unflatten(0, (H, classes)), shift.unflatten(0, (H, classes))))
    return trained
