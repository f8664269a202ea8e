import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_vit.data.rng import permutation, stratified, uniforms

COUNT = 40_000


def kolmogorov_smirnov(values: np.ndarray) -> float:
    """Largest gap between the values' distribution function and the uniform one."""
    values = np.sort(values.ravel())
    steps = np.arange(1, len(values) + 1) / len(values)
    return float(np.max(np.maximum(steps - values, values - steps + 1 / len(values))))


def test_draws_are_uniform_in_every_column():
    random_numbers = uniforms(3, 5, np.arange(COUNT), 4)
    assert random_numbers.shape == (COUNT, 4)
    assert random_numbers.min() >= 0
    assert random_numbers.max() < 1
    for column in random_numbers.T:
        assert kolmogorov_smirnov(column) < 1.95 / np.sqrt(COUNT)  # p = .001 of the Kolmogorov distribution


@pytest.mark.parametrize("low_bits", [8, 16])
def test_low_bits_are_uniform_too(low_bits):
    random_numbers = uniforms(0, 0, np.arange(COUNT), 1)[:, 0]
    assert kolmogorov_smirnov((random_numbers * 2.0**low_bits) % 1) < 1.95 / np.sqrt(COUNT)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (uniforms(0, 0, np.arange(COUNT), 2)[:, 0], uniforms(0, 0, np.arange(COUNT), 2)[:, 1]),
        (uniforms(0, 0, np.arange(COUNT), 1)[:, 0], uniforms(0, 0, np.arange(1, COUNT + 1), 1)[:, 0]),
        (uniforms(0, 0, np.arange(COUNT), 1)[:, 0], uniforms(0, 1, np.arange(COUNT), 1)[:, 0]),
        (uniforms(0, 0, np.arange(COUNT), 1)[:, 0], uniforms(1, 0, np.arange(COUNT), 1)[:, 0]),
        (uniforms(1, 0, np.arange(COUNT), 1)[:, 0], uniforms(0, 1, np.arange(COUNT), 1)[:, 0]),
        (uniforms(0, 0, np.arange(COUNT), 1)[:, 0], np.argsort(permutation(0, 0, COUNT)) / COUNT),
    ],
    ids=["columns", "neighbors", "epochs", "seeds", "seed and epoch swapped", "order of images"],
)
def test_draws_are_independent_between(first, second):
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(COUNT)
    joint, _, _ = np.histogram2d(first, second, bins=8, range=[[0, 1], [0, 1]])
    chi_square = ((joint - COUNT / 64) ** 2 / (COUNT / 64)).sum()
    assert chi_square < 63 + 5 * np.sqrt(
        2 * 63
    )  # mean and five standard deviations of chi-square with 63 degrees of freedom


@given(
    st.integers(0, 2**40), st.integers(0, 10_000), st.lists(st.integers(0, 2**40), min_size=1, max_size=9), st.data()
)
@settings(deadline=None, max_examples=50)
def test_a_draw_depends_on_nothing_else_in_the_batch(seed, epoch, index, data):
    cut = data.draw(st.integers(0, len(index)))
    whole = uniforms(seed, epoch, np.array(index), 5)
    parts = [uniforms(seed, epoch, np.array(part, dtype=np.int64), 5) for part in (index[:cut], index[cut:])]
    assert np.array_equal(whole, np.concatenate(parts))
    assert np.array_equal(whole[:, :2], uniforms(seed, epoch, np.array(index), 2))


def test_draws_stay_the_same_between_versions():
    """A run resumed under a later version has the same crops."""
    pinned = [[0.9771272336624445, 0.5236380584749604], [0.3228019624287952, 0.11388106379690865]]
    assert uniforms(0, 0, np.array([0, 1]), 2).tolist() == pinned
    assert permutation(0, 0, 8).tolist() == [6, 0, 4, 1, 3, 2, 7, 5]


def test_each_epoch_has_its_own_order_of_all_images():
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(np.sort(second), np.arange(1000))
    assert (first == second).mean() < 0.01


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
@settings(deadline=None, max_examples=50)
def test_a_stratified_subset_keeps_each_class_share(labels, data):
    labels = np.array(labels)
    count = data.draw(st.integers(0, len(labels)))
    chosen = stratified(labels, count, seed=1)
    assert len(np.unique(chosen)) == count
    fractions = np.bincount(labels, minlength=5) * count / len(labels)
    assert (abs(np.bincount(labels[chosen], minlength=5) - fractions) <= 2.5).all()  # rounding: half an image a class
