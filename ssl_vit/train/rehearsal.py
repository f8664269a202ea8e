"""What a dry run tries: all that a run does before it writes and trains, and what it says of it. Needs Lightning only
for tokenizers."""

import warnings
from pathlib import Path
from typing import Any

import torch

from ssl_vit.config.checks import given_as
from ssl_vit.config.evaluation_schema import TIMM
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.memory import training_parts
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.recipes import family, load_class
from ssl_vit.config.schema import EncoderConfig, PatchGrid, RunConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import TOKENIZERS, KMeansRun, TokenizerRun
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder, statistics_of, transfer
from ssl_vit.run.files import CONFIG, ENCODER, MODEL, RUNS, run_prefix
from ssl_vit.train.plan import plan_lines, require_possible, settled


def rehearse(config: TrainingRun, name: str = "") -> list[str]:
    """The lines of a run's plan, after what it reads has been read. Raises what the run would: ValueError, OSError.

    name: of the method or tokenizer.
    """
    require_possible(config)
    patches, start = None, []
    if isinstance(config, FinetuneRun):  # its encoder has them
        from ssl_vit.supervised.classifier import start_of

        encoder, patches = start_of(config)
        statistics_of(encoder.metadata, f"encoder={config.encoder}", config.data)
        _require_teacher(config.distill.teacher)
        start = [f"start         encoder={config.encoder}, init={config.init}"]
    if isinstance(config, TokenizerRun):
        _require_trainable(config, name)
    if isinstance(config, TokenizedRun):
        start = [f"tokenizer     {_require_tokenizer(config)}"]
    if isinstance(config, RunConfig) and config.init_from and not config.resume:
        _require_start(config.init_from, config.encoder)
        start += [f"start         init_from={config.init_from}"]
    config = settled(config)
    lines = plan_lines(config, patches, isinstance(config, FinetuneRun))
    memory = [] if isinstance(config, KMeansRun) else [memory_line(config, patches)]
    return [*start, *lines, *memory, writes_line(config, name)]


def memory_line(config: TrainingRun, patches: PatchGrid | None) -> str:
    """What the training needs at the least, by arithmetic."""
    weights, batch = training_parts(config, patches)
    total, weights, batch = (f"{float(f'{size / 1e9:.2g}'):,g}" for size in (weights + batch, weights, batch))
    parts = f"{weights} weights, gradients and AdamW's moments, {batch} activations of {config.data.batch_size} images"
    return f"memory        {total} GB a process at the least: {parts}"


def writes_line(config: TrainingRun, name: str) -> str:
    """Where the run writes, and what."""
    made = f"{RUNS / run_prefix(family(config.own_section, name), config.recipe)}<time>"
    every, steps = "every ten minutes", config.trainer.checkpoint_every_steps
    saved = "" if isinstance(config, KMeansRun) else f", checkpoints {f'every {steps} steps' if steps else every}"
    result = {FinetuneRun.own_section: MODEL, TokenizerRun.own_section: "tokenizer.safetensors"}
    return (
        f"writes        {config.run_dir or made}/: {CONFIG}{saved}, {result.get(config.own_section, ENCODER)}, curves"
    )


def _require_start(source: str, encoder: EncoderConfig) -> None:
    with torch.device("meta"):
        network = VisionTransformer(encoder)
    with given_as("init_from", source), warnings.catch_warnings(action="ignore"):  # nothing is copied to no memory
        transfer(load_encoder(source), network, f"init_from={source}")


def _require_tokenizer(config: TokenizedRun) -> str:
    """What the plan says of it."""
    from ssl_vit.tokenizers.base import load_tokenizer, require_tokens
    from ssl_vit.train.tokenizing import config_for

    if config.tokenizer:
        with given_as("tokenizer", config.tokenizer):
            require_tokens(load_tokenizer(config.tokenizer), config.encoder, config.tokenizer)
        return config.tokenizer
    with given_as("tokenizer_recipe", config.tokenizer_recipe):
        made, kind = config_for(config)
        require_possible(made)
        _require_trainable(made, kind)
    return f"none given: {kind} is trained first, by tokenizer_recipe={config.tokenizer_recipe}, or taken from {RUNS}/"


def _require_trainable(config: Any, kind: str) -> None:
    if home := TOKENIZERS[kind].training:
        load_class(home).from_run(config)


def _require_teacher(source: str) -> None:
    """Whether distill.teacher= names a model, without downloading its weights."""
    name, _, file = source.removeprefix(TIMM).partition(":")
    with given_as("distill.teacher", source):
        if source.startswith(TIMM):
            from ssl_vit.evaluate.backbones import require_timm

            require_timm(f"distill.teacher={source}", name)
            if file and not Path(file).exists():
                raise FileNotFoundError(f"there is no file {file}")
        elif source:
            from ssl_vit.supervised.classifier import load_classifier

            load_classifier(source)
