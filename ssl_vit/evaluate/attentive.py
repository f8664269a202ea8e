"""Attentive probe: one learned query reads the tokens of a frozen block (AIM, arXiv:2401.08541, section 4.1).

As in AIM's AttentionPoolingClassifier: BatchNorm over tokens, keys and values by a linear map without bias, no map of
the query or of what it reads, a classifier without bias. How it is trained is ours: AdamW, the rate falling by a cosine
per step. Class token and patches are read alike.

Letters: B images of a batch, S tokens, D width, K classes.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.evaluate.backbones import Backbone
from ssl_vit.evaluate.evaluation import SEEN, Evaluation, Result, schedule_of, shuffled_rows, train_head
from ssl_vit.optim.schedules import cosine

HEADS = 12
"""AIM's attention heads, or the largest number below that divides the width."""


class AttentiveHead(nn.Module):
    """Tokens to class scores."""

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
