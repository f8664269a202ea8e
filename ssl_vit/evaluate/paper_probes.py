"""The papers' own probes. Of MAE, DINO and BEiT on random crops, encoded anew in every epoch; AIM's on cached tokens.

MAE (arXiv:2111.06377, appendix A.1; main_linprobe.py), DINO (arXiv:2104.14294, section 4.1; eval_linear.py), BEiT
(arXiv:2106.08254, section 3.4; run_linear_eval.py) and AIM (arXiv:2401.08541). The last epoch is reported.
Letters: B images of a batch, n training images, S tokens, D feature channels, K classes.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lightly.utils.lars import LARS
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.data.rng import seeded_generator, stratified
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.evaluation import SEEN, Evaluation, Result, schedule_of, shuffled_rows, train_head
from ssl_vit.evaluate.features import FeatureBank, cover, extract_batch, tracked
from ssl_vit.evaluate.linear import MOMENTUM, ROWS
from ssl_vit.optim.schedules import cosine, warmup_cosine

CROP = (0.08, 1.0)  # area of a crop, as a fraction of the image: all three
WARMUP = 10 / 90  # MAE's fraction of epochs with a rising learning rate
WIDE = 768  # from this width on DINO reads class token and mean of the last block, below it the last four class tokens
HEADS = 12  # AIM's attention heads, or the largest number below that divides the width


@dataclass
class Head:
    """A classifier of one feature, and the training images, by number in their source, that it may not see."""

    feature: Feature
    module: nn.Module
    unseen: Bool[Tensor, " n"] | None = None


def lars(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """SGD with momentum whose steps are scaled, for each weight matrix, to its norm (arXiv:1708.03888; MAE's lars.py).

    lightly's LARS scales nothing that has no weight decay, which MAE's probe has not: 1e-30 of it moves no weight.
    """
    parameters = list(parameters)
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == scaled] for scaled in (True, False))
    groups = [{"params": matrices, "weight_decay": 1e-30}, {"params": vectors, "weight_decay": 0.0}]
    return LARS(groups, lr, momentum=MOMENTUM, trust_coefficient=0.001, eps=0.0)


def evaluate_mae(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """BatchNorm without parameters and a linear map, by LARS; by default on the class token of the last block."""
    config = evaluation.config
    pool = config.pool or ("cls" if "cls" in backbone.pools else "mean")
    head = linear_head(evaluation, backbone, backbone.feature(pool, config.layer or "last", config.blocks or 1))
    width = len(head.feature.vectors) * backbone.width
    norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
    head.module = nn.Sequential(norm, head.module).to(evaluation.resources.device)
    how = train_live(evaluation, backbone, [head], lars, by_step)
    return result(evaluation, backbone, head, f"BatchNorm and linear, LARS, {how}")


def evaluate_dino(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """A linear map by SGD, the rate falling by epochs; reads as DINO's authors do for the encoder's width."""
    config, wide = evaluation.config, backbone.width >= WIDE
    pool = config.pool or ("mean" if "cls" not in backbone.pools else "both" if wide else "cls")
    feature = backbone.feature(pool, config.layer or "last", config.blocks or (1 if wide else 4))
    head = linear_head(evaluation, backbone, feature)
    how = train_live(evaluation, backbone, [head], partial(torch.optim.SGD, momentum=MOMENTUM), by_epoch)
    return result(evaluation, backbone, head, f"linear, SGD, {how}")


def evaluate_beit(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """Two linear maps for each block, before the final norm; one never sees a fifth of the images and chooses by it."""
    pool = "both" if "both" in backbone.pools else backbone.pools[-1]
    features = [backbone.feature(pool, 1 + block, 1) for block in range(backbone.depth)]
    config, labels = evaluation.config, evaluation.train_labels.numpy()
    fifth = torch.from_numpy(stratified(labels, max(1, len(labels) // 5), config.seed))
    index = torch.from_numpy(evaluation.data.eval_index("train", config.train_limit, config.seed))
    unseen = torch.zeros(int(index.max()) + 1, dtype=torch.bool)
    unseen[index[fifth]] = True
    reported = [linear_head(evaluation, backbone, feature) for feature in features]
    choosers = [linear_head(evaluation, backbone, f, unseen) for f in features] if len(features) > 1 else []
    adamw = partial(torch.optim.AdamW, weight_decay=1e-4)
    how = train_live(evaluation, backbone, [*reported, *choosers], adamw, by_epoch, normed=False)
    chosen = 0
    if choosers:
        bank = evaluation.bank(backbone, features, "train", normed=False)
        guesses = torch.stack([logits_of(head, bank, fifth).argmax(1) for head in choosers])
        chosen = int((guesses == bank.labels[fifth]).sum(1).argmax())
    return result(evaluation, backbone, reported[chosen], f"linear on each block, AdamW, {how}", normed=False)


def by_step(epoch: float, epochs: int) -> float:
    """From 0 up to 1 over the first ninth of the epochs, then half a cosine down to 0, moving at every step."""
    return warmup_cosine(epoch, epochs, peak=1.0, final=0.0, warmup=WARMUP * epochs)


def by_epoch(epoch: float, epochs: int) -> float:
    """Half a cosine from 1 to 0, constant within an epoch."""
    return cosine(math.floor(epoch) / epochs, 1.0, 0.0)


def linear_head(
    evaluation: Evaluation[Any], backbone: Backbone, feature: Feature, unseen: Bool[Tensor, " n"] | None = None
) -> Head:
    """A linear map from a feature to the classes: weights N(0, .01), no bias at first; drawn by the seed."""
    linear = nn.Linear(len(feature.vectors) * backbone.width, evaluation.classes)
    nn.init.normal_(linear.weight, std=0.01, generator=seeded_generator(torch.device("cpu"), evaluation.config.seed))
    nn.init.zeros_(linear.bias)
    return Head(feature, linear.to(evaluation.resources.device), unseen)


def train_live(
    evaluation: Evaluation[LinearProbeConfig],
    backbone: Backbone,
    heads: Sequence[Head],
    optimizer_of: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer],
    rate: Callable[[float, int], float],
    normed: bool = True,
) -> str:
    """Train heads on random crops of all ranks, on the sum of their losses; returns how, for a protocol's name.

    rate: (epochs done, with fractions; epochs) -> factor on the peak learning rate.
    """
    config, data, resources = evaluation.config, evaluation.data, evaluation.resources
    epochs, batch_size, lr = schedule_of(evaluation)
    crop, own_batch = RandomCrop(data.image_size, CROP), max(1, batch_size // resources.ranks[1])
    loader = data.augmented_dataloader(crop, own_batch, config.train_limit, config.seed, resources.ranks)
    holds, steps = cover([head.feature for head in heads]), len(loader)
    extractor = backbone.extractor(holds, normed)

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for epoch in range(epochs):
            loader.sampler.epoch = epoch  # pyright: ignore[reportAttributeAccessIssue]
            left = len(evaluation.train_labels)
            for batch in tracked(loader, f"epoch {epoch + 1} of {epochs}"):
                own = extract_batch(extractor, data, batch["images"], resources.device), batch["label"], batch["index"]
                # Images that come again, to fill up the ranks, are left off.
                values, labels, index = (resources.from_all_ranks(rows)[:left] for rows in own)
                left -= len(labels)
                yield values.to(resources.device), labels.to(resources.device), index

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        values, labels, index = batch
        loss = torch.zeros((), device=resources.device)
        for head in heads:
            seen = slice(None) if head.unseen is None else ~head.unseen[index].to(labels.device)
            if len(labels[seen]) > 1:  # one image has no std for a BatchNorm
                loss = loss + F.cross_entropy(head.module(holds.select(values, head.feature)[seen]), labels[seen])
        return loss

    optimizer = optimizer_of([p for head in heads for p in head.module.parameters()], lr)
    train_head(optimizer, batches(), loss_of, lambda step: rate(step // steps + step % steps / steps, epochs))
    return f"lr {lr:g}, {epochs} epochs of batch {batch_size}, random crops"


@torch.no_grad()
def logits_of(head: Head, bank: FeatureBank, rows: Tensor) -> Tensor:
    """A trained head's logits [m, K] of some of a bank's images, on the CPU."""
    module, device = head.module.eval(), next(head.module.parameters()).device
    return torch.cat([module(bank.select(head.feature, some).to(device)).cpu() for some in rows.split(ROWS)])


def result(
    evaluation: Evaluation[LinearProbeConfig], backbone: Backbone, head: Head, how: str, normed: bool = True
) -> Result:
    """What a trained head predicts of the test images."""
    bank = evaluation.bank(backbone, [head.feature], "test", normed)
    probabilities = logits_of(head, bank, torch.arange(len(bank.labels))).softmax(1)
    return Result(probabilities, how, head.feature.metadata | {"lr": schedule_of(evaluation)[2]})


class AttentiveHead(nn.Module):
    """Tokens to class scores: one learned query reads class token and patches alike (AIM, section 4.1).

    As AIM's AttentionPoolingClassifier, without biases and without a map of the query; how it is trained is ours.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.heads = max(count for count in range(1, HEADS + 1) if width % count == 0)
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.query = nn.Parameter(torch.randn(width) * 0.02)
        self.classifier = nn.Linear(width, classes, bias=False)

    def forward(self, tokens: Float[Tensor, "B S D"]) -> Float[Tensor, "B K"]:
        tokens = self.norm(tokens.transpose(1, 2)).transpose(1, 2)
        keys, values = (read(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for read in (self.key, self.value))
        query = self.query.view(self.heads, 1, -1).expand(len(tokens), -1, -1, -1)  # [B, heads, 1, D / heads]
        return self.classifier(F.scaled_dot_product_attention(query, keys, values).flatten(1))


def evaluate_attentive(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """An attentive head on the normed tokens of one block, by default the last; tokens are kept in 16 bits."""
    config, device = evaluation.config, evaluation.resources.device
    (block,) = backbone.feature(backbone.pools[-1], config.layer or "last", 1).blocks

    def tokens_of(images: Tensor) -> Tensor:
        return backbone.tokens(images, [block])[0].half()

    (train, labels), (test, _) = (evaluation.extract(tokens_of, split) for split in ("train", "test"))
    epochs, batch_size, lr = schedule_of(evaluation, SEEN)
    steps = epochs * math.ceil(len(train) / batch_size)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        head = AttentiveHead(train.shape[2], evaluation.classes).to(device)

    def loss_of(rows: Tensor) -> Tensor:
        return F.cross_entropy(head(train[rows].to(device).float()), labels[rows].to(device))

    batches = shuffled_rows(torch.arange(len(train)), config.seed, epochs, batch_size)
    optimizer = torch.optim.AdamW(head.parameters(), lr)
    train_head(optimizer, batches, loss_of, lambda step: cosine(step / steps, 1.0, 0.0))
    head.eval()
    with torch.no_grad():
        logits = torch.cat([head(some.to(device).float()).cpu() for some in test.split(batch_size)])
    how = f"attentive probe of {head.heads} heads, AdamW, lr {lr:g}, {epochs} epochs of batch {batch_size}"
    return Result(logits.softmax(1), how, {"blocks": [1 + block], "pool": "attention", "lr": lr})
