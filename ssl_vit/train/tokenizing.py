"""Training a tokenizer, into the same kind of run directory as an encoder; evaluating it; finding the one of a run."""

import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vit.callbacks.image_logger import file_name, image_grid
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.recipes import load_class
from ssl_vit.config.resolve import resolve
from ssl_vit.config.tokenizer_schema import TOKENIZERS, KMeansRun, TokenizerRun
from ssl_vit.config.values import usual_values
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.dataset import Batch
from ssl_vit.data.sources import count
from ssl_vit.models.weights import require_finite
from ssl_vit.run.files import IMAGES, QUARANTINE, RUNS
from ssl_vit.run.launch import is_first_process
from ssl_vit.run.lock import hold
from ssl_vit.run.signals import Stopped
from ssl_vit.tokenizers.base import WEIGHTS, Tokenizer, crop_of, load_tokenizer, save_tokenizer
from ssl_vit.tokenizers.kmeans import fit_kmeans
from ssl_vit.train.plan import plan_lines
from ssl_vit.train.trainer import Session, data_of

MAX_IMAGES = 5000  # most that a tokenizer's use of its vocabulary, and its reconstructions, are measured on


def train_tokenizer(
    config: TokenizerRun, kind: str, session_of: Callable[..., Session] = Session
) -> tuple[Path, dict[str, Any]] | None:
    """(run directory, metrics) of a tokenizer trained to the end, None but on the first rank; ValueError, OSError."""
    session = session_of(config, kind, prefix="tokenizer")
    if isinstance(config, KMeansRun):
        session.open()
        data = data_of(config, crop_of(config.tokenizer))
        print(f"run           {session.run_dir}", *plan_lines(config), sep="\n")
        data.read_errors.list_in(session.run_dir / QUARANTINE)
        tokenizer = fit_kmeans(config.tokenizer, endless(data), config.seed)
    else:
        training = load_class(TOKENIZERS[kind].training).from_run(config)
        session.open()
        data = data_of(config, training.transform())
        trained = session.fit(training, data)
        if trained is None:
            return None
        tokenizer = trained.tokenizer.eval()
    require_finite(tokenizer.state_dict(), session.run_dir / WEIGHTS)
    metrics = evaluate_tokenizer(tokenizer, data) | {"seconds": session.seconds}
    if tokenizer.decodes:
        with torch.inference_mode():
            pixels = pixels_of(next(iter(data.eval_dataloader("test", config.monitor.images))), tokenizer)
            columns = {"original": pixels, "reconstruction": tokenizer.decode(tokenizer(pixels))}
        grid = image_grid(columns, config.data.mean, config.data.std, f"{kind}; a row is a test image")
        session.log_image(" | ".join(columns), grid, f"{IMAGES}/{file_name(kind, columns)}")
    session.export(partial(save_tokenizer, tokenizer), **metrics)
    return session.run_dir, {"task": "tokenizer", "tokenizer": str(session.run_dir), "kind": kind, **metrics}


def endless(data: ImageDataModule) -> Iterator[Float[Tensor, "B C H W"]]:
    """Batches of training images in [0, 1], epoch after epoch."""
    loader = data.train_dataloader()
    for epoch in itertools.count():
        loader.sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        for batch in loader:
            yield batch["images"].float() / 255


def pixels_of(batch: Batch, tokenizer: Tokenizer) -> Float[Tensor, "B C H W"]:
    """A batch's images in [0, 1], on the tokenizer's device."""
    return batch["images"].to(next(iter(tokenizer.state_dict().values())).device).float() / 255


@torch.inference_mode()
def evaluate_tokenizer(tokenizer: Tokenizer, data: ImageDataModule) -> dict[str, Any]:
    """How much of its vocabulary a tokenizer uses on training images, and how well it reconstructs test images.

    codes_used: tokens that occur; perplexity: exp of their entropy; most_frequent: fraction of the commonest; psnr: in
    dB, of pixels in [0, 1], None where the tokenizer does not decode.
    """
    counts = torch.zeros(tokenizer.vocab_size)
    for batch in data.eval_dataloader("train", MAX_IMAGES):
        counts += torch.bincount(tokenizer(pixels_of(batch, tokenizer)).cpu().flatten(), minlength=len(counts))
    fraction, errors = counts / counts.sum(), []
    for batch in data.eval_dataloader("test", MAX_IMAGES) if tokenizer.decodes else []:
        pixels = pixels_of(batch, tokenizer)
        errors.append((tokenizer.decode(tokenizer(pixels)) - pixels).square().mean((1, 2, 3)).cpu())
    return {
        "vocab_size": len(counts),
        "codes_used": int((counts > 0).sum()),
        "perplexity": round(float(torch.exp(torch.special.entr(fraction).sum())), 1),
        "most_frequent": round(float(fraction.max()), 4),
        "psnr": round(-10 * math.log10(float(torch.cat(errors).mean())), 2) if errors else None,
    }


def tokenizer_for(run: TokenizedRun) -> Path:
    """The run of the tokenizer that a pretraining without tokenizer= gets: found, or trained now and kept.

    Its directory is named by a hash of all that decides what it becomes; images by path and number, so one that changes
    is not seen. One that was interrupted is resumed; one that another run is making is waited for.
    """
    config, kind = config_for(run)
    settings, data = asdict(config), config.data
    path = str(Path(data.path).resolve()) if data.path else ""
    identity = {"kind": kind, "source": data.source, "path": path, "images": count(data)}
    identity |= {name: settings[name] for name in ("tokenizer", "optim", "trainer", "seed")}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    run_dir = RUNS / f"tokenizer-{Path(run.tokenizer_recipe).stem}-{key}"
    weights, is_first, waits = run_dir / WEIGHTS, is_first_process(), False
    if weights.exists():
        load_tokenizer(run_dir)  # raises now if it is damaged
        if is_first:
            print(f"tokenizer     {run_dir}, kept from an earlier run")
        return run_dir
    while not weights.exists():
        if is_first:  # which trains it
            try:
                hold(run_dir)
                break
            except BlockingIOError as error:
                if not waits:
                    print(f"tokenizer     another run is making it, which is waited for: {error}", flush=True)
                waits = True
        time.sleep(1)
    if weights.exists():
        return run_dir
    print(f"tokenizer     none given: {kind} is trained first, by tokenizer_recipe={run.tokenizer_recipe}", flush=True)
    try:
        train_tokenizer(replace(config, run_dir=str(run_dir), resume="auto"), kind)
    except Stopped as stop:
        stop.run_dir = None  # the same command resumes it
        raise
    return run_dir


def config_for(run: TokenizedRun) -> tuple[TokenizerRun, str]:
    """Config and kind of the tokenizer for a pretraining: its recipe's, on the pretraining's images and grid."""
    (h, w), channels, patch = run.encoder.grid, run.encoder.channels, run.encoder.patch_size

    def automatic(base: TokenizerRun, name: str, values: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
        own = {"channels": channels, "patch_size": patch, "image_size": [h * patch, w * patch]}
        known = {f"tokenizer.{key}": value for key, value in own.items()}
        known |= {"data.mean": [0.0] * channels, "data.std": [1.0] * channels}
        return {key: known.get(key, usual) for key, usual in usual_values(base, wanted).items()}

    resolved = resolve(TokenizerRun, [f"recipe={run.tokenizer_recipe}"], automatic=automatic)
    config = resolved.config
    P = config.tokenizer.patch_size
    tokenizer = replace(config.tokenizer, image_size=[h * P, w * P], channels=channels)
    data = replace(run.data, mean=[0.0] * channels, std=[1.0] * channels, global_batch=config.data.global_batch)
    trainer = replace(config.trainer, devices=1, precision=run.trainer.precision, logger=run.trainer.logger)
    return replace(config, tokenizer=tokenizer, data=data, trainer=trainer, seed=run.seed), resolved.name
