import json

import torch
from benchmarks import probe

from ssl_vit.config.evaluation_schema import BenchmarkConfig


def test_each_side_gives_a_time(capsys, monkeypatch):
    for name, value in (("TRAIN", 300), ("TEST", 50), ("WIDTH", 8)):
        monkeypatch.setattr(probe, name, value)
    probe.run(BenchmarkConfig(suite="probe", repeats=1))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["who"] for line in lines] == ["ours, grid", "ours, k-NN", "lightly, k-NN"]
    assert all(line["seconds"] >= 0 for line in lines)


def test_both_sides_of_knn_say_the_same():
    train, labels, test = torch.randn(500, 8), torch.randint(10, (500,)), torch.randn(90, 8)
    assert torch.equal(probe.ours(train, labels, test), probe.lightlys(train, labels, test))
