"""The commands as a user types them: answers, exit status, one line for a mistake."""

import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ssl_vit.cli import benchmark
from ssl_vit.cli.main import COMMANDS, guarded
from ssl_vit.cli.settings import resolve_command
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.run.launch import typed
from ssl_vit.supervised.classifier import Classifier, save_classifier

ROOT = Path(__file__).resolve().parents[2]
DIGITS = [f"recipe={ROOT / 'configs/mae/digits.yaml'}", "trainer.max_steps=2", "monitor.every_epochs=0"]


@pytest.fixture
def answer(capsys, monkeypatch, tmp_path):
    """Runs a command in this process, in an empty folder: (exit status, output, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> tuple[int, str, str]:
        status = guarded(args)
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("pretrain method=mae optim.bse_lr=1", "did you mean optim.base_lr?"),
        ("pretrain method=mae data.batch_size=many", "data.batch_size=many must be an integer"),
        ("pretrain method=mae method.mask_ratio=1.5", "method.mask_ratio=1.5 must be in (0, 1)"),
        ("pretrain method=mae recipe=digts", "did you mean digits?"),
        ("pretrain", "method= is missing: one of mae"),
        ("pretrain method=maee", "did you mean mae?"),
        ("pretrain --help method=maee", "did you mean mae?"),
        ("train_tokenizer tokenizer=dva", "tokenizer=dva must be one of kmeans, dvae, vqkd (did you mean dvae?)"),
        ("finetune finetune.mixup=-1", "finetune.mixup=-1.0 must be in [0, 100]"),
        ("linear_probe protocol=grit", "protocol=grit must be one of auto, grid, "),
        ("benchmark --dry-run", "--dry-run: benchmark has no plan"),
        ("pretrain method=mae --all", "--all goes with --dry-run"),
        ("benchmark suite=doctr", "did you mean doctor?"),
        ("predict top=0", "top=0 must be a positive integer"),
        ("pretrian method=mae", "pretrian is not a command: one of pretrain, "),
        ("knn_probe", "(did you mean linear_probe?)"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(answer, args, line):
    status, output, errors = answer(*args.split())
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert line in errors


def test_a_missing_path_is_one_line_and_exit_status_1(answer, tmp_path):
    status, _, errors = answer(
        "pretrain", "method=mae", "data.source=folder", "data.path=nowhere", "encoder.image_size=32"
    )
    assert status == 1
    assert "data.path=nowhere" in errors.splitlines()[-1]
    assert not list((tmp_path / "runs").glob("*/encoder*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_names_its_settings_and_a_tool(answer, name):
    status, output, _ = answer(name, "--help")
    assert status == 0
    assert output.startswith(f"{typed(name)} ")
    own = {"benchmark": "suite=", "visualize": "images=", "predict": "images=", "compare": "runs=", "embed": "images="}
    assert own.get(name, "data.path") in output
    assert f'main(["{name}", *sys.argv[1:]])' in (ROOT / "tools" / f"{name}.py").read_text()


def test_without_a_command_they_are_listed(answer):
    for args in ([], ["--help"]):
        status, output, _ = answer(*args)
        assert status == 0
        assert [line.split()[0] for line in output.splitlines()[2:]] == list(COMMANDS)


@pytest.mark.parametrize(
    ("program", "form"),
    [
        ("tools/pretrain.py", "python tools/knn.py"),
        (str(ROOT / "tools/pretrain.py"), f"python {ROOT}/tools/knn.py"),
        ("/a/bin/ssl-vit", "ssl-vit knn"),
        ("/a/ssl_vit/__main__.py", "python -m ssl_vit knn"),
        ("train.py", "ssl-vit knn"),  # a user's own code
    ],
)
def test_other_commands_are_named_in_the_form_that_was_typed(monkeypatch, program, form):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [program])
    assert typed("knn") == form


def test_a_dry_run_shows_what_follows_from_the_settings(answer, tmp_path):
    more = ("--dry-run", "--all", "data.batch_size=32", "trainer.accumulate=4")
    status, output, _ = answer("pretrain", "method=mae", *more)
    assert status == 0
    for text in ("command line", "recipe", "default", "global batch  128 = 32 x 4", "64 patches", "1,437"):
        assert text in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_a_dry_run_says_in_twenty_lines_what_matters_and_all_settings_after_it(answer, more):
    """72 settings came first, and hid how many steps there would be."""
    status, output, _ = answer("pretrain", "method=beit", "run_dir=mine", "--dry-run", *more)
    plan, _, table = output.partition("\n\n")
    names = [line.partition(" ")[0] for line in plan.splitlines()]
    assert status == 0
    assert names[:5] == ["tokenizer", "data", "encoder", "image", "images"]
    assert names[-3:] == ["memory", "writes", "settings"]
    assert len(names) <= 20
    assert "mine/: config.yaml, checkpoints every ten minutes, encoder.safetensors" in plan
    assert ("* run_dir" in table) == bool(more)


def test_other_commands_have_plans_and_write_nothing(answer, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    network = VisionTransformer(embed_dim=8, depth=1, num_heads=1, patch_size=4, image_size=8)
    save_encoder(network, tmp_path / "run", mean=[0.5] * 3, std=[0.5] * 3)
    save_classifier(Classifier(network, ["a", "b"]), tmp_path / "tuned", mean=[0.5] * 3, std=[0.5] * 3)
    before = sorted(tmp_path.rglob("*"))
    plans = {
        "predict model=tuned images=images out=new/x.html": "new/x.html: a page with thumbnails",
        "embed encoder=run images=images": "features.npz: one vector for each",
        "visualize encoder=run images=images": "run/visualize/: attention, mask and pca",
        "make_shards data.path=images out=shards": "shards/: tar shards of 256 MB",
    }
    for command, writes in plans.items():
        status, output, errors = answer(*command.split(), "--dry-run")
        assert (status, errors) == (0, "")
        assert f"writes        {writes}" in output
        assert "\nimages        1 " in output
    for wrong in ("embed encoder=run", "predict model=tuned images=none", "make_shards data.path=images out=images"):
        status, _, errors = answer(*wrong.split(), "--dry-run")
        assert (status in (1, 2), errors.count("\n")) == (True, 1)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_fine_tuning_has_not_the_global_batch_of_the_pretraining(tmp_path):
    network = VisionTransformer(embed_dim=8, depth=1, num_heads=1, patch_size=4, image_size=8)
    data = {"source": "digits", "global_batch": 4096}
    save_encoder(network, tmp_path / "run", mean=[0.5] * 3, std=[0.5] * 3, data=data)
    config = resolve_command(FinetuneRun, [f"encoder={tmp_path / 'run'}", "recipe=digits"]).config
    assert (config.data.source, config.data.global_batch) == ("digits", None)


def test_images_are_packed_and_the_shards_counted_without_reading_them(answer, tmp_path):
    status, output, _ = answer("make_shards", "data.source=digits", "out=shards")
    assert status == 0
    assert json.loads(output.splitlines()[-1])["images"] == 1797
    for file in (tmp_path / "shards").glob("*.tar"):
        with file.open("r+b") as shard:
            shard.write(bytes(file.stat().st_size))  # nothing to read, of the same size
    status, output, _ = answer("pretrain", "method=mae", "recipe=imagenette", "data.path=shards", "--dry-run")
    assert status == 0
    assert "1,437 for training" in output


def test_benchmarks_are_those_of_the_repository(answer, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(importlib.import_module("benchmarks.views"), "run", seen.append)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(benchmark.TOOLS)])
    assert answer("benchmark", "suite=views", "repeats=3")[0] == 0
    assert [config.repeats for config in seen] == [3]
    assert sys.path[0] == str(benchmark.TOOLS)
    monkeypatch.setattr(benchmark, "TOOLS", tmp_path)
    status, _, errors = answer("benchmark", "suite=memory")
    assert (status, errors.count("\n")) == (2, 1)
    assert "suite=memory belongs to the repository" in errors


def test_someone_elses_method_is_a_full_citizen(nursery, tmp_path):
    (tmp_path / "acme.py").write_text(
        "from ssl_vit.methods.mae import MAE\n\nclass Half(MAE):\n"
        "    def losses(self, images, noise=None):\n"
        "        return {'half': super().losses(images, noise)['reconstruction'] / 2}\n"
    )
    small = ["encoder.embed_dim=16", "encoder.num_heads=2", "method=acme:Half"]
    status = nursery.run(tmp_path, *small, *DIGITS, "run_dir=run", PYTHONPATH=str(tmp_path))
    printed = (tmp_path / "output").read_text()
    assert status == 0, printed
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    assert f"next: python {ROOT / 'tools/linear_probe.py'} encoder=run" in printed


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

    def page_faults(**variables: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        args = [sys.executable, "-c", script]
        return int(subprocess.run(args, capture_output=True, text=True, env=environment | variables).stdout)

    assert page_faults() < 100
    assert page_faults(MALLOC_TOP_PAD_="0") > 1000  # 50 MB are 12,207 pages
