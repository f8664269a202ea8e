import numpy as np
import pytest

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import count, open_source

DIGITS = DataConfig(source="digits")


@pytest.fixture(scope="module")
def digits():
    return open_source(DIGITS, 3, "train"), open_source(DIGITS, 3, "test")


def test_no_digit_is_in_both_splits(digits):
    train, test = (set(source.numbers.tolist()) for source in digits)
    assert (len(train), len(test)) == (1437, 360)
    assert not train & test
    assert count(DIGITS) == len(train)


def test_both_splits_hold_every_digit_in_proportion(digits):
    train, test = (np.bincount(source.labels, minlength=10) for source in digits)
    assert (abs(test / 360 - train / 1437) < 0.005).all()
    assert digits[0].classes == list("0123456789")


def test_digits_differ_in_place_size_and_color(digits):
    canvases = digits[0].canvases.astype(np.float64)
    rows = canvases.max(axis=(2, 3)) > 40
    tops, bottoms = rows.argmax(1), 31 - rows[:, ::-1].argmax(1)
    heights = bottoms - tops + 1
    assert canvases.shape == (1437, 32, 32, 3)
    assert 18 < np.percentile(heights, 2) < np.percentile(heights, 98) <= 32
    assert tops.std() > 1.5
    colors = canvases.max(axis=(1, 2))
    assert (colors.max(1) > 150).all()  # bright enough to see
    assert (colors.std(0) > 30).all()


def test_digits_are_the_same_each_time(digits):
    again = open_source(DIGITS, 3, "train")
    assert np.array_equal(again.canvases, digits[0].canvases)
    assert int(digits[0].canvases.astype(np.int64).sum()) == pytest.approx(206_900_000, rel=0.02)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # 20 steps are near enough
def test_raw_pixels_of_digits_are_neither_trivial_nor_useless(digits):
    from sklearn.linear_model import LogisticRegression

    rows = [np.stack([source.read(i) for i in range(len(source))]).reshape(len(source), -1) / 255 for source in digits]
    model = LogisticRegression(max_iter=20).fit(rows[0], digits[0].labels)
    assert 0.70 < model.score(rows[1], digits[1].labels) < 0.82


def test_digits_come_in_gray_too():
    assert open_source(DIGITS, 1, "test").read(0).shape == (32, 32, 1)
