"""Linear probes on cached features: logistic regression to its optimum, and a grid of heads trained together.

The grid is learning rates x features, as DINOv2's (arXiv:2304.07193); held-out training images choose.
Letters: n training images, m test images, H heads, K classes, D feature channels.
"""

import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.evaluation import SEEN, Evaluation, Result, schedule_of, shuffled_rows, train_head
from ssl_vit.evaluate.features import FeatureBank, held_out_folds
from ssl_vit.optim.param_groups import scaled_lr
from ssl_vit.optim.schedules import cosine

ITERATIONS = 1000  # of scikit-learn's L-BFGS, at most
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0]
"""Per 256 images: DINOv2's thirteen learning rates (dinov2/eval/linear.py) times ten, for standardized features."""
BLOCKS = (1, 4)  # last blocks that the grid reads, as DINOv2's
MOMENTUM = 0.9
ROWS = 8192  # images at a time where all are passed through
EPSILON = 1e-6  # added to a variance, as in MAE's BatchNorm: a channel that never changes becomes 0


def evaluate_logreg(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """scikit-learn's logistic regression, C = 1, on one feature; with layer=best held-out images choose the block."""
    scores, best, _ = evaluation.best_of(backbone, lambda *given: [logistic_scores(*given)])
    return Result(scores, "logistic regression, C=1", best.metadata)


def logistic_scores(
    train: Float[Tensor, "n D"], labels: Int64[Tensor, " n"], test: Float[Tensor, "m D"]
) -> Float[Tensor, "m K"]:
    """Class probabilities of the test images by scikit-learn, C = 1; columns are the classes 0 .. max(labels).

    The mean is taken off, which moves the unpenalized intercept alone: L-BFGS takes 217 iterations, not 1,256.
    """
    from sklearn.linear_model import LogisticRegression

    center = train.mean(0)
    with warnings.catch_warnings():  # the last digits of the optimum decide no image
        warnings.filterwarnings("ignore", message=".*lbfgs failed to converge.*")
        model = LogisticRegression(max_iter=ITERATIONS).fit((train - center).numpy(), labels.numpy())
    scores = torch.zeros(len(test), int(labels.max()) + 1)
    scores[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba((test - center).numpy())).float()
    return scores


class Heads(NamedTuple):
    """Linear heads that read one feature: logits = features @ weight + bias."""

    feature: Feature
    weight: Float[Tensor, "H K D"]
    bias: Float[Tensor, "H K"]

    def logits(self, bank: FeatureBank, rows: Tensor) -> Float[Tensor, "m H K"]:
        """Of some of a bank's images."""
        weight, bias = self.weight.flatten(0, 1), self.bias.flatten()
        values = (bank.select(self.feature, some).to(weight.device) for some in rows.split(ROWS))
        return torch.cat([F.linear(some, weight, bias) for some in values]).unflatten(1, self.bias.shape)


class Training(NamedTuple):
    """How the grid's heads are trained; the seed is of the order of the images and of what is held out."""

    classes: int
    epochs: int
    batch_size: int
    seed: int = 0
    device: str = "cpu"


def evaluate_grid(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """Linear heads of every learning rate on every feature, trained together; held-out images choose one."""
    features = grid_features(evaluation.config, backbone)
    train, test = evaluation.banks(backbone, features)
    epochs, batch_size, _ = schedule_of(evaluation, SEEN)
    training = Training(evaluation.classes, epochs, batch_size, evaluation.config.seed, evaluation.resources.device)
    winner, rate = best_head(train, features, training)
    probabilities = winner.logits(test, torch.arange(len(test.labels)))[:, 0].softmax(1).cpu()
    heads = len(features) * len(RATES)
    how = f"best of {heads} linear heads on held-out images, SGD, {epochs} epochs of batch {batch_size}"
    return Result(probabilities, how, winner.feature.metadata | {"lr": rate})


def grid_features(config: LinearProbeConfig, backbone: Backbone) -> list[Feature]:
    """Last 1 and 4 blocks x class token, mean, both, as far as the backbone has them and the settings leave it open."""
    pools = [config.pool] if config.pool else backbone.pools
    counts = [config.blocks] if config.blocks else BLOCKS
    found = [backbone.feature(pool, config.layer or "last", count) for count in counts for pool in pools]
    return list(dict.fromkeys(found))


def best_head(bank: FeatureBank, features: list[Feature], training: Training) -> tuple[Heads, float]:
    """The head that classifies held-out images best, trained anew on all images; and its rate per 256 images."""
    rates = [scaled_lr(rate, training.batch_size) for rate in RATES]
    hits = torch.zeros(len(features), len(rates))
    for held_out in held_out_folds(bank.labels, training.seed):
        rows = held_out.nonzero()[:, 0]
        for number, heads in enumerate(train_heads(bank, features, rates, (~held_out).nonzero()[:, 0], training)):
            hits[number] += (heads.logits(bank, rows).argmax(2).cpu() == bank.labels[rows, None]).sum(0)
    number, which = divmod(int(hits.argmax()), len(rates))
    (winner,) = train_heads(bank, [features[number]], [rates[which]], torch.arange(len(bank.labels)), training)
    return winner, RATES[which]


def train_heads(
    bank: FeatureBank, features: list[Feature], rates: list[float], rows: Int64[Tensor, " m"], training: Training
) -> list[Heads]:
    """For each feature a head for each learning rate, all trained together on some of a bank's images.

    SGD with momentum .9 from zero weights, the rate falling by a cosine to 0. Without weight decay its step is linear
    in the gradient: a rate per head is a weight on its loss, and one optimizer steps all on sum_h rate_h * CE_h.
    Features are standardized by the rows' mean and std, which trained heads take into their weights.
    """
    classes, epochs, device, H = training.classes, training.epochs, training.device, len(rates)
    mean, std = (figure.to(device) for figure in standard(bank, rows))
    means, stds = ([bank.holds.select(figure, feature) for feature in features] for figure in (mean, std))
    weights = [nn.Parameter(torch.zeros(H * classes, len(some), device=device)) for some in means]
    biases = [nn.Parameter(torch.zeros(H * classes, device=device)) for _ in means]
    scale, steps = torch.tensor(rates, device=device), epochs * math.ceil(len(rows) / training.batch_size)

    def loss_of(some: Tensor) -> Tensor:
        values, labels = (bank.values[some].to(device) - mean) / std, bank.labels[some].to(device).repeat_interleave(H)
        loss = torch.zeros((), device=device)
        for feature, weight, bias in zip(features, weights, biases, strict=True):
            logits = F.linear(bank.holds.select(values, feature), weight, bias).view(-1, classes)  # [B * H, K]
            loss = loss + (scale * F.cross_entropy(logits, labels, reduction="none").view(-1, H).mean(0)).sum()
        return loss

    batches = shuffled_rows(rows, training.seed, epochs, training.batch_size)
    optimizer = torch.optim.SGD([*weights, *biases], lr=1.0, momentum=MOMENTUM)
    train_head(optimizer, batches, loss_of, lambda step: cosine(step / steps, 1.0, 0.0))
    trained = []
    for feature, weight, bias, center, spread in zip(features, weights, biases, means, stds, strict=True):
        raw = weight.detach() * (1 / spread)
        shift = bias.detach() - raw @ center
        trained.append(Heads(feature, raw.unflatten(0, (H, classes)), shift.unflatten(0, (H, classes))))
    return trained


def standard(bank: FeatureBank, rows: Int64[Tensor, " m"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and std of each channel over some of a bank's images, in two passes of ROWS at a time."""
    mean = torch.stack([bank.values[some].sum(0, dtype=torch.float64) for some in rows.split(ROWS)]).sum(0) / len(rows)
    center = mean.float()
    squares = [(bank.values[some] - center).square().sum(0, dtype=torch.float64) for some in rows.split(ROWS)]
    return center, (torch.stack(squares).sum(0) / len(rows) + EPSILON).sqrt().float()
