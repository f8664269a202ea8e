"""Run directories: names, newest, writes that are whole or absent."""

import json
import os
import stat
from pathlib import Path

import pytest

from ssl_vit import runs


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("method", "recipe", "prefix"),
    [
        ("mae", "digits", "mae-digits-"),
        ("acme.simmim:SimMIM", "configs/steel.yaml", "simmim-steel-"),
        ("mae", "my recipe/x y.yaml", "mae-x_y-"),
    ],
)
def test_a_run_is_named_by_method_and_recipe(method, recipe, prefix):
    assert runs.run_prefix(method, recipe) == prefix


def test_two_runs_in_one_second_have_two_names():
    first = runs.new_run_dir("mae", "digits")
    first.mkdir(parents=True)
    second = runs.new_run_dir("mae", "digits")
    assert first != second


def test_the_newest_is_the_one_written_last_and_empty_folders_do_not_count():
    for name, time in (("mae-a-1", 20), ("mae-a-2", 10), ("dino-a-1", 30)):
        file = Path("runs") / name / "encoder.safetensors"
        file.parent.mkdir(parents=True)
        file.write_text("")
        os.utime(file, (time, time))
    (Path("runs") / "mae-a-3" / "checkpoints").mkdir(parents=True)
    assert runs.newest_run().name == "dino-a-1"
    assert runs.newest_run("mae-").name == "mae-a-1"
    with pytest.raises(FileNotFoundError, match="no runs/mae-a-\\* has checkpoints"):
        runs.newest_run("mae-a-", "checkpoints")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in runs/mae-a-3/checkpoints"):
        runs.newest_checkpoint(Path("runs/mae-a-3"))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(monkeypatch, tmp_path):
    file = tmp_path / "a" / "x.json"
    runs.write_json(file, {"a": 1})
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"x\.json was not written \(No space left on device\): free some space"):
        runs.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(file.parent.iterdir()) == [file]


def test_facts_stand_beside_an_encoder():
    runs.write_json(Path("run/encoder.json"), {"method": "mae"})
    assert runs.facts_of(Path("run")) == runs.facts_of(Path("run/encoder.safetensors")) == {"method": "mae"}
    assert runs.facts_of(Path("run/other.pth")) == {}
