import mmap
import sys

import numpy as np
import pytest
from benchmarks import memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("source", "write"), [("webdataset", memory.write_shards), ("folder", memory.write_folder)])
def test_memory_is_told_along_an_epoch(source, write, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "NUM_IMAGES", 1000)
    monkeypatch.setattr(memory, "PER_SHARD", 300)
    write(tmp_path)
    lines = list(memory.epoch(source, str(tmp_path)))
    assert [line["per_cent"] for line in lines] == [0, *range(10, 101, 10)]
    assert all(line["mb"] > 10 for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_is_kept_shows():
    before = memory.resident_mb()
    kept = np.frombuffer(mmap.mmap(-1, 50_000_000), dtype=np.uint8)  # not of what this process has freed
    kept[:] = 1
    assert 40 < memory.resident_mb() - before < 60
    del kept
