"""Run directories: names, newest, writes that are whole or absent."""

import json
import logging
import os
import stat
from pathlib import Path

import pytest
import torch

from ssl_vit.run import files


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
    assert files.run_prefix(method, recipe) == prefix


def test_two_runs_in_one_second_have_two_names():
    first = files.new_run_dir("mae", "digits")
    first.mkdir(parents=True)
    second = files.new_run_dir("mae", "digits")
    assert first != second


def test_the_newest_is_the_one_written_last_and_empty_folders_do_not_count():
    for name, time in (("mae-a-1", 20), ("mae-a-2", 10), ("dino-a-1", 30)):
        file = Path("runs") / name / "encoder.safetensors"
        file.parent.mkdir(parents=True)
        file.write_text("")
        os.utime(file, (time, time))
    (Path("runs") / "mae-a-3" / "checkpoints").mkdir(parents=True)
    assert files.newest_run().name == "dino-a-1"
    assert files.newest_run("mae-").name == "mae-a-1"
    with pytest.raises(FileNotFoundError, match="no runs/mae-a-\\* has checkpoints"):
        files.newest_run("mae-a-", "checkpoints")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in runs/mae-a-3/checkpoints"):
        files.newest_checkpoint(Path("runs/mae-a-3"))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(monkeypatch, tmp_path):
    file = tmp_path / "a" / "x.json"
    files.write_json(file, {"a": 1})
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"x\.json was not written \(No space left on device\): free some space"):
        files.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(file.parent.iterdir()) == [file]


DAMAGES = {
    "empty": lambda whole: b"",
    "cut in half": lambda whole: whole[: len(whole) // 2],
    "a byte short": lambda whole: whole[:-1],
    "zeros at the end": lambda whole: whole[:-100] + bytes(100),
    "a bit changed": lambda whole: whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:],
    "another file": lambda whole: b"an image of a cat" * 50,
}


def saved(step: int) -> Path:
    path = Path(f"run/checkpoints/step-{step:07}.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"global_step": step, "state_dict": {"weights": torch.arange(5000.0)}}, path)
    return path


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_in_one_line(damage, caplog):
    before, newest = saved(9), saved(100)
    os.utime(before, (2e9, 2e9))  # it is the step that counts, not the clock
    assert files.damage(newest) == ""
    assert files.newest_checkpoint(Path("run")) == newest
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert files.newest_checkpoint(Path("run")) == before
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{newest} is damaged (it")
    assert record.getMessage().endswith("): the one before is used")
    before.write_bytes(b"")
    with pytest.raises(ValueError, match=r"resume=run: of 2 checkpoints none is whole; begin anew in another run_dir="):
        files.newest_checkpoint(Path("run"))


def test_a_write_that_reads_back_wrong_is_not_kept(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(OSError, match=r"a was not written \(read back, it is damaged\)"):
        files.write_atomic(tmp_path / "a", "new", lambda path: "it is damaged")
    assert (tmp_path / "a").read_text() == "old"


def test_metadata_stands_beside_an_encoder():
    files.write_json(Path("run/encoder.json"), {"method": "mae"})
    assert files.metadata_of(Path("run")) == files.metadata_of(Path("run/encoder.safetensors")) == {"method": "mae"}
    assert files.metadata_of(Path("run/other.pth")) == {}
