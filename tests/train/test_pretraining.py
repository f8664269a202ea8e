"""Whole runs, small ones: what they write, what they survive, what they refuse."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_vit.cli.settings import resolve_evaluation, resolve_run
from ssl_vit.config.evaluation_schema import KNNConfig, LinearProbeConfig
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import RunConfig
from ssl_vit.data.dataset import AugmentedDataset
from ssl_vit.methods.mae import MAE
from ssl_vit.models.weights import load_encoder
from ssl_vit.run import files
from ssl_vit.supervised.report import evaluate
from ssl_vit.train.pretraining import pretrain

SMALL = [
    "method=mae",
    "encoder.embed_dim=16",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "method.decoder_embed_dim=16",
    "method.decoder_num_heads=2",
    "encoder.image_size=16",
    "trainer.max_epochs=1",
    "trainer.max_minutes=null",
    "data.batch_size=256",
    "data.workers=0",
]
"""Five steps an epoch."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_VIT_RUN_DIR", raising=False)


DINO = [
    "method=dino",
    "encoder.embed_dim=16",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "method.head_hidden=16",
    "method.head_bottleneck=8",
    "trainer.max_epochs=1",
    "trainer.max_minutes=null",
    "data.workers=0",
]


def run(*args: str, small: list[str] = SMALL) -> Path:
    settings = dict(arg.split("=", 1) for arg in (*small, *args))
    resolved = resolve_run(RunConfig, [f"{key}={value}" for key, value in settings.items()])
    return pretrain(resolved.config, resolved.name)


def make_images(folder: Path, names: list[str], side: int = 40) -> Path:
    noise = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(folder / name)
    return folder


FOLDER = ["data.source=folder", "data.batch_size=4", "encoder.image_size=32", "monitor.every_epochs=1"]


def test_a_run_leaves_what_the_readme_promises(capsys):
    run_dir = run(
        "run_dir=made",
        "trainer.max_steps=8",
        "trainer.log_every_steps=4",
        "monitor.every_epochs=1",
        "trainer.max_epochs=2",
    )
    found = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "checkpoints", "metrics.jsonl", "encoder.safetensors", "encoder.json", "images"} <= found
    config = resolve(RunConfig, ["method=mae", f"recipe={run_dir / 'config.yaml'}"]).config
    assert (config.encoder.embed_dim, config.trainer.max_steps) == (16, 8)
    assert (run_dir / "checkpoints" / "step-0000008.ckpt").exists()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = set().union(*rows)
    wanted = {"train/loss", "train/reconstruction", "train/lr", "throughput/images_per_second", "throughput/data_wait"}
    monitored = {"monitor/feature_std", "monitor/rankme", "monitor/linear_top1", "monitor/knn_top1"}
    assert wanted | monitored <= logged
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload()
    assert wanted | monitored <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["masked | reconstruction | original"]
    shown = capsys.readouterr().out
    for args in (
        "run           made",
        "global batch  256",
        "learning rate",
        "images/s",
        "saved made/encoder.safetensors",
    ):
        assert args in shown
    result = evaluate(resolve_evaluation(LinearProbeConfig, ["encoder=made", "protocol=logreg"]).config)
    assert json.loads((run_dir / "linear_probe.json").read_text()) == result
    assert result["task"] == "linear_probe"
    assert {"top1", "top5", "encoder", "data", "protocol", "seconds"} <= set(result)
    assert set(result["controls"]) == {"random encoder", "raw pixels"}
    assert result["test_images"] == 360
    assert evaluate(resolve_evaluation(KNNConfig, ["encoder=made"]).config)["task"] == "knn"


def test_a_dino_run_leaves_a_diagnosis_attention_and_its_readout(capsys):
    args = ["run_dir=made", "trainer.max_steps=12", "monitor.every_epochs=1", "readout.pool=both", "readout.blocks=1"]
    run_dir = run(*args, small=DINO)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = set().union(*rows)
    figures = ("teacher_entropy", "student_entropy", "kl", "center_norm", "momentum", "teacher_temp", "feature_std")
    assert {f"train/{name}" for name in figures} | {"health", "monitor/knn_top1"} <= logged
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["image | attention of head 1 | attention of head 2"]
    shown = capsys.readouterr().out
    assert any(arg in shown for arg in ("healthy", "not started", "collapse", "too short"))
    assert resolve_evaluation(KNNConfig, ["encoder=made"]).config.pool == "both"
    assert resolve_evaluation(KNNConfig, ["encoder=made", "pool=cls"]).config.pool == "cls"


def test_the_newest_run_is_evaluated_by_default():
    run("trainer.max_steps=1", "monitor.every_epochs=0")
    newest = run("trainer.max_steps=1", "monitor.every_epochs=0")
    assert newest.parent == Path("runs")
    assert newest.name.startswith("mae-digits-")
    os.utime(newest / "encoder.safetensors", (2e9, 2e9))
    assert resolve_evaluation(KNNConfig, []).config.encoder == str(newest)


def test_without_a_run_the_probe_says_how_to_make_one():
    with pytest.raises(FileNotFoundError, match=r"make one with `ssl-vit pretrain method=mae`"):
        resolve_evaluation(KNNConfig, [])


def test_a_plain_folder_without_labels_or_test_split(capsys):
    folder = make_images(Path("images"), [f"{i}.png" for i in range(10)])
    run_dir = run(*FOLDER, f"data.path={folder}")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    logged = set().union(*rows)
    assert "monitor/rankme" in logged
    assert "monitor/linear_top1" not in logged
    with pytest.raises(ValueError, match=r"data.path=images has no labels: give data.path="):
        evaluate(resolve_evaluation(LinearProbeConfig, [f"encoder={run_dir}"]).config)


def test_a_folder_with_one_class_and_one_with_lonely_classes():
    one = make_images(Path("one"), [f"cat/{i}.png" for i in range(6)])
    lonely = make_images(Path("lonely"), [f"{i}/image.png" for i in range(6)])
    for folder in (one, lonely):
        assert (run(*FOLDER, f"data.path={folder}") / "encoder.safetensors").exists()


def test_fewer_images_than_a_batch_and_smaller_than_a_crop():
    folder = make_images(Path("few"), [f"{i}.png" for i in range(3)], side=9)
    run_dir = run(*FOLDER, f"data.path={folder}", "data.batch_size=64")
    assert load_encoder(run_dir).config.image_size == 32


def test_an_unreadable_image_stops_with_its_name_and_keeps_what_is_written():
    folder = make_images(Path("mixed"), [f"{i}.png" for i in range(8)])
    (folder / "5.jpg").write_text("this is no image")
    with pytest.raises(ValueError, match=r"^mixed/5\.jpg is no image that can be read: delete or replace it$"):
        run(*FOLDER, f"data.path={folder}", "run_dir=stopped", "data.on_error=raise")
    assert Path("stopped/config.yaml").exists()


def test_too_many_unreadable_images_stop_with_one_line_and_their_list():
    folder = make_images(Path("mixed"), [f"{i}.png" for i in range(8)])
    (folder / "5.jpg").write_text("this is no image")
    line = (
        r"^1 of 9 images cannot be read, more than data.max_unreadable=0.01 of them, such as mixed/5.jpg \(no known "
        r"image format\); stopped/quarantine.txt lists them: repair them and delete that list, or "
        r"raise data.max_unreadable=$"
    )
    with pytest.raises(ValueError, match=line):
        run(*FOLDER, f"data.path={folder}", "run_dir=stopped")
    assert Path("stopped/quarantine.txt").read_text() == "mixed/5.jpg\tno known image format\n"


def rows_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("on_error", ["replace", "skip"])
def test_a_run_goes_on_without_unreadable_images(on_error):
    """Of the first batch, from which the learning rate is worked out, some images are unreadable too."""
    names = [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(20)]
    whole, mixed = make_images(Path("whole"), names), make_images(Path("mixed"), names)
    unreadable = [name for name in names if int(Path(name).stem) % 3 == 0]
    for name in unreadable:
        (mixed / name).write_bytes(b"")
    args = [
        *FOLDER,
        "trainer.log_every_steps=1",
        "data.max_unreadable=50%",
        f"data.on_error={on_error}",
        "data.cache_gb=0",
    ]
    kept = run(*args, f"data.path={whole}", "run_dir=kept")
    lost = run(*args, f"data.path={mixed}", "run_dir=lost")
    rates = [[row["train/lr"] for row in rows_of(run_dir) if "train/lr" in row] for run_dir in (kept, lost)]
    assert len(rates[0]) == 10
    assert rates[0] == rates[1]
    assert rows_of(kept)[-1].get("data/unreadable_images", 0) == 0
    assert not (kept / "quarantine.txt").exists()
    counts = [row["data/unreadable_images"] for row in rows_of(lost) if "data/unreadable_images" in row]
    assert counts[-1] == len(unreadable)
    listed = (lost / "quarantine.txt").read_text().splitlines()
    assert sorted(listed) == sorted(f"mixed/{name}\tno known image format" for name in unreadable)
    resolved = resolve_run(RunConfig, ["method=mae", "run_dir=lost", "resume=auto", "trainer.max_epochs=2"])
    pretrain(resolved.config, resolved.name)
    assert (lost / "quarantine.txt").read_text().splitlines() == listed
    result = evaluate(resolve_evaluation(KNNConfig, ["encoder=lost"]).config)
    assert result["test_images"] == 8


def test_resume_continues_where_the_run_stopped():
    run("run_dir=whole", "trainer.max_epochs=2", "monitor.every_epochs=0")
    run("run_dir=stopped", "trainer.max_epochs=2", "monitor.every_epochs=0", "trainer.max_steps=5")
    resolved = resolve_run(RunConfig, ["method=mae", "run_dir=stopped", "resume=auto", "trainer.max_steps=null"])
    assert resolved.config.encoder.embed_dim == 16  # the run's own settings
    pretrain(resolved.config, resolved.name)
    assert json.loads(Path("stopped/encoder.json").read_text())["step"] == 10


def place_of(checkpoint: Path) -> dict[str, int]:
    """How far the training images are handed out."""
    loops = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]
    return {name: loops["state_dict"]["combined_loader"][0][name] for name in ("epoch", "images")}


@pytest.mark.parametrize(
    ("stop", "limits", "steps", "place"),
    [
        (2, "trainer.max_steps=null", 5, {"epoch": 0, "images": 1280}),
        pytest.param(2, "trainer.max_steps=4", 4, {"epoch": 0, "images": 1024}, marks=pytest.mark.slow),
        (5, "trainer.max_steps=8 trainer.max_epochs=2", 8, {"epoch": 1, "images": 768}),
        pytest.param(
            5, "trainer.max_steps=null trainer.max_epochs=2", 10, {"epoch": 1, "images": 1280}, marks=pytest.mark.slow
        ),
        (2, "trainer.max_steps=8 trainer.max_epochs=2", 8, {"epoch": 1, "images": 768}),
    ],
)
def test_a_run_that_a_limit_has_stopped_goes_on_with_the_next_batch(stop, limits, steps, place):
    """Lightning counts an epoch as done that trainer.max_steps has cut short: what was left of it was never run."""
    run("run_dir=cut", "monitor.every_epochs=0", f"trainer.max_steps={stop}")
    assert place_of(Path(f"cut/checkpoints/step-{stop:07}.ckpt"))["images"] == stop * 256
    resolved = resolve_run(RunConfig, ["method=mae", "run_dir=cut", "resume=auto", *limits.split()])
    pretrain(resolved.config, resolved.name)
    assert json.loads(Path("cut/encoder.json").read_text())["step"] == steps
    assert place_of(Path(f"cut/checkpoints/step-{steps:07}.ckpt")) == place


def test_a_run_goes_on_while_its_checkpoints_cannot_be_written_and_fails_when_the_last_one_cannot(monkeypatch, caplog):
    """The weights of a run that ends without a checkpoint would be lost: its exit status must not be 0."""
    write, fails = files.write_atomic, {4, 6}

    def full(path: Path, content: bytes, damage: object) -> None:
        if files.step_of(path) in fails:
            raise OSError(28, f"{path} was not written (No space left on device)")
        write(path, content)

    monkeypatch.setattr("ssl_vit.train.checkpoints.write_atomic", full)
    args = ["trainer.max_steps=8", "trainer.max_epochs=2", "trainer.checkpoint_every_steps=2", "monitor.every_epochs=0"]
    run("run_dir=tight", *args)
    assert sorted(path.name for path in Path("tight/checkpoints").iterdir()) == [
        "step-0000002.ckpt",
        "step-0000008.ckpt",
    ]
    assert caplog.text.count("checkpoint: ") == 2
    fails.add(8)
    with pytest.raises(OSError, match=r"step-0000008\.ckpt was not written"):
        run("run_dir=full", *args)
    assert not Path("full/encoder.safetensors").exists()
    assert "resume with the same command and resume=full" in caplog.text


@pytest.mark.parametrize(("where", "kept"), [("between", ["step-0000005.ckpt"]), ("within", [])])
def test_an_error_between_two_steps_leaves_a_checkpoint_and_one_within_a_step_none(monkeypatch, where, kept):
    """Within a step the weights may have moved and their average not yet."""
    calls = []

    def fail(self, *given):
        calls.append(given)
        if len(calls) > 5:
            raise ValueError("the sixth time")
        return original(self, *given)

    owner, name = (AugmentedDataset, "__getitems__") if where == "between" else (MAE, "after_step")
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(ValueError, match="the sixth time"):
        run("run_dir=error", "monitor.every_epochs=0", "data.batch_size=64")
    assert [path.name for path in Path("error/checkpoints").glob("*")] == kept
    assert "the sixth time" in Path("error/error.txt").read_text()


def test_a_damaged_checkpoint_that_is_named_is_refused(caplog):
    run("run_dir=hurt", "trainer.max_steps=4", "trainer.checkpoint_every_steps=2", "monitor.every_epochs=0")
    newest = Path("hurt/checkpoints/step-0000004.ckpt")
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"resume=.*4\.ckpt is damaged \(.*\): give another, or resume=hurt"):
        pretrain(resolve_run(RunConfig, ["method=mae", f"resume={newest}"]).config, "mae")
    pretrain(resolve_run(RunConfig, ["method=mae", "run_dir=hurt", "resume=auto"]).config, "mae")
    assert "step-0000004.ckpt is damaged" in caplog.text
    assert files.damage(newest) == ""


def test_a_checkpoint_of_another_shape_is_one_line():
    run("run_dir=shape", "trainer.max_steps=1", "monitor.every_epochs=0")
    config = Path("shape/config.yaml")
    config.write_text(config.read_text().replace("embed_dim: 16\n  depth", "embed_dim: 32\n  depth"))
    resolved = resolve_run(RunConfig, ["method=mae", "run_dir=shape", "resume=auto", "encoder.embed_dim=32"])
    with pytest.raises(ValueError, match=r"the checkpoint to resume: .* is needed; give the encoder.\* and method.\*"):
        pretrain(resolved.config, resolved.name)


def test_resume_auto_starts_a_run_where_there_is_none(capsys):
    run("run_dir=fresh", "resume=auto", "trainer.max_steps=1", "monitor.every_epochs=0")
    assert "nothing to resume yet: a new run" in capsys.readouterr().out


def test_a_second_run_in_the_same_directory_is_refused():
    run("run_dir=twice", "trainer.max_steps=1", "monitor.every_epochs=0")
    with pytest.raises(FileExistsError, match="run_dir=twice holds a run already: add resume=auto, or name another"):
        run("run_dir=twice", "trainer.max_steps=1")


def test_init_from_starts_with_another_runs_weights():
    first = run("run_dir=first", "trainer.max_steps=1", "monitor.every_epochs=0")
    second = run(
        "run_dir=second",
        "trainer.max_steps=1",
        "monitor.every_epochs=0",
        "init_from=first",
        "seed=5",
        "optim.warmup_epochs=0.9",
    )
    torch.testing.assert_close(load_encoder(second).state_dict(), load_encoder(first).state_dict())  # lr 0 at step 0


def test_looking_changes_nothing_that_is_learned():
    weights = []
    for every in (0, 1):
        run_dir = run(f"run_dir=look{every}", f"monitor.every_epochs={every}", "trainer.max_epochs=2")
        weights.append(load_encoder(run_dir).state_dict())
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)


def test_a_time_limit_that_does_not_bind_changes_nothing():
    weights = [
        load_encoder(
            run(f"run_dir=limit-{limit}", f"trainer.max_minutes={limit}", "monitor.every_epochs=0")
        ).state_dict()
        for limit in ("null", 30)
    ]
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)


def test_a_time_limit_ends_the_run_and_says_what_it_has_cut_off(capsys):
    run_dir = run("run_dir=timed", "trainer.max_epochs=100000", "trainer.max_minutes=0.02", "monitor.every_epochs=0")
    assert (run_dir / "encoder.safetensors").exists()
    done, planned = (json.loads((run_dir / "encoder.json").read_text())[name] for name in ("step", "planned_steps"))
    assert planned == 500_000
    line = f"stopped by trainer.max_minutes after {done:,} of 500,000 planned steps: figures of the recipe are not to"
    assert line in capsys.readouterr().out


def test_gray_images_of_one_channel():
    folder = make_images(Path("gray"), [f"{i}.png" for i in range(5)])
    gray = ["encoder.channels=1", "data.mean=[0.5]", "data.std=[0.25]"]
    assert load_encoder(run(*FOLDER, f"data.path={folder}", *gray)).config.channels == 1
