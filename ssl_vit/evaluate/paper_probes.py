"""The papers' own linear probes, on random crops that pass through the frozen encoder anew in every epoch.

MAE (arXiv:2111.06377, appendix A.1; main_linprobe.py), DINO (arXiv:2104.14294, section 4.1; eval_linear.py) and BEiT
(arXiv:2106.08254, section 3.4; run_linear_eval.py). The last epoch is reported, never the best one on test images.

Letters: B images of a batch, n training images, D feature channels, K classes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.data.loader import ShuffledRankSampler
from ssl_vit.data.rng import seeded_generator, stratified
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.evaluation import Evaluation, Result
from ssl_vit.evaluate.features import FeatureBank, cover, feature_extractor, tracked
from ssl_vit.evaluate.linear_heads import MOMENTUM
from ssl_vit.optim.param_groups import scaled_lr
from ssl_vit.optim.schedules import cosine, warmup_cosine

CROP = (0.08, 1.0)
"""Area of a crop, as a share of the image: all three."""
WARMUP = 10 / 90
"""MAE's share of epochs with a rising learning rate."""
WIDE = 768
"""From this width on DINO reads class token and mean of the last block, below it the class tokens of the last four."""


@dataclass
class Head:
    """A classifier of one feature, and the training images that it may not see."""

    feature: Feature
    module: nn.Module
    unseen: Bool[Tensor, " n"] | None = None
    """By number in their source."""


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose steps are scaled, for each weight matrix, to its norm (arXiv:1708.03888; MAE's lars.py).

    lightly's LARS scales nothing that has no weight decay, which is all there is here. Biases take plain steps.
    """

    TRUST = 0.001

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                step = parameter.grad
                if parameter.ndim > 1:
                    norm, step_norm = parameter.norm(), step.norm()
                    ratio = self.TRUST * norm / step_norm
                    step = step * torch.where((norm > 0) & (step_norm > 0), ratio, torch.ones_like(ratio))
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(MOMENTUM).add_(step)
                parameter.add_(momentum, alpha=-group["lr"])


def evaluate_mae(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """BatchNorm without parameters and a linear map, by LARS; by default on the class token of the last block."""
    config = evaluation.config
    pool = config.pool or ("cls" if "cls" in backbone.pools else "mean")
    feature = backbone.feature(pool, config.layer or "last", config.blocks or 1)
    linear = linear_head(evaluation, backbone, feature)
    width = linear.weight.shape[1]
    head = Head(feature, nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear))

    def rate(epoch: float, epochs: int) -> float:
        return warmup_cosine(epoch, epochs, peak=1.0, final=0.0, warmup=WARMUP * epochs)

    how = train_live(evaluation, backbone, [head], LARS, rate)
    return result(evaluation, backbone, head, f"BatchNorm and linear, LARS, {how}")


def evaluate_dino(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """A linear map by SGD, the rate falling by epochs; reads as DINO's authors do for the encoder's width."""
    config, wide = evaluation.config, backbone.width >= WIDE
    pool = config.pool or ("mean" if "cls" not in backbone.pools else "both" if wide else "cls")
    feature = backbone.feature(pool, config.layer or "last", config.blocks or (1 if wide else 4))
    head = Head(feature, linear_head(evaluation, backbone, feature))

    def sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr, momentum=MOMENTUM)

    how = train_live(evaluation, backbone, [head], sgd, by_epoch)
    return result(evaluation, backbone, head, f"linear, SGD, {how}")


def evaluate_beit(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """A linear map for each block, on class token and mean before the final norm; their losses are summed.

    In one pass two maps are trained for each block: one that never sees a held-out fifth of the training images,
    which chooses the block, and one that sees all, which is reported. Neither moves the other.
    """
    pool = "both" if "both" in backbone.pools else backbone.pools[-1]
    features = [backbone.feature(pool, 1 + block, 1) for block in range(backbone.depth)]
    unseen, fifth = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
    if len(features) > 1:
        labels = evaluation.train_labels.numpy()
        fifth = torch.from_numpy(stratified(labels, max(1, len(labels) // 5), evaluation.config.seed))
        index = torch.from_numpy(
            evaluation.data.eval_index("train", evaluation.config.train_limit, evaluation.config.seed)
        )
        unseen = torch.zeros(int(index.max()) + 1, dtype=torch.bool)
        unseen[index[fifth]] = True
    reported = [Head(feature, linear_head(evaluation, backbone, feature)) for feature in features]
    choosers = [Head(f, linear_head(evaluation, backbone, f), unseen) for f in features] if len(features) > 1 else []

    def adamw(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr, weight_decay=1e-4)

    how = train_live(evaluation, backbone, [*reported, *choosers], adamw, by_epoch, normed=False)
    chosen = 0
    if choosers:
        bank = evaluation.bank(backbone, features, "train", normed=False)
        hits = [
            int((logits_of(head, bank, fifth, evaluation.resources.device).argmax(1) == bank.labels[fifth]).sum())
            for head in choosers
        ]
        chosen = max(range(len(hits)), key=lambda block: hits[block])
    return result(evaluation, backbone, reported[chosen], f"linear on each block, AdamW, {how}", normed=False)


def by_epoch(epoch: float, epochs: int) -> float:
    """Half a cosine from 1 to 0, constant within an epoch."""
    return cosine(math.floor(epoch) / epochs, 1.0, 0.0)


def linear_head(evaluation: Evaluation[Any], backbone: Backbone, feature: Feature) -> nn.Linear:
    """A linear map from a feature to the classes: weights N(0, .01), no bias at first; drawn by the seed."""
    halves = 2 if feature.pool == "both" else 1
    linear = nn.Linear(halves * len(feature.blocks) * backbone.width, evaluation.classes)
    nn.init.normal_(linear.weight, std=0.01, generator=seeded_generator(torch.device("cpu"), evaluation.config.seed))
    nn.init.zeros_(linear.bias)
    return linear.to(evaluation.resources.device)


def train_live(
    evaluation: Evaluation[LinearProbeConfig],
    backbone: Backbone,
    heads: Sequence[Head],
    optimizer_of: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer],
    rate: Callable[[float, int], float],
    normed: bool = True,
) -> str:
    """Train heads on random crops, all of them by one optimizer on the sum of their losses; says how, in a few words.

    Every process describes its share of a batch and trains the same heads on the whole of it.

    Args:
        rate: (epochs done, with fractions; epochs) -> factor on the peak learning rate.
    """
    epochs, (lr, batch_size) = evaluation.config.schedule[0], peak_lr(evaluation)
    optimizer = optimizer_of([p for head in heads for p in head.module.parameters()], lr)
    extract_features = CroppedFeatures(
        evaluation, backbone, cover([head.feature for head in heads]), batch_size, normed
    )
    for epoch in range(epochs):
        for step, (batch, index) in enumerate(extract_features(epoch, f"epoch {epoch + 1} of {epochs}")):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(epoch + step / extract_features.steps, epochs)
            loss = torch.zeros((), device=evaluation.resources.device)
            for head in heads:
                features, labels = batch.select(head.feature), batch.labels
                if head.unseen is not None:
                    seen = ~head.unseen[index].to(labels.device)
                    features, labels = features[seen], labels[seen]
                if len(labels) < 2:  # a rest of one has no deviation for a BatchNorm
                    continue
                loss = loss + F.cross_entropy(head.module(features), labels)
            optimizer.zero_grad()
            if loss.requires_grad:
                loss.backward()
                optimizer.step()
    return f"lr {lr:g}, {epochs} epochs of batch {batch_size}, random crops"


def peak_lr(evaluation: Evaluation[LinearProbeConfig]) -> tuple[float, int]:
    """(learning rate, batch size); a batch is as large as the training set at most."""
    _, batch_size, base_lr = evaluation.config.schedule
    batch_size = min(batch_size, len(evaluation.train_labels))
    return scaled_lr(base_lr, batch_size), batch_size


class CroppedFeatures:
    """Features of an exam's training images, cropped at random: one epoch after another, in batches."""

    def __init__(
        self,
        evaluation: Evaluation[LinearProbeConfig],
        backbone: Backbone,
        holds: Feature,
        batch_size: int,
        normed: bool,
    ) -> None:
        config, resources, self.count = evaluation.config, evaluation.resources, len(evaluation.train_labels)
        self.evaluation, self.holds, self.extract_features = (
            evaluation,
            holds,
            feature_extractor(backbone, holds, normed),
        )
        backbone.module.to(resources.device).eval()
        self.loader = evaluation.data.augmented_dataloader(
            RandomCrop(evaluation.data.image_size, CROP),
            max(1, batch_size // resources.ranks[1]),
            config.train_limit,
            config.seed,
            resources.ranks,
        )
        self.steps = len(self.loader)

    def __call__(self, epoch: int, bar: str) -> Iterator[tuple[FeatureBank, Tensor]]:
        """(features and labels of a batch, its images' numbers), on the exam's device."""
        sampler: ShuffledRankSampler = self.loader.sampler  # pyright: ignore[reportAssignmentType]
        sampler.epoch, done, device = epoch, 0, self.evaluation.resources.device
        for batch in tracked(self.loader, bar):
            with torch.no_grad():
                values = self.extract_features(
                    self.evaluation.data.normalize(batch["images"].to(device, non_blocking=True))
                )
            rows = slice(0, self.count - done)  # images that come again to fill up the processes are left out
            wanted = (values.float(), batch["label"], batch["index"])
            values, labels, index = (self.evaluation.resources.whole(part)[rows] for part in wanted)
            done += len(labels)
            yield FeatureBank(values.to(device), labels.to(device), self.holds), index


@torch.no_grad()
def logits_of(head: Head, bank: FeatureBank, rows: Tensor, device: str) -> Tensor:
    """A trained head's logits [m, K] of some of a table's images, on the CPU."""
    head.module.eval()
    return torch.cat([head.module(bank.select(head.feature, some).to(device)).cpu() for some in rows.split(8192)])


def result(
    evaluation: Evaluation[LinearProbeConfig], backbone: Backbone, head: Head, how: str, normed: bool = True
) -> Result:
    """What a trained head says of the test images."""
    bank = evaluation.bank(backbone, [head.feature], "test", normed)
    logits = logits_of(head, bank, torch.arange(len(bank)), evaluation.resources.device)
    return Result(logits.softmax(1), how, head.feature.metadata | {"lr": peak_lr(evaluation)[0]})
