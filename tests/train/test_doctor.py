"""Where a run's time goes: the measured stages, the bottleneck and the advice."""

import json
from dataclasses import replace

import pytest
import torch

from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.schema import RunConfig
from ssl_vit.methods.mae import MAE
from ssl_vit.train import doctor
from ssl_vit.train.doctor import MEANING, Measured

DIGITS = ["method=mae", "encoder.embed_dim=16", "encoder.depth=1", "encoder.num_heads=2", "data.batch_size=8"]
SECONDS = {"decode": 0.2, "crops": 0.09, "hand-over": 0.0075, "transfer": 0.01, "color": 0.02, "step": 0.3}
BUSY_DEVICE = Measured(
    batch_size=64,
    stages=SECONDS,
    supply=0.08,
    workers=4,
    cores=8,
    in_memory=False,
    decoded_gb=12.3,
    short_side=600,
    crop_side=224,
    precision="bf16-mixed",
    bf16=True,
    compiled=True,
    memory_fraction=0.8,
)


def timed(measured: Measured, seconds: dict[str, float], **changes) -> Measured:
    """The same with some stages of other lengths."""
    return replace(measured, stages=measured.stages | seconds, **changes)


FAST_DEVICE = timed(BUSY_DEVICE, {"step": 0.02})  # which needs six workers


@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_on_digits_is_measured(capsys, workers):
    resolved = resolve_run(RunConfig, [*DIGITS, f"data.workers={workers}"])
    doctor.run(resolved.config, resolved.name)
    *people, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert list(result["milliseconds"]) == list(MEANING)
    assert all(value >= 0 for value in result["milliseconds"].values())
    assert result["milliseconds"]["step"] > 0
    assert result["bottleneck"] in MEANING
    assert (result["batch_size"], result["workers"]) == (8, workers)
    assert [text.split()[0] for text in people[: 1 + len(MEANING)]] == ["stage", *MEANING]


def test_steps_are_those_of_the_trainer():
    config = resolve_run(RunConfig, [*DIGITS, "trainer.accumulate=2"]).config
    method = MAE.from_run(config)
    before = method.encoder.norm.weight.clone()
    assert doctor.step_seconds(config, method, {"images": torch.randn(2, 3, 32, 32)})[0] > 0
    assert method.trainer.global_step == (doctor.WARM_UP + doctor.BATCHES) / 2
    assert not torch.equal(method.encoder.norm.weight, before)


def test_no_tokenizer_is_trained():
    with pytest.raises(ValueError, match="suite=doctor trains no tokenizer: give tokenizer=; ssl-vit train_tok"):
        doctor.measure(resolve_run(RunConfig, ["method=beit"]).config, "beit")


def test_workers_read_while_the_device_works_and_without_any_one_waits_for_the_other():
    assert BUSY_DEVICE.seconds == pytest.approx(0.33)
    assert replace(BUSY_DEVICE, workers=0, supply=0.3).seconds == pytest.approx(0.63)


@pytest.mark.parametrize(
    ("measured", "bottleneck", "advice"),
    [
        (BUSY_DEVICE, "step", []),
        (replace(BUSY_DEVICE, precision="32-true"), "step", ["trainer.precision=bf16-mixed"]),
        (replace(BUSY_DEVICE, precision="32-true", bf16=False), "step", []),
        (replace(BUSY_DEVICE, compiled=False), "step", ["trainer.compile=true"]),
        (replace(BUSY_DEVICE, memory_fraction=0.2), "step", ["data.batch_size=128: the step takes 20 % of the memory"]),
        (replace(BUSY_DEVICE, memory_fraction=None, compiled=False), "step", []),
        (timed(BUSY_DEVICE, {"color": 0.5}), "color", []),
        (
            FAST_DEVICE,
            "decode",
            ["data.cache_gb=13", "resize the images beforehand, to a short side of 448 pixels", "data.workers=6"],
        ),
        (replace(FAST_DEVICE, short_side=256), "decode", ["data.cache_gb=13", "data.workers=6"]),
        (timed(FAST_DEVICE, {"decode": 0.0, "crops": 0.29}, in_memory=True), "crops", ["data.workers=6"]),
        (
            timed(FAST_DEVICE, {"decode": 0.1, "crops": 0.19}, cores=4),
            "crops",
            ["a machine with 6 cores for this device"],
        ),
        (
            timed(FAST_DEVICE, {"decode": 0.0, "crops": 0.02, "hand-over": 0.095}, supply=0.1),
            "hand-over",
            ["data.workers=0"],
        ),
    ],
)
def test_the_bottleneck_and_what_to_set(measured, bottleneck, advice):
    assert measured.bottleneck == bottleneck
    lines = measured.advice()
    assert len(lines) == len(advice)
    for line, beginning in zip(lines, advice, strict=True):
        assert line.startswith(beginning)
