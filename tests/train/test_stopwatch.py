"""`--dry-run --measure`: the run's own steps are timed on its own images, and nothing is left behind."""

import pytest
from small_runs import args_of

from ssl_vit.config.checks import ConfigError
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import RunConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import TokenizerRun
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.train import stopwatch
from ssl_vit.train.stopwatch import measure_steps

QUICK = ("trainer.logger=none", "trainer.log_every_steps=1")
TOKENIZER = ("recipe=digits", "tokenizer.width=8", "tokenizer.residuals=1", "data.batch_size=64")
TUNED = ("recipe=digits", "data.source=digits", "data.batch_size=1149", "trainer.max_epochs=1", "encoder=run")


@pytest.fixture(autouse=True)
def few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stopwatch, "WARM_UP", 1)
    monkeypatch.setattr(stopwatch, "MOST", 2)


@pytest.mark.parametrize(
    ("config_class", "args", "steps"),
    [
        (RunConfig, args_of("mae", *QUICK), 15),
        (RunConfig, args_of("dino", "data.global_batch=256", "data.batch_size=128", *QUICK), 18),
        (RunConfig, args_of("mae", "trainer.max_steps=7", "trainer.devices=2", *QUICK), 6),
        (TokenizerRun, [*TOKENIZER, *QUICK], 22 * 60),
        (FinetuneRun, [*TUNED, *QUICK], 1),
    ],
)
def test_steps_are_timed_and_nothing_is_written(tmp_path, config_class: type[TrainingRun], args, steps):
    network = VisionTransformer(embed_dim=8, depth=1, num_heads=1, patch_size=4, image_size=8)
    save_encoder(network, tmp_path / "run", mean=[0.5] * 3, std=[0.5] * 3)
    before = sorted(tmp_path.rglob("*"))
    resolved = resolve(config_class, args)
    measured, time, memory = measure_steps(resolved.config, resolved.name)
    assert "s a step: " in measured
    assert ("2 batches of it" in measured) == ("data.global_batch=256" in args)
    assert ("as one of 2 processes" in measured) == ("trainer.devices=2" in args)
    assert f"minutes for {steps:,} steps" in time
    assert 0.05 < float(memory.split()[2]) < 100
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("config_class", "args", "line"),
    [
        (TokenizerRun, ["recipe=digits-kmeans"], "--measure times steps, and k-means has none"),
        (RunConfig, ["method=beit"], "--measure trains no tokenizer: give tokenizer="),
    ],
)
def test_what_cannot_be_timed_is_one_line(config_class, args, line):
    resolved = resolve(config_class, args)
    with pytest.raises(ConfigError, match=f"^{line}"):
        measure_steps(resolved.config, resolved.name)
