import json
import math

import torch

from ssl_vit.benchmark import startup, step
from ssl_vit.config.schema import BenchmarkConfig


def shrink(monkeypatch):
    for name, value in (("GLOBAL", 32), ("LOCAL", 16), ("PROTOTYPES", 64)):
        monkeypatch.setattr(step, name, value)


def test_each_side_gives_a_time_and_both_a_ratio(capsys, monkeypatch):
    shrink(monkeypatch)
    step.run(BenchmarkConfig(suite="step", repeats=1, batch_size=2))
    ours, parts, both = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (ours["who"], parts["who"]) == ("ours", "lightly + timm")
    assert ours["seconds"] > 0
    assert both["ratio"] > 0
    assert both["batch_size"] == 2


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
