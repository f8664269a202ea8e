import json
import math

import pytest
import torch

from ssl_vit.benchmark import startup, step
from ssl_vit.config.tools import BenchmarkConfig


def shrink(monkeypatch):
    for name, value in (("GLOBAL", 32), ("LOCAL", 16), ("PROTOTYPES", 64)):
        monkeypatch.setattr(step, name, value)


def test_each_side_gives_a_time_and_both_a_ratio(capsys, monkeypatch):
    shrink(monkeypatch)
    step.run(BenchmarkConfig(suite="step", repeats=1, batch_size=2))
    ours, *peers = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert ours["who"] == "ours"
    assert ours["seconds"] > 0
    assert [line["who"] for line in peers] == ["lightly + timm, by crop", "lightly + timm, by size"] * 2
    assert all(line["ratio"] > 0 for line in peers[2:])
    assert ours["batch_size"] == 2


def test_the_peers_two_ways_lose_the_same(monkeypatch):
    shrink(monkeypatch)
    cpu = torch.device("cpu")
    crops = step.crops_of(2, cpu)
    losses = []
    for by_view in (False, True):
        torch.manual_seed(0)
        losses.append(float(step.parts(cpu, False, by_view)(crops)))
    assert losses[0] == pytest.approx(losses[1], rel=0.2)  # drop path draws differ


def test_both_sides_start_at_a_loss_of_the_same_size(monkeypatch):
    shrink(monkeypatch)
    cpu = torch.device("cpu")
    crops = step.crops_of(2, cpu)
    for make in (step.ours, step.parts):
        assert 0.3 * math.log(64) < make(cpu, False)(crops) < 2 * math.log(64)


def test_startup_times_every_command(capsys, monkeypatch):
    monkeypatch.setattr(startup, "COMMANDS", {"nothing": ["-c", "pass"]})
    startup.run(BenchmarkConfig(suite="startup", repeats=1))
    line = json.loads(capsys.readouterr().out)
    assert line["command"] == "nothing"
    assert line["seconds"] >= 0
