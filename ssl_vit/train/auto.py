"""What becomes of settings that are `auto`: from the number and kind of the images, and the time of a step.

docs/auto.md has the rules, each with its reason.
"""

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ssl_vit.config.checks import given_as, shown
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.recipes import load_class
from ssl_vit.config.schema import RunConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import TOKENIZERS
from ssl_vit.config.values import build_config, usual_values
from ssl_vit.data.held_out import HELD_OUT
from ssl_vit.data.sources import count, open_source
from ssl_vit.data.sources.base import Source, UnreadableImageError
from ssl_vit.data.statistics import ImageStatistics, image_statistics
from ssl_vit.methods import method_named
from ssl_vit.models.weights import load_encoder
from ssl_vit.run.launch import is_first_process
from ssl_vit.tokenizers.base import save_tokenizer
from ssl_vit.train.plan import devices_of
from ssl_vit.train.stopwatch import Stopwatch
from ssl_vit.train.tokenizing import config_for
from ssl_vit.train.trainer import data_of

LEAST_STEPS = 10  # of an epoch
MOST_EPOCHS = 800  # of MAE's and BEiT's papers
FINETUNE_STEPS, FINETUNE_EPOCHS = 1000, 100  # about so many, at most so many
PEAK, PEAK_WIDTH, PEAK_BATCH = 1e-3, 256, 64  # AdamW's learning rate, by the digits recipes, and where it was found
SHAPE = ("encoder.embed_dim", "encoder.depth", "encoder.num_heads")
OF_WEIGHTS = (*SHAPE, "encoder.patch_size", "encoder.channels")
NETWORKS = ((128, 4, 4), (192, 6, 6), (256, 8, 8), (384, 12, 6))  # the last is ViT-S
ENOUGH = 1000  # steps that have to fit into the plan, for a network to be chosen
EVALUATIONS = 4  # of a run
WARMED_UP = 0.05  # fraction of the run, as in the papers: 40 of MAE's 800 epochs, 10 of DINO's 300 and of BEiT's 800
Rules = Iterator[tuple[str, Any]]
"""Keys and values. A rule reads what was settled before it."""


def automatic(base: TrainingRun, name: str, values: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """Values for the settings `wanted` of a training whose others have these values; name: of the method or tokenizer.

    ValueError: there are no images to learn them from.
    """
    known, lines, free = values | usual_values(base, wanted), list[str](), [*wanted]
    if source := known.get("init_from", ""):  # whose weights have to fit
        with given_as("init_from", source):
            config = load_encoder(source).config
        known |= {key: getattr(config, key.removeprefix("encoder.")) for key in OF_WEIGHTS if key in wanted}
        free = [key for key in wanted if key not in OF_WEIGHTS]
    data = build_config(base.data, known, "data.")
    images = count(data) or 0  # which judges data.path, too
    if isinstance(base, FinetuneRun):
        images = round(images * (1 if data.test_path else 1 - HELD_OUT))
    else:
        channels = f"{base.patches.section}.channels"
        seen = image_statistics(data, channels=None if channels in free else known[channels])
        images, lines = seen.images, [_described(seen)]
        _settle(known, free, _pixels(base, seen, known))
    if isinstance(base, RunConfig):
        steps = _network(base, name, images, known, free, lines)
    else:
        _settle(known, free, _batch(images, PEAK_WIDTH, known))
        steps = FINETUNE_STEPS
    _settle(known, free, _length(base, images, steps, known))
    found = {key: known[key] for key in wanted}
    if is_first_process():
        settings = " ".join(f"{key}={shown(value)}".replace(", ", ",") for key, value in found.items())
        print(*(f"auto          {line}" for line in (*lines, settings)), sep="\n", flush=True)
    return found


def _settle(known: dict[str, Any], wanted: Iterable[str], rules: Rules) -> None:
    for key, value in rules:
        if key in wanted:
            known[key] = value


def _pixels(base: TrainingRun, images: ImageStatistics, known: dict[str, Any]) -> Rules:
    """What is read of an image, and its patches."""
    own, section = isinstance(base, RunConfig), base.patches.section
    yield "data.mean", images.mean if own else [0.0] * images.channels  # a tokenizer sees pixels as they are
    yield "data.std", images.std if own else [1.0] * images.channels
    yield "data.white_16bit", images.white_16bit or known["data.white_16bit"]
    yield f"{section}.channels", images.channels
    side = min(images.height, images.width)
    largest = min(side, 224 if torch.cuda.is_available() else 128)
    yield f"{section}.patch_size", min(16, max(4, 2 ** int(math.log2(max(1, largest / 8)))))
    patch = known[f"{section}.patch_size"]
    yield f"{section}.image_size", max(2, largest // patch) * patch
    short = min(build_config(base.patches, known, f"{section}.").height_width)
    yield "data.eval_crop", 1.0 if side < 1.14 * short else 0.875  # 256 / 224, of the papers
    yield "method.local_size", max(1, short // 2 // patch) * patch


def _network(
    base: RunConfig, name: str, images: int, known: dict[str, Any], wanted: list[str], lines: list[str]
) -> float:
    """Settle network and batch; how many steps fit into the plan. Larger networks are tried while these are enough."""
    free, minutes = [key for key in SHAPE if key in wanted], known["trainer.plan_minutes"]
    trainer = build_config(base.trainer, known, "trainer.")
    alone = devices_of(trainer) * trainer.num_nodes == 1  # or each would find another time
    timed = "trainer.max_epochs" in wanted and alone
    most, steps = NETWORKS[-1] if torch.cuda.is_available() else NETWORKS[0], 0.0
    for network in (NETWORKS if free else NETWORKS[:1]) if timed else [most]:
        trial = dict(known)
        _settle(trial, free, iter(zip(SHAPE, network, strict=True)))
        width = build_config(base.patches, trial, "encoder.").shape[0]
        _settle(trial, wanted, _batch(images, width, trial))
        if not timed:
            known |= trial
            return ENOUGH
        seconds = seconds_of_step(base, name, trial)
        if steps and 60 * minutes / seconds < ENOUGH:
            break
        steps = 60 * minutes / seconds
        known |= trial
        lines[1:] = [f"{seconds:.2g} seconds a step, by which {minutes:g} minutes have {steps:,.0f} steps"]
        if steps < 2 * ENOUGH:
            break
    return steps


def _batch(images: int, width: int, known: dict[str, Any]) -> Rules:
    """A batch of which an epoch has several, and the learning rate for it."""
    most = 256 if torch.cuda.is_available() else PEAK_BATCH
    yield "data.batch_size", min(most, max(8, 2 ** int(math.log2(max(1, images / LEAST_STEPS)))))
    batch = known["data.batch_size"]
    peak = PEAK * PEAK_WIDTH / width * math.sqrt(batch / PEAK_BATCH)
    yield "optim.base_lr", float(f"{peak * 256 / batch:.2g}")


def _length(base: TrainingRun, images: int, steps: float, known: dict[str, Any]) -> Rules:
    batches, most = max(1, images // known["data.batch_size"]), MOST_EPOCHS
    if isinstance(base, FinetuneRun):
        most = FINETUNE_EPOCHS
    yield "trainer.max_epochs", min(most, max(1, round(steps / batches)))
    epochs = known["trainer.max_epochs"]
    yield "optim.warmup_epochs", round(WARMED_UP * epochs, 2)
    yield "monitor.every_epochs", math.ceil(epochs / EVALUATIONS)


def _described(images: ImageStatistics) -> str:
    colors = {1: "gray", 3: "in color"}.get(images.channels, f"of {images.channels} bands")
    deep = f", 16 bits up to {images.white_16bit:,}" if images.white_16bit else ""
    size = f"{images.height} x {images.width} pixels"
    return f"{images.images:,} images; of {images.sampled} that were read the median is {size}, {colors}{deep}"


class Repeated:
    """Some images of a source, over and over, as a map-style data set: in memory where the whole source fits there.

    Those whose header cannot be read are passed over.
    """

    def __init__(self, source: Source, budget: float, images: int) -> None:
        self.source, self.count, self.kept, sizes = source, images, dict[int, Any](), dict[int, int]()
        for index in range(len(source)):
            with suppress(UnreadableImageError):
                sizes[index] = math.prod(source.size(index)) * source.channels
            if len(sizes) == PEAK_BATCH:
                break
        self.places = [*sizes]
        self.keeps = len(source) * sum(sizes.values()) / max(1, len(sizes)) < budget

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        place = self.places[number % len(self.places)]
        image = self.kept[place] if place in self.kept else self.source.read(place)
        if self.keeps:
            self.kept[place] = image
        return image


def seconds_of_step(base: RunConfig, name: str, known: dict[str, Any]) -> float:
    """Of the method on its images in this process, without evaluations."""
    config = build_config(base, known)
    alone = replace(config.trainer, devices=1, max_epochs=1, max_steps=None, max_minutes=None, compile=False)
    quiet = replace(config.monitor, every_epochs=0, collapse=False, skipped_steps=False)
    config = replace(config, trainer=alone, monitor=quiet, optim=replace(config.optim, warmup_epochs=0), resume="")
    session = Stopwatch(config, name, name)
    session.open()
    source = open_source(config.data, config.encoder.channels, "train")
    assert source is not None  # which image_statistics has refused
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(config, TokenizedRun) and not config.tokenizer:
            tokenizer, kind = config_for(config)
            save_tokenizer(load_class(TOKENIZERS[kind].home)(tokenizer.tokenizer), Path(folder))
            config = replace(config, tokenizer=folder)
        method = method_named(name).from_run(config)
    data = data_of(config, method.transform())
    if not config.data.streams:
        data.datasets["train"] = Repeated(source, config.data.cache_gb * 1e9, LEAST_STEPS * config.data.batch_size)
    session.fit(method, data)
    return session.seconds_a_batch * config.trainer.accumulate
