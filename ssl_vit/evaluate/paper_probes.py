"""The papers' own probes: what each reads of a backbone, its heads, optimizer and learning rate.

MAE (arXiv:2111.06377, appendix A.1; main_linprobe.py), DINO (arXiv:2104.14294, section 4.1; eval_linear.py), BEiT
(arXiv:2106.08254, section 3.4; run_linear_eval.py) and AIM (arXiv:2401.08541).
Letters: B images of a batch, C channels, H x W pixels, S tokens, D feature channels, K classes.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.utils.lars import LARS
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.data.rng import seeded_generator, seeded_globals
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.linear import MOMENTUM
from ssl_vit.optim.schedules import cosine, warmup_cosine

CROP = (0.08, 1.0)  # area of a crop, as a fraction of the image: all of them
WARMUP = 10 / 90  # MAE's fraction of epochs with a rising learning rate
WIDE = 768  # from this width on DINO reads class token and mean of the last block, below it the last four class tokens
HEADS = 12  # AIM's attention heads, or the largest number below that divides the width


def mae_features(backbone: Backbone, config: LinearProbeConfig) -> list[Feature]:
    """By default the class token of the last block."""
    pool = config.pool or ("cls" if "cls" in backbone.pools else "mean")
    return [backbone.feature(pool, config.layer or "last", config.blocks or 1)]


def dino_features(backbone: Backbone, config: LinearProbeConfig) -> list[Feature]:
    """As DINO's authors read for the encoder's width."""
    wide = backbone.width >= WIDE
    pool = config.pool or ("mean" if "cls" not in backbone.pools else "both" if wide else "cls")
    return [backbone.feature(pool, config.layer or "last", config.blocks or (1 if wide else 4))]


def beit_features(backbone: Backbone, config: LinearProbeConfig) -> list[Feature]:
    """Class token and mean of every block."""
    pool = "both" if "both" in backbone.pools else backbone.pools[-1]
    return [backbone.feature(pool, 1 + block, 1) for block in range(backbone.depth)]


def attentive_features(backbone: Backbone, config: LinearProbeConfig) -> list[Feature]:
    """All tokens of one block, by default the last."""
    return [Feature(backbone.feature(backbone.pools[-1], config.layer or "last", 1).blocks, "attention")]


def read_tokens(backbone: Backbone, feature: Feature, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B S D"]:
    """The normed tokens of an attentive feature's block."""
    return backbone.tokens(images, feature.blocks)[0]


def linear_head(width: int, classes: int, seed: int) -> nn.Linear:
    """A linear map from a feature to the classes: weights N(0, .01), no bias at first; drawn by the seed."""
    linear: nn.Linear = nn.utils.skip_init(nn.Linear, width, classes)  # pyright: ignore[reportAssignmentType]
    nn.init.normal_(linear.weight, std=0.01, generator=seeded_generator(torch.device("cpu"), seed))
    nn.init.zeros_(linear.bias)
    return linear


def mae_head(width: int, classes: int, seed: int) -> nn.Sequential:
    """BatchNorm without parameters and a linear map."""
    return nn.Sequential(nn.BatchNorm1d(width, affine=False, eps=1e-6), linear_head(width, classes, seed))


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


def attentive_head(width: int, classes: int, seed: int) -> AttentiveHead:
    """Drawn by the seed; PyTorch's own generator is not moved."""
    with seeded_globals(seed, torch.device("cpu")):
        return AttentiveHead(width, classes)


def lars(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """SGD with momentum whose steps are scaled, for each weight matrix, to its norm (arXiv:1708.03888; MAE's lars.py).

    lightly's LARS scales nothing that has no weight decay, which MAE's probe has not: 1e-30 of it moves no weight.
    """
    parameters = list(parameters)
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == scaled] for scaled in (True, False))
    groups = [{"params": matrices, "weight_decay": 1e-30}, {"params": vectors, "weight_decay": 0.0}]
    return LARS(groups, lr, momentum=MOMENTUM, trust_coefficient=0.001, eps=0.0)


class PaperProbe(NamedTuple):
    """What a paper's probe reads, and how its heads, one for each feature, are trained."""

    name: str
    features: Callable[[Backbone, LinearProbeConfig], list[Feature]]
    head: Callable[[int, int, int], nn.Module]  # (width of the feature, classes, seed)
    optimizer: Callable[..., torch.optim.Optimizer]  # (parameters, lr)
    rate: Callable[[float], float] = partial(cosine, start=1.0, end=0.0)
    """Fraction of the run done -> factor on the peak learning rate."""
    by_epoch: bool = False  # whether the rate is constant within an epoch
    extractor: Callable[[Backbone, Feature], Callable[[Tensor], Tensor]] = Backbone.extractor


PAPER_PROBES = {
    "mae": PaperProbe(
        *("BatchNorm and linear, LARS", mae_features, mae_head, lars),
        rate=partial(warmup_cosine, total=1.0, peak=1.0, final=0.0, warmup=WARMUP),
    ),
    "dino": PaperProbe(
        *("linear, SGD", dino_features, linear_head, partial(torch.optim.SGD, momentum=MOMENTUM)), by_epoch=True
    ),
    "beit": PaperProbe(
        *("linear on each block, AdamW", beit_features, linear_head, partial(torch.optim.AdamW, weight_decay=1e-4)),
        by_epoch=True,
        extractor=partial(Backbone.extractor, normed=False),
    ),
    "attentive": PaperProbe(
        *("attentive probe, AdamW", attentive_features, attentive_head, torch.optim.AdamW),
        extractor=partial(partial, read_tokens),
    ),
}
