"""Where a run's time goes: each stage on its own images and device, which of them holds it up, and what to set.

A stage is timed alone. On a CPU the workers and the step share the cores, so a run is slower there than its parts.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice, repeat
from statistics import mean, median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import move_data_to_device  # pyright: ignore[reportPrivateImportUsage]
from torch.utils.data import DataLoader

from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.schema import RunConfig
from ssl_vit.data.cache import Cached, cores
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.dataset import AugmentedDataset, Batch
from ssl_vit.data.loader import TrainLoader, whole_batch
from ssl_vit.methods import method_named
from ssl_vit.methods.base import Method
from ssl_vit.models.blocks import compile_blocks
from ssl_vit.train.trainer import data_of, has_bf16, precision_of, quiet_lightning

WARM_UP, BATCHES = 2, 6
"""Batches of each stage that are not timed, and that are."""
ROOMY = 0.45
"""A step that takes less than this share of a GPU's memory has room for twice the images."""
MEANING = {
    "decode": "read and decode the images, on one core",
    "crops": "cut and resize them, on one core",
    "hand-over": "what the workers take beyond that, all of them together",
    "transfer": "to the device",
    "color": "colors and normalization, on the device",
    "step": "forward, backward, optimizer, and what the method does after them",
}


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was measured; seconds a batch, and what advice depends on."""

    batch_size: int
    decode: float
    crops: float
    supply: float
    """From one batch of the loader to the next, where nobody keeps it waiting."""
    transfer: float
    color: float
    step: float
    workers: int
    cores: int
    in_memory: bool
    """The images are decoded already."""
    decoded_gb: float
    """Of all images, by those that were looked at."""
    short_side: int
    """Of those images, their median, in pixels."""
    view_side: int
    """Shorter side of the training image, in pixels."""
    precision: str
    bf16: bool
    """Whether the device multiplies matrices in it."""
    compiled: bool
    memory_fraction: float | None
    """Of the GPU's memory, at most; None on a CPU."""

    @property
    def stages(self) -> dict[str, float]:
        """Seconds a batch, in the order of MEANING."""
        hand_over = max(0.0, self.supply - (self.decode + self.crops) / max(1, self.workers))
        seconds = (self.decode, self.crops, hand_over, self.transfer, self.color, self.step)
        return dict(zip(MEANING, seconds, strict=True))

    @property
    def demand(self) -> float:
        """Seconds a batch on the device."""
        return self.transfer + self.color + self.step

    @property
    def seconds(self) -> float:
        """A batch of the run: workers read while the device works; without any, one waits for the other."""
        return max(self.supply, self.demand) if self.workers else self.supply + self.demand

    @property
    def bottleneck(self) -> str:
        """The stage that holds the run up: the largest on the slower side, images or device."""
        stages = self.stages
        names = ("decode", "crops", "hand-over") if self.supply > self.demand else ("transfer", "color", "step")
        fraction = {"decode": max(1, self.workers), "crops": max(1, self.workers)}
        return max(names, key=lambda name: stages[name] / fraction.get(name, 1))

    def advice(self) -> list[str]:
        """What to set, best first; empty where no setting helps."""
        return self._for_images() if self.supply > self.demand else self._for_the_device()

    def _for_images(self) -> list[str]:
        said = []
        if self.bottleneck == "hand-over" and self.workers and self.decode + self.crops < self.supply:
            return ["data.workers=0: these images are sooner made than handed over"]
        if self.bottleneck == "decode" and not self.in_memory:
            need = f"{self.decoded_gb:.1f} GB, if the machine has them"
            said.append(f"data.cache_gb={math.ceil(self.decoded_gb)} decodes once and keeps the images: {need}")
            if self.short_side > 2 * self.view_side:
                sides = f"{2 * self.view_side} pixels; it is {self.short_side}, and the encoder sees {self.view_side}"
                said.append(f"resize the images beforehand, to a short side of {sides}")
        enough = math.ceil((self.decode + self.crops) / self.demand)
        if self.workers < min(enough, self.cores):
            said.append(f"data.workers={min(enough, self.cores)}: there are {self.cores} cores")
        if enough > self.cores:
            said.append(f"a machine with {enough} cores for this device: there are {self.cores}")
        return said

    def _for_the_device(self) -> list[str]:
        said = []
        if self.bf16 and self.precision == "32-true":
            said.append("trainer.precision=bf16-mixed: the device multiplies matrices in it")
        if self.memory_fraction is not None and not self.compiled:
            said.append("trainer.compile=true: the first steps take a minute, the others less than now")
        if self.memory_fraction is not None and self.memory_fraction < ROOMY:
            why = f"the step takes {100 * self.memory_fraction:.0f} % of the memory; the learning rate follows"
            said.append(f"data.batch_size={2 * self.batch_size}: {why}")
        return said


class Clock(pl.Callback):
    """Seconds of each training batch that is on the device, the device's work included; ends the fit after an epoch.

    The trainer keeps the run's own number of epochs, on which its schedules depend.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        _wait()
        self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        _wait()
        self.seconds.append(time.perf_counter() - self._since)
        trainer.should_stop = True


def _wait() -> None:
    """Until the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(work: Callable[[], object]) -> float:
    """Of one call, the device's work included."""
    _wait()
    start = time.perf_counter()
    work()
    _wait()
    return time.perf_counter() - start


def examine(config: RunConfig, method_name: str) -> Findings:
    """Time the stages of a run, on one device.

    Raises:
        ValueError: a method that predicts tokens has no tokenizer; the images cannot be found, or are a stream.
    """
    if config.data.streams:
        raise ValueError(f"suite=doctor looks images up by number, data.source={config.data.source} is a stream")
    if isinstance(config, TokenizedRun) and not config.tokenizer:
        raise ValueError("suite=doctor trains no tokenizer: give tokenizer=; python tools/train_tokenizer.py makes one")
    method = method_named(method_name).from_run(config)
    data = data_of(config, method)
    loader = data.train_dataloader()
    transform: Any = loader.dataset
    index = [key[1] for key in islice(loader.sampler, loader.batch_size)]
    decode, crops = worker_seconds(transform, index)
    supply, batch = delivery(loader)
    transfer, color, batch = device_seconds(data, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    step = step_seconds(config, method, batch)
    sizes = [transform.source.size(i) for i in index]
    return Findings(
        batch_size=len(index),
        decode=decode,
        crops=crops,
        supply=supply,
        transfer=transfer,
        color=color,
        step=step,
        workers=loader.num_workers,
        cores=cores(),
        in_memory=isinstance(transform.source, Cached),
        decoded_gb=mean(height * width for height, width in sizes) * config.encoder.channels * len(transform) / 1e9,
        short_side=int(median(min(size) for size in sizes)),
        view_side=min(config.encoder.height_width),
        precision=precision_of(config.trainer),
        bf16=has_bf16(),
        compiled=config.trainer.compile,
        memory_fraction=memory_fraction(),
    )


def worker_seconds(transform: AugmentedDataset, index: list[int]) -> tuple[float, float]:
    """Of decoding a batch and of its crops, on one core. Reading from the disk counts as decoding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        decode, again = (_seconds(lambda: [transform.source.read(i) for i in index]) for _ in range(2))
        whole = median(_seconds(lambda: transform.__getitems__([(0, i) for i in index])) for _ in range(WARM_UP + 1))
    finally:
        torch.set_num_threads(threads)
    return decode, max(0.0, whole - again)


def delivery(loader: TrainLoader) -> tuple[float, Batch]:
    """Seconds from batch to batch, once every worker has delivered its first ones; and a batch.

    Of w workers w batches come at about the same time, so the median is over means of as many. Epoch follows epoch.
    """
    workers = max(1, loader.num_workers)
    batches = chain.from_iterable(repeat(loader))
    for _ in range(1 + workers):
        next(batches)
    waits = [_seconds(lambda: [next(batches) for _ in range(workers)]) / workers for _ in range(BATCHES)]
    return median(waits), next(batches)


def device_seconds(data: ImageDataModule, batch: Batch) -> tuple[float, float, Batch]:
    """Of a batch's way to the device and of its color there; and the batch, ready for the method."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved, ready, transfer, color = batch, batch, [], []
    for _ in range(BATCHES):
        start = time.perf_counter()
        moved = move_data_to_device(batch, device)
        _wait()
        middle = time.perf_counter()
        ready = data.on_after_batch_transfer(moved, 0)
        _wait()
        transfer.append(middle - start)
        color.append(time.perf_counter() - middle)
    return median(transfer), median(color), ready


def step_seconds(config: RunConfig, method: Method, batch: Batch) -> float:
    """Of a training step on one batch again and again, in Lightning's trainer, as the run has it but on one device."""
    if config.trainer.compile:
        compile_blocks(method)
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=config.trainer.max_epochs,
        min_epochs=1,
        devices=1,
        precision=precision_of(config.trainer),  # pyright: ignore[reportArgumentType]
        accumulate_grad_batches=config.trainer.accumulate,
        log_every_n_steps=config.trainer.log_every_steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(method, DataLoader([batch] * (WARM_UP + BATCHES), batch_size=None, collate_fn=whole_batch))  # pyright: ignore
    return mean(clock.seconds[WARM_UP:])


def memory_fraction() -> float | None:
    """Most of the GPU's memory that was in use at once, as a share; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory


def table(findings: Findings) -> list[str]:
    """The stages for people."""
    lines = [f"{'stage':12}{'ms a batch':>12}{'images/s':>12}"]
    for name, seconds in findings.stages.items():
        rate = f"{findings.batch_size / seconds:,.0f}" if seconds > 1e-6 else "-"
        lines.append(f"{name:12}{1000 * seconds:12.1f}{rate:>12}  {MEANING[name]}")
    return lines


def run(config: RunConfig, method_name: str) -> None:
    """Print a table, what holds the run up and what to set; last one JSON line with it all."""
    quiet_lightning()
    findings = examine(config, method_name)
    print("\n".join(table(findings)))
    where = "the images" if findings.supply > findings.demand else "the device"
    rate, readers = findings.batch_size / findings.seconds, f"data.workers={findings.workers}"
    print(f"\nbottleneck   {findings.bottleneck}: the run waits for {where}, {rate:,.0f} images/s with {readers}")
    advice = findings.advice()
    for line in advice or ["nothing: no setting makes this stage faster"]:
        print(f"to set       {line}")
    line = {
        "suite": "doctor",
        "method": method_name,
        "recipe": config.recipe,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "precision": findings.precision,
        "batch_size": findings.batch_size,
        "workers": findings.workers,
        "cores": findings.cores,
        "milliseconds": {name: round(1000 * seconds, 2) for name, seconds in findings.stages.items()},
        "supply_ms": round(1000 * findings.supply, 2),
        "images_per_second": round(rate, 1),
        "bottleneck": findings.bottleneck,
        "advice": advice,
    }
    print(json.dumps(line), flush=True)
