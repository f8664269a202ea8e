"""Where a run's time goes: the stages, each timed alone, which of them is the bottleneck, and what to set.

On a CPU the workers and the step share the cores, so a run is slower there than its stages.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice, repeat
from statistics import mean, median
from typing import Any

import torch
from pytorch_lightning.callbacks import LambdaCallback
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
from ssl_vit.train.trainer import data_of, has_bf16, precision_of, quiet_lightning, trainer_of

WARM_UP, BATCHES = 2, 6  # of each stage: not timed, and timed
ROOMY = 0.45  # a step that takes less than this fraction of a GPU's memory has room for twice the images
MEANING = {
    "decode": "read and decode the images, on one core",
    "crops": "cut and resize them, on one core",
    "hand-over": "what the workers take beyond that, all of them together",
    "transfer": "to the device",
    "color": "colors and normalization, on the device",
    "step": "forward, backward, optimizer, and what the method does after them",
}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds a batch, and what advice depends on.

    Args:
        stages: seconds of each, in the order of MEANING; the first two on one core.
        supply: seconds from one batch of the loader to the next, where nobody keeps it waiting.
        in_memory: the images are decoded already. decoded_gb: of all images, estimated from one batch.
        short_side: of those images, their median, in pixels. crop_side: that of the training image.
        bf16: whether the device multiplies matrices in it.
        memory_fraction: of the GPU's memory, most of it that was in use at once; None on a CPU.
    """

    stages: dict[str, float]
    supply: float
    batch_size: int
    workers: int
    cores: int
    in_memory: bool
    decoded_gb: float
    short_side: int
    crop_side: int
    precision: str
    bf16: bool
    compiled: bool
    memory_fraction: float | None

    @property
    def demand(self) -> float:
        """Seconds a batch on the device."""
        return self.stages["transfer"] + self.stages["color"] + self.stages["step"]

    @property
    def seconds(self) -> float:
        """A batch of the run: workers read while the device works; without any, one waits for the other."""
        return max(self.supply, self.demand) if self.workers else self.supply + self.demand

    @property
    def bottleneck(self) -> str:
        """The stage that limits the run: the largest of the slower half, images or device."""
        if self.supply <= self.demand:
            return max(("transfer", "color", "step"), key=self.stages.__getitem__)
        workers = {"decode": max(1, self.workers), "crops": max(1, self.workers), "hand-over": 1}
        return max(workers, key=lambda name: self.stages[name] / workers[name])

    def advice(self) -> list[str]:
        """What to set, best first; empty where no option helps."""
        if self.supply <= self.demand:
            used = 1.0 if self.memory_fraction is None else self.memory_fraction
            why = f"the step takes {100 * used:.0f} % of the memory; the learning rate follows"
            slow = "the first steps take a minute, the others less than now"
            full, eager = self.precision == "32-true", self.memory_fraction is not None and not self.compiled
            rules = {
                "trainer.precision=bf16-mixed: the device multiplies matrices in it": self.bf16 and full,
                f"trainer.compile=true: {slow}": eager,
                f"data.batch_size={2 * self.batch_size}: {why}": used < ROOMY,
            }
        else:
            on_one_core, cores = self.stages["decode"] + self.stages["crops"], self.cores
            if self.bottleneck == "hand-over" and self.workers and on_one_core < self.supply:
                return ["data.workers=0: these images are sooner made than handed over"]
            decodes, enough = self.bottleneck == "decode" and not self.in_memory, math.ceil(on_one_core / self.demand)
            keep = f"decodes once and keeps the images: {self.decoded_gb:.1f} GB, if the machine has them"
            size = f"{2 * self.crop_side} pixels; it is {self.short_side}, and the encoder sees {self.crop_side}"
            large = self.short_side > 2 * self.crop_side
            rules = {
                f"data.cache_gb={math.ceil(self.decoded_gb)} {keep}": decodes,
                f"resize the images beforehand, to a short side of {size}": decodes and large,
                f"data.workers={min(enough, cores)}: there are {cores} cores": self.workers < min(enough, cores),
                f"a machine with {enough} cores for this device: there are {cores}": enough > cores,
            }
        return [line for line, applies in rules.items() if applies]


def _now() -> float:
    """The time in seconds, once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(work: Callable[[], object]) -> float:
    """Of one call, the device's work included."""
    start = _now()
    work()
    return _now() - start


def measure(config: RunConfig, method_name: str) -> Measured:
    """Time the stages of a run, on one device. ValueError: it has no tokenizer, or its images are a stream."""
    if config.data.streams:
        raise ValueError(f"suite=doctor reads images by number, data.source={config.data.source} is a stream")
    if isinstance(config, TokenizedRun) and not config.tokenizer:
        raise ValueError("suite=doctor trains no tokenizer: give tokenizer=; python tools/train_tokenizer.py makes one")
    method = method_named(method_name).from_run(config)
    data = data_of(config, method.transform())
    loader = data.train_dataloader()
    dataset: Any = loader.dataset
    index = [key[1] for key in islice(loader.sampler, loader.batch_size)]
    decode, crops = worker_seconds(dataset, index)
    supply, batch = supply_seconds(loader)
    hand_over = max(0.0, supply - (decode + crops) / max(1, loader.num_workers))
    transfer, color, batch = device_seconds(data, batch)
    step, memory_fraction = step_seconds(config, method, batch)
    sizes = [dataset.source.size(i) for i in index]
    return Measured(
        stages=dict(zip(MEANING, (decode, crops, hand_over, transfer, color, step), strict=True)),
        supply=supply,
        batch_size=len(index),
        workers=loader.num_workers,
        cores=cores(),
        in_memory=isinstance(dataset.source, Cached),
        decoded_gb=mean(height * width for height, width in sizes) * config.encoder.channels * len(dataset) / 1e9,
        short_side=int(median(min(size) for size in sizes)),
        crop_side=min(config.encoder.height_width),
        precision=precision_of(config.trainer),
        bf16=has_bf16(),
        compiled=config.trainer.compile,
        memory_fraction=memory_fraction,
    )


def worker_seconds(dataset: AugmentedDataset, index: list[int]) -> tuple[float, float]:
    """Of decoding a batch and of its crops, on one core. Reading from the disk counts as decoding."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        decode, again = (_seconds(lambda: [dataset.source.read(i) for i in index]) for _ in range(2))
        whole = median(_seconds(lambda: dataset.__getitems__([(0, i) for i in index])) for _ in range(WARM_UP + 1))
    finally:
        torch.set_num_threads(threads)
    return decode, max(0.0, whole - again)


def supply_seconds(loader: TrainLoader) -> tuple[float, Batch]:
    """From batch to batch, once every worker has delivered its first ones; and a batch. Epoch follows epoch."""
    workers, batches = max(1, loader.num_workers), chain.from_iterable(repeat(loader))
    for _ in range(1 + workers):
        next(batches)
    # Of w workers w batches come at about the same time, so the median is over means of as many.
    waits = [_seconds(lambda: [next(batches) for _ in range(workers)]) / workers for _ in range(BATCHES)]
    return median(waits), next(batches)


def device_seconds(data: ImageDataModule, batch: Batch) -> tuple[float, float, Batch]:
    """Of a batch's way to the device and of its color there; and the batch, ready for the method."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved = move_data_to_device(batch, device)
    transfer = median(_seconds(lambda: move_data_to_device(batch, device)) for _ in range(BATCHES))
    color = median(_seconds(lambda: data.on_after_batch_transfer(moved, 0)) for _ in range(BATCHES))
    return transfer, color, data.on_after_batch_transfer(moved, 0)


def step_seconds(config: RunConfig, method: Method, batch: Batch) -> tuple[float, float | None]:
    """Of a training step on one batch, as the run has it but on one device; and Measured.memory_fraction."""
    if config.trainer.compile:
        compile_blocks(method)
    times = list[float]()
    now, stop = lambda *_: times.append(_now()), lambda trainer, _: setattr(trainer, "should_stop", True)
    clock = LambdaCallback(on_train_batch_start=now, on_train_batch_end=now, on_train_epoch_end=stop)
    trainer = trainer_of(
        config.trainer, min_epochs=1, devices=1, callbacks=[clock], logger=False, enable_checkpointing=False
    )
    if on_gpu := torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(method, DataLoader([batch] * (WARM_UP + BATCHES), batch_size=None, collate_fn=whole_batch))  # pyright: ignore
    seconds = [end - start for start, end in zip(times[::2], times[1::2], strict=True)][WARM_UP:]
    return mean(seconds), torch.cuda.max_memory_reserved() / torch.cuda.mem_get_info()[1] if on_gpu else None


def run(config: RunConfig, method_name: str) -> None:
    """Print the stages, the bottleneck and what to set; last one JSON line with it all."""
    quiet_lightning()
    measured = measure(config, method_name)
    print(f"{'stage':12}{'ms a batch':>12}{'images/s':>12}")
    for name, seconds in measured.stages.items():
        rate = f"{measured.batch_size / seconds:,.0f}" if seconds > 1e-6 else "-"
        print(f"{name:12}{1000 * seconds:12.1f}{rate:>12}  {MEANING[name]}")
    slower = "the images" if measured.supply > measured.demand else "the device"
    rate, advice = measured.batch_size / measured.seconds, measured.advice()
    rates = f"{rate:,.0f} images/s with data.workers={measured.workers}"
    print(f"\nbottleneck   {measured.bottleneck}: the run waits for {slower}, {rates}")
    for line in advice or ["nothing: no option makes this stage faster"]:
        print(f"to set       {line}")
    line = {
        "suite": "doctor",
        "method": method_name,
        "recipe": config.recipe,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "milliseconds": {name: round(1000 * seconds, 2) for name, seconds in measured.stages.items()},
        "supply_ms": round(1000 * measured.supply, 2),
        "images_per_second": round(rate, 1),
        "bottleneck": measured.bottleneck,
        "advice": advice,
        **{name: getattr(measured, name) for name in ("precision", "batch_size", "workers", "cores")},
    }
    print(json.dumps(line), flush=True)
