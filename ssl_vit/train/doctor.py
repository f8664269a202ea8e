"""Where a run's time goes: the stages, each timed alone, which of them is the bottleneck, and what to set.

On a CPU the workers and the step share the cores, so a run is slower there than its stages.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice, pairwise, repeat
from statistics import mean, median
from typing import Any

import torch
from pytorch_lightning.callbacks import LambdaCallback
from pytorch_lightning.utilities import move_data_to_device  # pyright: ignore[reportPrivateImportUsage]
from torch.utils.data import DataLoader

from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.schema import RunConfig
from ssl_vit.data.cache import Cached, cores
from ssl_vit.data.dataset import Batch
from ssl_vit.data.loader import whole_batch
from ssl_vit.methods import method_named
from ssl_vit.methods.base import Method
from ssl_vit.models.blocks import compile_blocks
from ssl_vit.run.launch import typed
from ssl_vit.train.plan import bf16_unit, precision_of, require_possible
from ssl_vit.train.trainer import data_of, quiet_lightning, trainer_of

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
    """Seconds a batch, and what advice depends on."""

    stages: dict[str, float]  # seconds of each, in the order of MEANING; the first two on one core
    supply: float  # seconds from one batch of the loader to the next, where nobody keeps it waiting
    batch_size: int
    workers: int
    cores: int
    in_memory: bool  # the images are decoded already
    decoded_gb: float  # of all images, estimated from one batch
    short_side: int  # of those images, their median, in pixels
    crop_side: int  # that of the training image
    precision: str
    bf16: bool  # whether the device multiplies matrices in it
    compiled: bool
    memory_fraction: float | None  # of the GPU's memory, most of it that was in use at once; None on a CPU

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


def now() -> float:
    """The time in seconds, once the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _seconds(work: Callable[[], object], times: int = 1) -> float:
    """Of one call, the device's work included; of several their median."""
    marks = [now()]
    for _ in range(times):
        work()
        marks.append(now())
    return median(end - start for start, end in pairwise(marks))


def measure(config: RunConfig, method_name: str) -> Measured:
    """Time the stages of a run, on one device. ValueError: it has no tokenizer, or its images are a stream."""
    if config.data.streams:
        raise ValueError(f"suite=doctor reads images by number, data.source={config.data.source} is a stream")
    if isinstance(config, TokenizedRun) and not config.tokenizer:
        raise ValueError(f"suite=doctor trains no tokenizer: give tokenizer=; {typed('train_tokenizer')} makes one")
    require_possible(config)
    method = method_named(method_name).from_run(config)
    data = data_of(config, method.transform())
    loader = data.train_dataloader()
    dataset: Any = loader.dataset
    index = [key[1] for key in islice(loader.sampler, loader.batch_size)]
    threads, workers = torch.get_num_threads(), max(1, loader.num_workers)
    torch.set_num_threads(1)  # as in a worker
    try:  # reading from the disk counts as decoding
        decode, again = (_seconds(lambda: [dataset.source.read(i) for i in index]) for _ in range(2))
        crops = max(0.0, _seconds(lambda: dataset.__getitems__([(0, i) for i in index]), WARM_UP + 1) - again)
    finally:
        torch.set_num_threads(threads)
    batches = chain.from_iterable(repeat(loader))  # epoch follows epoch
    for _ in range(1 + workers):  # until every worker has delivered its first ones
        next(batches)
    # Of w workers w batches come at about the same time, so the median is over means of as many.
    supply = _seconds(lambda: [next(batches) for _ in range(workers)], BATCHES) / workers
    hand_over, batch = max(0.0, supply - (decode + crops) / workers), next(batches)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    moved = move_data_to_device(batch, device)
    transfer = _seconds(lambda: move_data_to_device(batch, device), BATCHES)
    color = _seconds(lambda: data.on_after_batch_transfer(moved, 0), BATCHES)
    step, memory_fraction = step_seconds(config, method, data.on_after_batch_transfer(moved, 0))
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
        bf16=bool(bf16_unit()),
        compiled=config.trainer.compile,
        memory_fraction=memory_fraction,
    )


def step_seconds(config: RunConfig, method: Method, batch: Batch) -> tuple[float, float | None]:
    """Of a training step on one batch, as the run has it but on one device; and Measured.memory_fraction."""
    if config.trainer.compile:
        compile_blocks(method)
    times = list[float]()
    mark, stop = lambda *_: times.append(now()), lambda trainer, _: setattr(trainer, "should_stop", True)
    clock = LambdaCallback(on_train_batch_start=mark, on_train_batch_end=mark, on_train_epoch_end=stop)
    trainer = trainer_of(
        config.trainer, min_epochs=1, devices=1, callbacks=[clock], logger=False, enable_checkpointing=False
    )
    if on_gpu := torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.fit(method, DataLoader([batch] * (WARM_UP + BATCHES), batch_size=None, collate_fn=whole_batch))  # pyright: ignore
    seconds = [end - start for start, end in pairwise(times)][2 * WARM_UP :: 2]
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
    print(f"\nbottleneck   {measured.bottleneck}: the run waits for {slower}, ", end="")
    print(f"{rate:,.0f} images/s with data.workers={measured.workers}")
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
