"""Linear probes on cached features: logistic regression to its optimum, and a grid of heads trained together.

The grid is learning rates x features, as DINOv2's (arXiv:2304.07193); held-out training images choose.
Letters: n training images, m test images, H heads, K classes, D feature channels.
"""

import math
import warnings
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.evaluation import SEEN, Evaluation, Result, schedule_of, shuffled_rows, train_head
from ssl_vit.evaluate.features import FeatureBank, held_out_folds, tracked, waiting
from ssl_vit.optim.param_groups import scaled_lr
from ssl_vit.optim.schedules import cosine

ITERATIONS = 1000  # of scikit-learn's L-BFGS, at most
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0]
"""Per 256 images: DINOv2's thirteen learning rates (dinov2/eval/linear.py) times ten, for standardized features."""
BLOCKS = (1, 4)  # last blocks that the grid reads, as DINOv2's
MOMENTUM = 0.9
ROWS = 8192  # images at a time where all are passed through
EPSILON = 1e-6  # added to a variance, as in MAE's BatchNorm: a channel that never changes becomes 0


def evaluate_auto(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """By logistic regression or by the grid, as the number of training images says."""
    chosen, why = evaluation.config.chosen(len(evaluation.train_labels))
    result = (evaluate_logreg if chosen == "logreg" else evaluate_grid)(evaluation, backbone)
    return replace(result, how=f"{result.how} (auto took {chosen}: {why})")


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
    bar: str = ""  # begins the lines of its progress

    def named(self, work: str) -> "Training":
        """The same, for one of several pieces of work."""
        return self._replace(bar=self.bar and f"{self.bar}, {work}")


def evaluate_grid(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """Linear heads of every learning rate on every feature, trained together; held-out images choose one."""
    features = grid_features(evaluation.config, backbone)
    train, test = evaluation.banks(backbone, features)
    epochs, batch_size, _ = schedule_of(evaluation, SEEN)
    device, bar = evaluation.resources.device, evaluation.bar("heads")
    training = Training(evaluation.classes, epochs, batch_size, evaluation.config.seed, device, bar)
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
    for fold, held_out in enumerate(folds := [*held_out_folds(bank.labels, training.seed)], 1):
        rows, own = held_out.nonzero()[:, 0], training.named(f"choosing, {fold} of {len(folds)}")
        for number, heads in enumerate(train_heads(bank, features, rates, (~held_out).nonzero()[:, 0], own)):
            hits[number] += (heads.logits(bank, rows).argmax(2).cpu() == bank.labels[rows, None]).sum(0)
    number, which = divmod(int(hits.argmax()), len(rates))
    training = training.named("the chosen one")
    (winner,) = train_heads(bank, [features[number]], [rates[which]], torch.arange(len(bank.labels)), training)
    return winner, RATES[which]


def train_heads(
    bank: FeatureBank, features: list[Feature], rates: list[float], rows: Int64[Tensor, " m"], training: Training
) -> list[Heads]:
    """For each feature a head for each learning rate, all trained together on some of a bank's images.

    SGD with momentum .9 from zero weights, the rate falling by a cosine to 0. Without weight decay its step is linear
    in the gradient: a rate per head is a weight on its loss, and one optimizer steps all on sum_h rate_h * CE_h.
    Features are standardized by the rows' mean and std, which trained heads take into their weights. Of more channels
    than images, a basis of what the images span is read instead: from zero, no step leads a weight out of it.
    """
    classes, epochs, device, H = training.classes, training.epochs, training.device, len(rates)
    mean, std = (figure.to(device) for figure in standard(bank, rows))
    means, stds = ([bank.holds.select(figure, feature) for feature in features] for figure in (mean, std))
    with waiting(training.bar):
        spans = [
            spanned(bank, rows, feature, *known) if 2 * len(rows) < min(len(known[0]), epochs * H * classes) else None
            for feature, *known in zip(features, means, stds, strict=True)
        ]  # which takes 4 n^2 D operations, and a training 4 n D for each epoch and row of the weights
    widths = [len(some) if span is None else span[0].shape[1] for some, span in zip(means, spans, strict=True)]
    weights = [nn.Parameter(torch.zeros(H * classes, width, device=device)) for width in widths]
    biases = [nn.Parameter(torch.zeros(H * classes, device=device)) for _ in means]
    scale, steps = torch.tensor(rates, device=device), epochs * math.ceil(len(rows) / training.batch_size)

    def loss_of(some: Tensor) -> Tensor:
        values = (bank.values[some].to(device) - mean) / std if None in spans else mean
        labels, loss = bank.labels[some].to(device).repeat_interleave(H), torch.zeros((), device=device)
        for feature, span, weight, bias in zip(features, spans, weights, biases, strict=True):
            read = bank.holds.select(values, feature) if span is None else span[1][some].to(device)
            logits = F.linear(read, weight, bias).view(-1, classes)  # [B * H, K]
            loss = loss + (scale * F.cross_entropy(logits, labels, reduction="none").view(-1, H).mean(0)).sum()
        return loss

    batches = [*shuffled_rows(rows, training.seed, epochs, training.batch_size)]
    optimizer = torch.optim.SGD([*weights, *biases], lr=1.0, momentum=MOMENTUM)
    train_head(optimizer, tracked(batches, training.bar), loss_of, lambda step: cosine(step / steps, 1.0, 0.0))
    trained = []
    for feature, span, weight, bias, center, spread in zip(features, spans, weights, biases, means, stds, strict=True):
        whole = weight.detach() if span is None else weight.detach() @ span[0].T
        raw = whole * (1 / spread)
        shift = bias.detach() - raw @ center
        trained.append(Heads(feature, raw.unflatten(0, (H, classes)), shift.unflatten(0, (H, classes))))
    return trained


def spanned(
    bank: FeatureBank, rows: Int64[Tensor, " n"], feature: Feature, mean: Float[Tensor, " D"], std: Float[Tensor, " D"]
) -> tuple[Float[Tensor, "D n"], Float[Tensor, "_ n"]]:
    """An orthonormal basis of what some of a bank's images span, standardized, and these in it, in the bank's order."""
    values = (bank.select(feature, rows).to(mean.device) - mean) / std
    basis, coordinates = torch.linalg.qr(values.T)
    images = coordinates.new_zeros(len(bank.labels), len(rows))
    images[rows.to(images.device)] = coordinates.T
    return basis, images


def standard(bank: FeatureBank, rows: Int64[Tensor, " m"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and std of each channel over some of a bank's images, in two passes of ROWS at a time."""
    mean = torch.stack([bank.values[some].sum(0, dtype=torch.float64) for some in rows.split(ROWS)]).sum(0) / len(rows)
    center = mean.float()
    squares = [(bank.values[some] - center).square().sum(0, dtype=torch.float64) for some in rows.split(ROWS)]
    return center, (torch.stack(squares).sum(0) / len(rows) + EPSILON).sqrt().float()
