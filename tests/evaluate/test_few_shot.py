"""Few labels: which images are drawn, and the figures of them."""

from statistics import mean, stdev

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ssl_vit.evaluate.few_shot import evaluate_few_shot, random_subset


def test_shots_are_as_many_of_each_class_drawn_anew_by_each_seed():
    labels = np.array([0] * 40 + [1] * 7 + [4] * 90)
    subsets = [random_subset(labels, "shots", 5, seed) for seed in range(5)]
    for rows in subsets:
        assert np.bincount(labels[rows]).tolist() == [5, 5, 0, 0, 5]
        assert len(set(rows)) == 15
    assert len({tuple(rows) for rows in subsets}) == 5


@pytest.mark.parametrize(("fraction", "counts"), [(0.1, [4, 1, 9]), (0.01, [1, 1, 1]), (1.0, [40, 7, 90])])
def test_a_fraction_is_of_each_class_and_one_at_least(fraction, counts):
    labels = np.repeat([0, 1, 2], [40, 7, 90])
    assert np.bincount(labels[random_subset(labels, "fraction", fraction, 0)]).tolist() == counts


def test_five_subsets_are_classified_by_logistic_regression(make_evaluation, backbone):
    evaluation = make_evaluation(shots=[1, 4], fraction=[0.5])
    answers = evaluate_few_shot(evaluation, backbone)
    assert [list(answers[kind]) for kind in ("shots", "fraction")] == [["1", "4"], ["0.5"]]
    assert answers["top1"] == answers["fraction"]["0.5"]["mean"]
    feature = evaluation.readable(backbone)[0]
    assert (feature.blocks, feature.pool) == ((2,), "mean")
    train, test = (evaluation.bank(backbone, [feature], split) for split in ("train", "test"))
    tops = []
    for seed in range(5):
        rows = random_subset(train.labels.numpy(), "shots", 4, seed)
        model = LogisticRegression(max_iter=1000).fit(train.values[rows].numpy(), train.labels[rows].numpy())
        tops.append(float(model.score(test.values.numpy(), test.labels.numpy())))
    assert answers["shots"]["4"]["mean"] == pytest.approx(mean(tops), abs=1e-4)
    assert answers["shots"]["4"]["std"] == pytest.approx(stdev(tops), abs=1e-4)
    assert answers["shots"]["4"]["top5"] is None  # three classes


def test_more_shots_than_images_name_the_class(make_evaluation, backbone):
    with pytest.raises(ValueError, match="shots=11: class 'bird' has only 10 training images"):
        evaluate_few_shot(make_evaluation(shots=[2, 11]), backbone)
