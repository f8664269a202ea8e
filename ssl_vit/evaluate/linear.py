"""Linear probes on cached features: a grid of heads trained together, and logistic regression to its optimum.

Whatever is chosen is chosen on held-out training images; the winner is then trained on all of them, and the test
images are used once.

Letters: n training images, m test images, D feature channels, K classes.
"""

import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.evaluation import SEEN, Evaluation, Result, require_finite, schedule_of
from ssl_vit.evaluate.features import FeatureBank, held_out_folds
from ssl_vit.evaluate.linear_heads import Heads, Training, train_heads
from ssl_vit.optim.param_groups import scaled_lr

ITERATIONS = 1000
"""Of scikit-learn's L-BFGS, at most."""
RATES = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0]
"""Per 256 images: DINOv2's thirteen learning rates (dinov2/eval/linear.py) times ten, for standardized features."""
BLOCKS = (1, 4)
"""Last blocks that the grid reads, as DINOv2's."""


def evaluate_grid(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """Linear heads of every learning rate on every feature, trained together; held-out images choose one."""
    features = grid_features(evaluation.config, backbone)
    train, test = evaluation.banks(backbone, features)
    epochs, batch_size, _ = schedule_of(evaluation, SEEN)
    training = Training(evaluation.classes, epochs, batch_size, evaluation.config.seed, evaluation.resources.device)
    winner, rate = best_head(train, features, training)
    probabilities = winner.logits(test, torch.arange(len(test)))[:, 0].softmax(1).cpu()
    heads = len(features) * len(RATES)
    how = f"best of {heads} linear heads on held-out images, SGD, {epochs} epochs of batch {batch_size}"
    return Result(probabilities, how, winner.feature.metadata | {"lr": rate})


def best_head(bank: FeatureBank, features: list[Feature], training: Training) -> tuple[Heads, float]:
    """The head that classifies held-out images best, trained anew on all images; and its rate per 256 images."""
    rates = [scaled_lr(rate, training.batch_size) for rate in RATES]
    hits = torch.zeros(len(features), len(rates))
    for held_out in held_out_folds(bank.labels, training.seed):
        rows = held_out.nonzero()[:, 0]
        for number, heads in enumerate(train_heads(bank, features, rates, (~held_out).nonzero()[:, 0], training)):
            guesses = heads.logits(bank, rows).argmax(2).cpu()
            hits[number] += (guesses == bank.labels[rows, None]).sum(0)
    number, which = divmod(int(hits.argmax()), len(rates))
    (winner,) = train_heads(bank, [features[number]], [rates[which]], torch.arange(len(bank)), training)
    return winner, RATES[which]


def grid_features(config: LinearProbeConfig, backbone: Backbone) -> list[Feature]:
    """Last 1 and 4 blocks x class token, mean, both, as far as the backbone has them and the settings leave it open."""
    pools = [config.pool] if config.pool else backbone.pools
    counts = [config.blocks] if config.blocks else BLOCKS
    found = [backbone.feature(pool, config.layer or "last", count) for count in counts for pool in pools]
    return list(dict.fromkeys(found))


def evaluate_logreg(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """scikit-learn's logistic regression, C = 1, on one feature; with layer=best held-out images choose the block."""
    scores, best, _ = evaluation.best_of(backbone, lambda *given: [logistic_scores(*given)])
    return Result(scores, "logistic regression, C=1", best.metadata)


def logistic_scores(
    train: Float[Tensor, "n D"], labels: Int64[Tensor, " n"], test: Float[Tensor, "m D"]
) -> Float[Tensor, "m K"]:
    """Class probabilities of the test images; columns are the classes 0 .. max(labels).

    scikit-learn's logistic regression out of the box, C = 1, on features as they are. Their mean is taken off, which
    moves the unpenalized intercept alone and not the optimum, but L-BFGS then finds it: MAE's CIFAR-10 features need
    217 iterations in place of 1,256.

    Raises:
        ValueError: fewer than two classes, or features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) < 2:
        raise ValueError("a probe needs images of two classes at least; these labels have one")
    require_finite(train)
    require_finite(test)
    center = train.mean(0)
    with warnings.catch_warnings():  # the last digits of the optimum decide no image
        warnings.filterwarnings("ignore", message=".*lbfgs failed to converge.*")
        model = LogisticRegression(max_iter=ITERATIONS).fit((train - center).numpy(), labels.numpy())
    scores = torch.zeros(len(test), int(labels.max()) + 1)
    scores[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba((test - center).numpy())).float()
    return scores
