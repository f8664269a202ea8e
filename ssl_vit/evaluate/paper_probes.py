"""The papers' own linear probes, on random crops that pass through the frozen encoder anew in every epoch.

MAE (arXiv:2111.06377, appendix A.1; main_linprobe.py), DINO (arXiv:2104.14294, section 4.1; eval_linear.py) and BEiT
(arXiv:2106.08254, section 3.4; run_linear_eval.py). The last epoch is reported, never the best one on test pictures.

Letters: B pictures of a batch, n training pictures, D feature channels, K classes.
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
from ssl_vit.data.loader import ShuffledShare
from ssl_vit.data.rng import seeded_generator, stratified
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.evaluate.backbones import Feature, Subject
from ssl_vit.evaluate.evaluation import Exam, Verdict
from ssl_vit.evaluate.features import Table, cover, describer, tracked
from ssl_vit.evaluate.linear_heads import MOMENTUM
from ssl_vit.optim.param_groups import scaled_lr
from ssl_vit.optim.schedules import cosine, warmup_cosine

CROP = (0.08, 1.0)
"""Area of a crop, as a share of the picture: all three."""
WARMUP = 10 / 90
"""MAE's share of epochs with a rising learning rate."""
WIDE = 768
"""From this width on DINO reads class token and mean of the last block, below it the class tokens of the last four."""


@dataclass
class Head:
    """A classifier of one feature, and the training pictures that it may not see."""

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


def judge_mae(exam: Exam[LinearProbeConfig], subject: Subject) -> Verdict:
    """BatchNorm without parameters and a linear map, by LARS; by default on the class token of the last block."""
    config = exam.config
    pool = config.pool or ("cls" if "cls" in subject.pools else "mean")
    feature = subject.feature(pool, config.layer or "last", config.blocks or 1)
    linear = linear_head(exam, subject, feature)
    width = linear.weight.shape[1]
    head = Head(feature, nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear))

    def rate(epoch: float, epochs: int) -> float:
        return warmup_cosine(epoch, epochs, peak=1.0, final=0.0, warmup=WARMUP * epochs)

    how = train_live(exam, subject, [head], LARS, rate)
    return verdict(exam, subject, head, f"BatchNorm and linear, LARS, {how}")


def judge_dino(exam: Exam[LinearProbeConfig], subject: Subject) -> Verdict:
    """A linear map by SGD, the rate falling by epochs; reads as DINO's authors do for the encoder's width."""
    config, wide = exam.config, subject.width >= WIDE
    pool = config.pool or ("mean" if "cls" not in subject.pools else "both" if wide else "cls")
    feature = subject.feature(pool, config.layer or "last", config.blocks or (1 if wide else 4))
    head = Head(feature, linear_head(exam, subject, feature))

    def sgd(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr, momentum=MOMENTUM)

    how = train_live(exam, subject, [head], sgd, by_epoch)
    return verdict(exam, subject, head, f"linear, SGD, {how}")


def judge_beit(exam: Exam[LinearProbeConfig], subject: Subject) -> Verdict:
    """A linear map for each block, on class token and mean before the final norm; their losses are summed.

    In one pass two maps are trained for each block: one that never sees a held-out fifth of the training pictures,
    which chooses the block, and one that sees all, which is reported. Neither moves the other.
    """
    pool = "both" if "both" in subject.pools else subject.pools[-1]
    features = [subject.feature(pool, 1 + block, 1) for block in range(subject.depth)]
    unseen, fifth = torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
    if len(features) > 1:
        labels = exam.train_labels.numpy()
        fifth = torch.from_numpy(stratified(labels, max(1, len(labels) // 5), exam.config.seed))
        index = torch.from_numpy(exam.data.eval_index("train", exam.config.train_limit, exam.config.seed))
        unseen = torch.zeros(int(index.max()) + 1, dtype=torch.bool)
        unseen[index[fifth]] = True
    reported = [Head(feature, linear_head(exam, subject, feature)) for feature in features]
    choosers = [Head(f, linear_head(exam, subject, f), unseen) for f in features] if len(features) > 1 else []

    def adamw(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr, weight_decay=1e-4)

    how = train_live(exam, subject, [*reported, *choosers], adamw, by_epoch, normed=False)
    chosen = 0
    if choosers:
        table = exam.table(subject, features, "train", normed=False)
        hits = [
            int((logits_of(head, table, fifth, exam.place.device).argmax(1) == table.labels[fifth]).sum())
            for head in choosers
        ]
        chosen = max(range(len(hits)), key=lambda block: hits[block])
    return verdict(exam, subject, reported[chosen], f"linear on each block, AdamW, {how}", normed=False)


def by_epoch(epoch: float, epochs: int) -> float:
    """Half a cosine from 1 to 0, constant within an epoch."""
    return cosine(math.floor(epoch) / epochs, 1.0, 0.0)


def linear_head(exam: Exam[Any], subject: Subject, feature: Feature) -> nn.Linear:
    """A linear map from a feature to the classes: weights N(0, .01), no bias at first; drawn by the seed."""
    halves = 2 if feature.pool == "both" else 1
    linear = nn.Linear(halves * len(feature.blocks) * subject.width, exam.classes)
    nn.init.normal_(linear.weight, std=0.01, generator=seeded_generator(torch.device("cpu"), exam.config.seed))
    nn.init.zeros_(linear.bias)
    return linear.to(exam.place.device)


def train_live(
    exam: Exam[LinearProbeConfig],
    subject: Subject,
    heads: Sequence[Head],
    optimizer_of: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer],
    rate: Callable[[float, int], float],
    normed: bool = True,
) -> str:
    """Train heads on random crops, all of them by one optimiser on the sum of their losses; says how, in a few words.

    Every process describes its share of a batch and trains the same heads on the whole of it.

    Args:
        rate: (epochs done, with fractions; epochs) -> factor on the peak learning rate.
    """
    epochs, (lr, batch_size) = exam.config.schedule[0], peak_lr(exam)
    optimizer = optimizer_of([p for head in heads for p in head.module.parameters()], lr)
    describe = Described(exam, subject, cover([head.feature for head in heads]), batch_size, normed)
    for epoch in range(epochs):
        for step, (batch, index) in enumerate(describe(epoch, f"epoch {epoch + 1} of {epochs}")):
            for group in optimizer.param_groups:
                group["lr"] = lr * rate(epoch + step / describe.steps, epochs)
            loss = torch.zeros((), device=exam.place.device)
            for head in heads:
                features, labels = batch.part(head.feature), batch.labels
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


def peak_lr(exam: Exam[LinearProbeConfig]) -> tuple[float, int]:
    """(learning rate, batch size); a batch is as large as the training set at most."""
    _, batch_size, base_lr = exam.config.schedule
    batch_size = min(batch_size, len(exam.train_labels))
    return scaled_lr(base_lr, batch_size), batch_size


class Described:
    """Features of an exam's training pictures, cropped at random: one epoch after another, in batches."""

    def __init__(
        self, exam: Exam[LinearProbeConfig], subject: Subject, holds: Feature, batch_size: int, normed: bool
    ) -> None:
        config, place, self.count = exam.config, exam.place, len(exam.train_labels)
        self.exam, self.holds, self.describe = exam, holds, describer(subject, holds, normed)
        subject.module.to(place.device).eval()
        self.loader = exam.data.augmented_dataloader(
            RandomCrop(exam.data.image_size, CROP),
            max(1, batch_size // place.share[1]),
            config.train_limit,
            config.seed,
            place.share,
        )
        self.steps = len(self.loader)

    def __call__(self, epoch: int, bar: str) -> Iterator[tuple[Table, Tensor]]:
        """(features and labels of a batch, its pictures' numbers), on the exam's device."""
        sampler: ShuffledShare = self.loader.sampler  # pyright: ignore[reportAssignmentType]
        sampler.epoch, done, device = epoch, 0, self.exam.place.device
        for batch in tracked(self.loader, bar):
            with torch.no_grad():
                values = self.describe(self.exam.data.normalize(batch["images"].to(device, non_blocking=True)))
            rows = slice(0, self.count - done)  # pictures that come again to fill up the processes are left out
            wanted = (values.float(), batch["label"], batch["index"])
            values, labels, index = (self.exam.place.whole(part)[rows] for part in wanted)
            done += len(labels)
            yield Table(values.to(device), labels.to(device), self.holds), index


@torch.no_grad()
def logits_of(head: Head, table: Table, rows: Tensor, device: str) -> Tensor:
    """A trained head's logits [m, K] of some of a table's pictures, on the CPU."""
    head.module.eval()
    return torch.cat([head.module(table.part(head.feature, some).to(device)).cpu() for some in rows.split(8192)])


def verdict(exam: Exam[LinearProbeConfig], subject: Subject, head: Head, how: str, normed: bool = True) -> Verdict:
    """What a trained head says of the test pictures."""
    table = exam.table(subject, [head.feature], "test", normed)
    logits = logits_of(head, table, torch.arange(len(table)), exam.place.device)
    return Verdict(logits.softmax(1), how, head.feature.facts | {"lr": peak_lr(exam)[0]})
