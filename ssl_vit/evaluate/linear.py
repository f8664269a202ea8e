"""Linear probe: logistic regression on frozen features (scikit-learn's L-BFGS), its strength chosen without the test set.

Letters: n training pictures, m test pictures, D feature channels, K classes.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""Candidates for C, the inverse of the L2 penalty on standardised features."""


def logistic_scores(
    train: Float[Tensor, "n D"],
    labels: Int64[Tensor, "n"],
    test: Float[Tensor, "m D"],
    seed: int = 0,
    strengths: tuple[float, ...] = STRENGTHS,
) -> tuple[Float[Tensor, "m K"], float]:
    """Class probabilities of the test pictures, and the C they were made with.

    Features are standardised by the training set. With several strengths a fifth of the training set, drawn by seed,
    chooses; then all of it is fitted. Columns are the sorted classes 0 .. max(labels).

    Raises:
        ValueError: fewer than two classes, or features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split

    if len(labels.unique()) < 2:
        raise ValueError("a probe needs pictures of two classes at least; these labels have one")
    if not train.isfinite().all():
        raise ValueError("features are not finite: the encoder's weights are broken; go back to an earlier checkpoint")
    mean, deviation = train.mean(0), train.std(0).clamp_min(1e-6)
    x, y, z = (((train - mean) / deviation).numpy(), labels.numpy(), ((test - mean) / deviation).numpy())

    def fit(C: float, rows: np.ndarray) -> LogisticRegression:
        with warnings.catch_warnings():  # 300 iterations decide a probe; the last digits of the optimum do not
            warnings.filterwarnings("ignore", message=".*lbfgs failed to converge.*")
            return LogisticRegression(C=C, max_iter=300).fit(x[rows], y[rows])

    every, best = np.arange(len(y)), strengths[0]
    if len(strengths) > 1:
        counts = np.bincount(y)
        split = y if counts[counts > 0].min() > 1 else None
        fitting, choosing = train_test_split(every, test_size=0.2, random_state=seed, stratify=split)
        score = {C: float(np.mean(fit(C, fitting).predict(x[choosing]) == y[choosing])) for C in strengths}
        best = max(strengths, key=lambda C: score[C])
    model = fit(best, every)
    scores = torch.zeros(len(z), int(y.max()) + 1)
    scores[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(z)).float()
    return scores, best
