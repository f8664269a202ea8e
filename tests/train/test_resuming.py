"""A run that is resumed with other settings: applied and named, or refused and named; its schedules end as planned."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from small_runs import args_of

from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.checks import ConfigError
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.recipes import read_yaml
from ssl_vit.config.schema import RunConfig
from ssl_vit.config.tokenizer_schema import TokenizerRun
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.optim.schedules import warmup_cosine
from ssl_vit.train.finetuning import finetune
from ssl_vit.train.pretraining import pretrain
from ssl_vit.train.tokenizing import train_tokenizer

QUIET = ["monitor.every_epochs=0", "trainer.keep_checkpoints=99"]
STOP = "resume=whole/checkpoints/step-0000007.ckpt"
"""Of three epochs with five steps of 256 images each: two steps into the second."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_VIT_RUN_DIR", raising=False)


def run(*args: str) -> Path:
    resolved = resolve_run(RunConfig, list(args))
    return pretrain(resolved.config, resolved.name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    settings = ["run_dir=whole", "trainer.checkpoint_every_steps=1", "optim.warmup_epochs=1", *QUIET]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("trained"))
        patch.delenv("SSL_VIT_RUN_DIR", raising=False)
        return run(*args_of("mae", *settings)).resolve()


@pytest.fixture
def whole(trained) -> Path:
    """A copy of the run in the test's own folder."""
    return Path(shutil.copytree(trained, "whole"))


def rates(run_dir: Path) -> list[float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [row["train/lr"] for row in rows if "train/lr" in row]


@pytest.mark.parametrize(
    ("changes", "images", "behind", "planned"),
    [
        (["data.batch_size=128"], 128, 11 + 4, 33),  # of 925 images of the epoch seven batches of 128 are left
        pytest.param(["data.batch_size=512"], 512, 2 + 1, 6, marks=pytest.mark.slow),
        (["trainer.accumulate=2"], 512, 3 + 1, 9),
        pytest.param(["data.batch_size=128", "trainer.accumulate=2"], 256, 6 + 2, 18, marks=pytest.mark.slow),
        (["data.batch_size=128", "trainer.max_epochs=6"], 128, 11 + 4, 66),
    ],
)
def test_a_schedule_goes_on_from_the_fraction_done_and_ends_annealed(whole, changes, images, behind, planned, caplog):
    """Steps have another size then: those done count as many as the images behind would have taken."""
    whole_rates = rates(whole)
    with caplog.at_level(logging.INFO):
        run("method=mae", STOP, *changes)
    resumed, epochs = rates(whole), 6 if "trainer.max_epochs=6" in changes else 3
    assert resumed[:7] == whole_rates[:7]
    peak = read_yaml(Path("whole/config.yaml"))["optim"]["base_lr"]
    expected = [
        warmup_cosine(step / planned, 1.0, peak=float(peak) * images / 256, final=0.0, warmup=1 / epochs)
        for step in range(behind, planned)
    ]
    assert resumed[7:] == pytest.approx(expected, rel=1e-5)  # they are logged in float32
    assert f"{changes[0]} (the run's own is {256 if 'data' in changes[0] else 1}): applied from step 7" in caplog.text
    for change in changes:
        key, value = change.split("=")
        section, name = key.split(".")
        assert str(read_yaml(Path("whole/config.yaml"))[section][name]) == value
    assert json.loads(Path("whole/encoder.json").read_text())["planned_steps"] == 7 + planned - behind


def test_a_run_that_was_changed_is_resumed_again_to_the_bit(whole):
    run("method=mae", STOP, "data.batch_size=128")
    once = rates(whole)
    run("method=mae", "resume=whole/checkpoints/step-0000012.ckpt")
    assert rates(whole) == once


@pytest.mark.slow
def test_steps_that_max_steps_counts_are_not_counted_anew():
    run(*args_of("mae", "run_dir=whole", "trainer.checkpoint_every_steps=1", "trainer.max_steps=12", *QUIET))
    run("method=mae", STOP, "data.batch_size=128", "optim.warmup_epochs=0")
    peak = float(read_yaml(Path("whole/config.yaml"))["optim"]["base_lr"]) / 2
    expected = [warmup_cosine(step / 12, 1.0, peak=peak, final=0.0) for step in range(7, 12)]
    assert rates(Path("whole"))[7:] == pytest.approx(expected, rel=1e-5)


def test_betas_and_weight_decay_are_applied_and_named(whole, caplog):
    before = Path("whole/config.yaml").read_text()
    with caplog.at_level(logging.INFO):
        run("method=mae", STOP, "optim.betas=[0.5,0.6]", "optim.weight_decay=0.25", "trainer.max_steps=8")
    assert "optim.weight_decay=0.25 (the run's own is 0.05): applied from step 7" in caplog.text
    assert "optim.betas=[0.5, 0.6] (the run's own is [0.9, 0.95]): applied from step 7" in caplog.text
    groups = torch.load("whole/checkpoints/step-0000008.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [(group["betas"], group["weight_decay"]) for group in groups] == [((0.5, 0.6), 0.25), ((0.5, 0.6), 0.0)]
    assert Path("whole/config.yaml").read_text() != before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("seed=1", r"seed=1 \(the run's own is 0\)"),
        ("method.mask_ratio=0.5", r"method.mask_ratio=0.5 \(the run's own is 0.75\)"),
        ("encoder.drop_path=0.1", r"encoder.drop_path=0.1 \(the run's own is 0.2\)"),
        ("encoder.embed_dim=32", r"encoder.embed_dim=32 \(the run's own is 16\)"),
        ("data.std=[1,1,1]", r"data.std=\[1.0, 1.0, 1.0\] \(the run's own is .*\)"),
    ],
)
def test_what_makes_it_another_run_is_refused_and_nothing_is_written(whole, change, line):
    before = {path: path.read_bytes() for path in Path("whole").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=f"^{line}.*: a run that is resumed stays the same. Leave that out, or"):
        run("method=mae", STOP, *change.split())
    assert {path: path.read_bytes() for path in Path("whole").rglob("*") if path.is_file()} == before


def test_a_run_that_began_with_other_weights_is_resumed_too(whole):
    begun = run(*args_of("mae", "run_dir=begun", "init_from=whole", "trainer.max_steps=2", *QUIET))
    run("method=mae", "resume=auto", "run_dir=begun", "trainer.max_steps=3")
    assert json.loads((begun / "encoder.json").read_text())["step"] == 3
    assert read_yaml(begun / "config.yaml")["init_from"] == "whole"


@pytest.mark.slow
def test_fine_tunings_and_tokenizers_stay_the_same_too(caplog):
    encoder = VisionTransformer(embed_dim=16, depth=1, num_heads=2, patch_size=8, image_size=32)
    data = {"source": "digits", "eval_crop": 1.0}
    save_encoder(encoder, "start", data=data, recipe="digits", mean=[0.2] * 3, std=[0.3] * 3)
    short = ["data.batch_size=16", "trainer.max_minutes=null", "data.workers=0", "monitor.every_epochs=0"]
    tuned = ["encoder=start", "run_dir=tuned", *short]
    finetune(resolve_run(FinetuneRun, [*tuned, "trainer.max_steps=1"]).config)
    token = ["tokenizer=dvae", "run_dir=token", *short]
    small = ["tokenizer.width=16", "tokenizer.residuals=1", "tokenizer.vocab_size=8"]
    train_tokenizer(resolve_run(TokenizerRun, [*token, *small, "trainer.max_steps=1"]).config, "dvae")
    again = ["resume=auto", "trainer.max_steps=2", "optim.weight_decay=0.2"]
    with pytest.raises(ConfigError, match=r"^finetune.mixup=0.1 \(the run's own is 0.2\): a run that is resumed"):
        finetune(resolve_run(FinetuneRun, [*tuned, *again, "finetune.mixup=0.1"]).config)
    with pytest.raises(ConfigError, match=r"^tokenizer.kl=0.5 \(the run's own is "):
        train_tokenizer(resolve_run(TokenizerRun, [*token, *again, "tokenizer.kl=0.5"]).config, "dvae")
    with caplog.at_level(logging.INFO):
        finetune(resolve_run(FinetuneRun, [*tuned, *again]).config)
        train_tokenizer(resolve_run(TokenizerRun, [*token, *again]).config, "dvae")
    assert caplog.text.count("optim.weight_decay=0.2 (the run's own is ") == 2
    for folder in ("tuned", "token"):
        checkpoint = torch.load(f"{folder}/checkpoints/step-0000002.ckpt", weights_only=True)
        assert {group["weight_decay"] for group in checkpoint["optimizer_states"][0]["param_groups"]} == {0.2, 0.0}
