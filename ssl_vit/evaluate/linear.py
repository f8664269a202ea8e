"""Linear probe: logistic regression on frozen features, as scikit-learn does it out of the box.

Nothing is tuned: strength C = 1 on the features as they are, the same for an encoder and for its controls. Their mean
is taken off, which moves the unpenalised intercept alone and not the optimum, but L-BFGS then finds it: MAE's CIFAR-10
features need 217 iterations in place of 1,256.

Letters: n training pictures, m test pictures, D feature channels, K classes.
"""

import warnings

import torch
from jaxtyping import Float, Int64
from torch import Tensor

ITERATIONS = 1000


def logistic_scores(
    train: Float[Tensor, "n D"], labels: Int64[Tensor, " n"], test: Float[Tensor, "m D"]
) -> Float[Tensor, "m K"]:
    """Class probabilities of the test pictures; columns are the classes 0 .. max(labels).

    Raises:
        ValueError: fewer than two classes, or features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) < 2:
        raise ValueError("a probe needs pictures of two classes at least; these labels have one")
    if not (train.isfinite().all() and test.isfinite().all()):
        raise ValueError("features are not finite: the encoder's weights are broken; go back to an earlier checkpoint")
    centre = train.mean(0)
    with warnings.catch_warnings():  # the last digits of the optimum decide no picture
        warnings.filterwarnings("ignore", message=".*lbfgs failed to converge.*")
        model = LogisticRegression(max_iter=ITERATIONS).fit((train - centre).numpy(), labels.numpy())
    scores = torch.zeros(len(test), int(labels.max()) + 1)
    scores[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba((test - centre).numpy())).float()
    return scores
