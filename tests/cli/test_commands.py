"""The commands as a user types them: answers, exit status, one line for a mistake."""

import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def command(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    tool, *rest = args
    return subprocess.run([sys.executable, str(ROOT / "tools" / tool), *rest], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["optim.bse_lr=1"], "did you mean optim.base_lr?"),
        (["data.batch_size=many"], "data.batch_size=many must be an integer"),
        (["method.mask_ratio=1.5"], "method.mask_ratio=1.5 must be in (0, 1)"),
        (
            ["encoder.image_size=225", "encoder.patch_size=16"],
            "encoder.image_size=225 must be a multiple of encoder.patch_size=16",
        ),
        (["recipe=digts"], "did you mean digits?"),
        (["mask_ratio=0.5"], "method.mask_ratio"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2_in_under_two_seconds(args, line):
    started = time.monotonic()
    done = command("pretrain.py", "method=mae", *args)
    seconds = time.monotonic() - started
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert line in done.stderr
    assert seconds < 2


def test_a_missing_method_names_the_legal_ones():
    for args in ([], ["method=maee"]):
        done = command("pretrain.py", *args)
        assert done.returncode == 2
        assert "mae" in done.stderr


@pytest.mark.parametrize("tool", sorted(path.name for path in (ROOT / "tools").glob("*.py")))
def test_every_tool_has_help_that_names_its_settings(tool):
    done = command(tool, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python tools/{tool}" in done.stdout
    assert {"benchmark.py": "suite=", "visualize.py": "images=", "predict.py": "images="}.get(
        tool, "data.path"
    ) in done.stdout


def test_a_dry_run_says_what_follows_from_the_settings():
    done = command("pretrain.py", "method=mae", "--dry-run", "data.batch_size=32", "trainer.accumulate=4")
    assert done.returncode == 0, done.stderr
    for args in (
        "data.batch_size",
        "command line",
        "recipe",
        "default",
        "global batch  128 = 32 x 4",
        "64 patches",
        "1,437",
    ):
        assert args in done.stdout
    assert not (ROOT / "runs" / "dry").exists()


def test_images_are_packed_and_the_shards_counted_without_reading_them(tmp_path):
    done = command("make_shards.py", "data.source=digits", f"out={tmp_path / 'shards'}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 1797
    for file in (tmp_path / "shards").glob("*.tar"):
        with file.open("r+b") as shard:
            shard.write(bytes(file.stat().st_size))  # nothing to read, of the same size
    args = ["method=mae", "data.source=webdataset", f"data.path={tmp_path / 'shards'}", "--dry-run"]
    done = command("pretrain.py", *args)
    assert done.returncode == 0, done.stderr
    assert "1,437 for training" in done.stdout


def test_a_missing_path_is_one_line(tmp_path):
    args = ["method=mae", "data.source=folder", "data.path=nowhere", "encoder.image_size=32"]
    done = command("pretrain.py", *args, cwd=tmp_path)
    assert done.returncode == 1
    assert "data.path=nowhere" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/encoder*"))


def test_someone_elses_method_is_a_full_citizen(tmp_path):
    (tmp_path / "acme.py").write_text(
        "from ssl_vit.methods.mae import MAE\n\nclass Half(MAE):\n"
        "    def losses(self, images, noise=None):\n"
        "        return {'half': super().losses(images, noise)['reconstruction'] / 2}\n"
    )
    recipe = tmp_path / "half.yaml"
    recipe.write_text((ROOT / "configs/mae/digits.yaml").read_text())
    args = [f"recipe={recipe}", "trainer.max_steps=2", "monitor.every_epochs=0", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/pretrain.py"), "method=acme:Half", *args],
        capture_output=True, text=True, cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept_unless_the_environment_says_otherwise():
    script = """
import resource
from ssl_vit.cli.main import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 50_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def read_errors(**variables: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        args = [sys.executable, "-c", script]
        return int(subprocess.run(args, capture_output=True, text=True, env=environment | variables).stdout)

    assert read_errors() < 100
    assert read_errors(MALLOC_TOP_PAD_="0") > 1000  # 50 MB are 12,207 pages
