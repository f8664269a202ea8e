"""data.global_batch: a step has as many images on any number of processes, and the same learning rate."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import args_of

from ssl_vit.config.checks import ConfigError
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import DataConfig, RunConfig, TrainerConfig
from ssl_vit.config.tokenizer_schema import TokenizerRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.train import plan
from ssl_vit.train.plan import plan_lines, settled
from ssl_vit.train.pretraining import pretrain


def run_of(global_batch: int, most: int = 64, devices: int = 1, machines: int = 1) -> RunConfig:
    data = DataConfig(source="digits", global_batch=global_batch, batch_size=most)
    return RunConfig(data=data, trainer=TrainerConfig(devices=devices, num_nodes=machines))


@pytest.mark.parametrize(
    ("run", "batch", "accumulate"),
    [
        (run_of(4096, 64, 8), 64, 8),
        (run_of(4096, 64, 8, 8), 64, 1),
        (run_of(4096, 512, 8), 512, 1),
        (run_of(4096, 64, 8, 64), 8, 1),
        (run_of(1024, 48, 8), 32, 4),
        (run_of(1000, 64), 50, 20),
        (run_of(7, 64), 7, 1),
    ],
)
def test_batch_and_accumulation_follow_from_the_processes(run, batch, accumulate):
    made = settled(run)
    assert (made.data.batch_size, made.trainer.accumulate) == (batch, accumulate)
    assert batch * accumulate * run.trainer.devices * run.trainer.num_nodes == run.data.global_batch
    assert (run.data.batch_size, run.trainer.accumulate) != (batch, accumulate) or accumulate == 1  # stays as typed


@pytest.mark.parametrize(
    ("run", "works"),
    [
        (run_of(1000, 64, 6), (990, 1008)),
        (run_of(97, 64), (96, 98)),  # or 97 batches of one image
        (run_of(5, 64, 8), (8,)),
        (run_of(4099, 64, 8, 2), (4096, 4128)),
    ],
)
def test_what_cannot_be_divided_is_one_line_with_the_numbers_that_can(run, works):
    with pytest.raises(ConfigError, match=rf"^data.global_batch={run.data.global_batch} must be \d") as caught:
        settled(run)
    assert str(caught.value).endswith(f": {' or '.join(map(str, works))}")
    for number in works:
        settled(run_of(number, 64, run.trainer.devices, run.trainer.num_nodes))


def test_torchrun_says_how_many_processes_there_are(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    run = RunConfig(data=DataConfig(source="digits", global_batch=512, batch_size=32))
    assert (settled(run).data.batch_size, settled(run).trainer.accumulate) == (32, 4)


def test_a_batch_too_small_for_the_method_is_one_line():
    run = resolve(RunConfig, ["method=dino", "data.global_batch=8", "trainer.devices=8"]).config
    with pytest.raises(ConfigError, match=r"^data.global_batch=8 on 8 processes: data.batch_size=1 must be 2 or more"):
        settled(run)


def test_the_header_has_the_product_and_images_must_suffice():
    lines = plan_lines(resolve(RunConfig, ["method=mae", "data.global_batch=128", "data.batch_size=16"]).config)
    assert "global batch  128 = 16 x 8" in lines
    with pytest.raises(ConfigError, match=r"^data.global_batch=2048 must be at most 1,437, the images of an epoch, or"):
        plan_lines(resolve(RunConfig, ["method=mae", "data.global_batch=2048"]).config)


def test_a_run_and_the_one_that_resumes_it_elsewhere_have_steps_of_so_many_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("data.global_batch=8", "monitor.every_epochs=0", "run_dir=run", "trainer.logger=none")
    for most, steps, resume in ((4, 1, ""), (8, 2, "auto")):
        options = (f"data.batch_size={most}", f"trainer.max_steps={steps}", f"resume={resume}", *common)
        run = pretrain(resolve(RunConfig, args_of("mae", *options)).config, "mae")
        assert "global_batch: 8" in (run / "config.yaml").read_text()
        assert f"batch_size: {most}" in (run / "config.yaml").read_text()
        state = torch.load(run / "checkpoints" / f"step-{steps:07}.ckpt", weights_only=True)
        assert state["pace"]["global_batch"] == 8
        assert state["pace"]["batch"] == [most, 1, 8 // most]


def test_the_module_takes_its_part_from_any_trainer():
    data = ImageDataModule(source="digits", global_batch=48)
    assert data.batch_size == 64  # without a trainer, who knows?
    data.trainer = SimpleNamespace(global_rank=0, world_size=3, accumulate_grad_batches=4)
    assert data.batch_size == 4
    data.trainer.world_size = 5
    with pytest.raises(ValueError, match=r"^data.global_batch=48 must be a multiple of 5 processes x accumulate_grad_"):
        _ = data.batch_size
    data.batch_size = 10  # as Lightning's Tuner sets it
    assert data.batch_size == 10


@pytest.mark.parametrize("devices", [1, 8, 64])
def test_the_recipes_for_imagenet_have_the_papers_batches(devices, monkeypatch):
    monkeypatch.setattr(plan, "devices_of", lambda trainer: devices)
    batches = {"mae": 4096, "dino": 1024, "beit": 2048, "finetune": 1024, "tokenizer": 512}
    for name, wanted in batches.items():
        args = [f"method={name}"] if name in METHODS else []
        config_class = RunConfig if args else FinetuneRun if name == "finetune" else TokenizerRun
        run = settled(resolve(config_class, [*args, "recipe=imagenet"]).config)
        assert run.data.batch_size * run.trainer.accumulate * devices == wanted


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("data.batch_size=256", "161 images make 1 step an epoch at a batch of 256: recipe=auto or data.batch_size=16"),
        ("data.batch_size=64", "161 images make 2 steps an epoch at a batch of 64: recipe=auto or data.batch_size=16"),
        ("data.global_batch=64 data.batch_size=8", "at a batch of 64: recipe=auto or data.global_batch=null"),
        ("data.batch_size=8 trainer.accumulate=4", ""),  # five
        ("data.batch_size=16 trainer.accumulate=4", "at a batch of 64: recipe=auto or trainer.accumulate=1"),
        ("data.batch_size=32", ""),
    ],
)
def test_few_steps_an_epoch_are_no_secret(tmp_path, args, line):
    """161 images and a batch of 256 made one step an epoch, which nothing said."""
    for i in range(161):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
    options = ["method=mae", "data.source=folder", f"data.path={tmp_path}", *args.split()]
    found = [text for text in plan_lines(resolve(RunConfig, options).config) if text.startswith("few steps     ")]
    assert [text.endswith(line) for text in found] == [True] * bool(line)
