import logging
import time

import numpy as np
import pytest

from ssl_vit.config.schema import DataConfig
from ssl_vit.data import cache
from ssl_vit.data.cache import Cached, cached, memory_gb
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.base import UnreadableImageError

BYTES = 3 * sum((8 + i) * (10 + i % 3) for i in range(9))


@pytest.fixture
def source(tmp_path, write):
    for i in range(9):
        write(tmp_path / f"{i}.png", 8 + i, 10 + i % 3, seed=i)
    return open_source(DataConfig(path=str(tmp_path)), 3, "train")


def test_images_that_fit_are_kept_as_they_are(source):
    whole = cached(source, BYTES / 1e9)
    assert isinstance(whole, Cached)
    assert memory_gb(whole) == BYTES / 1e9
    assert len(whole) == 9
    assert whole.labels is source.labels
    for i in range(9):
        assert np.array_equal(whole.read(i), source.read(i))
        assert whole.size(i) == source.size(i)
        assert whole.name(i) == source.name(i)


@pytest.mark.parametrize("budget", [0.0, (BYTES - 1) / 1e9])
def test_images_that_do_not_fit_stay_where_they_are(source, budget):
    assert cached(source, budget) is source
    assert memory_gb(source) == 0


def test_reading_needs_no_file_any_more(source, tmp_path):
    whole = cached(source, 1.0)
    (tmp_path / "3.png").unlink()
    assert whole.read(3).shape == (11, 10, 3)


def test_a_damaged_image_is_named(source, tmp_path):
    path = tmp_path / "5.png"
    path.write_bytes(path.read_bytes()[:120])
    with pytest.raises(UnreadableImageError, match=f"^{path} cannot be used: .*: delete or replace it$"):
        cached(source, 1.0)


def test_a_long_wait_is_explained(source, monkeypatch, caplog):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(cache, "_in_order", lambda pool, work, count: map(work, range(count)))
    with caplog.at_level(logging.INFO):
        cached(source, 1.0)
    assert caplog.messages[0] == "decoded 2 of 9 images into memory"
