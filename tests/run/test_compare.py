"""Runs side by side: what differs, what came of it, means over seeds."""

import csv
import json

import pytest
import yaml
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ssl_vit.cli.main import run_command
from ssl_vit.config.checks import ConfigError
from ssl_vit.run.compare import comparison, read_run


@pytest.fixture
def runs(tmp_path):
    """Two seeds of one setting and one run of another, which was never evaluated."""
    for name, seed, rate, top1 in (("a", 0, 0.001, 0.9), ("b", 1, 0.001, 0.8), ("c | d", 0, 0.002, None)):
        folder = tmp_path / name
        folder.mkdir()
        tree = {"recipe": "digits", "run_dir": str(folder), "resume": "", "seed": seed, "optim": {"base_lr": rate}}
        (folder / "config.yaml").write_text(yaml.safe_dump(tree))
        (folder / "encoder.json").write_text(json.dumps({"step": 1000}))
        lines = [json.dumps({"step": step, "train/loss": 1 / (step + 1)}) for step in (9, 19)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 29, "tr')  # a crash cut the last line
        for began in (1e9, 2e9):  # two attempts
            with SummaryWriter(str(folder), filename_suffix=f".{began}") as writer:
                for seconds in (0, 10, 45):
                    writer.add_scalar("train/loss", 1.0, seconds, walltime=began + seconds)
        if top1 is not None:
            (folder / "linear_probe.json").write_text(json.dumps({"top1": top1}))
    return [tmp_path / name for name in ("a", "b", "c | d")]


def test_a_table_has_what_differs_and_means_over_seeds(runs):
    first, second = comparison([read_run(folder) for folder in runs])
    assert first == {
        "run": "a and 1 more seeds",
        "optim.base_lr": "0.001",
        "steps": "1,000 +- 0",
        "minutes": "1.50 +- 0.00",
        "loss": "0.05 +- 0.00",
        "linear_probe": "85.00 +- 7.07",
    }
    assert (second["run"], second["optim.base_lr"], second["linear_probe"]) == ("c | d", "0.002", "-")


def test_the_command_prints_and_writes_it(runs, tmp_path, capsys):
    run_command("compare", *map(str, runs), f"out={tmp_path / 'out'}")
    assert "0.002" in capsys.readouterr().out
    with (tmp_path / "out" / "compare.csv").open() as file:
        assert [row["run"] for row in csv.DictReader(file)] == ["a and 1 more seeds", "c | d"]
    assert "| c \\| d |" in (tmp_path / "out" / "compare.md").read_text()
    with Image.open(tmp_path / "out" / "compare.png") as image:
        assert len(image.convert("RGB").getcolors(99_999)) > 3  # a line for each run


@pytest.mark.parametrize("args", [[], ["/nowhere"]])
def test_what_is_no_run_is_one_line(args):
    with pytest.raises((ConfigError, ValueError), match=r"runs="):
        run_command("compare", *args)
