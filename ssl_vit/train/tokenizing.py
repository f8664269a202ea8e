"""Training a tokenizer, into the same kind of run directory as an encoder; evaluating it; finding the one of a run."""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vit.callbacks.image_logger import ImageLogger, image_grid
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import DataConfig
from ssl_vit.config.tokenizer_schema import KMeansRun, TokenizerRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import count
from ssl_vit.run.files import IMAGES, QUARANTINE, RUNS
from ssl_vit.run.launch import is_first_process
from ssl_vit.run.lock import hold
from ssl_vit.run.signals import Stopped
from ssl_vit.tokenizers.base import WEIGHTS, Tokenizer, load_tokenizer, save_tokenizer
from ssl_vit.tokenizers.kmeans import fit_kmeans
from ssl_vit.tokenizers.training import crop_of, training_named
from ssl_vit.train.runs import Session
from ssl_vit.train.trainer import data_of

MAX_IMAGES = 5000
"""Most images that a tokenizer's use of its vocabulary, and its reconstructions, are measured on."""


def train_tokenizer(config: TokenizerRun, kind: str) -> tuple[Path, dict[str, Any]] | None:
    """Train to the end; the run directory, which then holds the tokenizer, and its metrics, on the first rank.

    None on the others.

    Raises:
        ValueError, OSError: bad input or a full disk; what is written stays, and the log has how to resume.
    """
    session = Session(config, kind, prefix="tokenizer")
    if isinstance(config, KMeansRun):
        session.open()
        options = config.tokenizer
        print(f"run           {session.run_dir}")
        print(
            f"k-means       {options.patches:,} patches of {options.patch_size} pixels to {options.vocab_size:,} tokens"
        )
        data = data_of(config, crop_of(options))
        data.read_errors.list_in(session.run_dir / QUARANTINE)
        tokenizer = fit_kmeans(options, endless(data), config.seed)
    else:
        training = training_named(kind).from_run(config)
        session.open()
        data = data_of(config, training.transform())
        trained = session.fit(training, data, ImageLogger(config.monitor, session.run_dir))
        if trained is None:
            return None
        tokenizer = trained.tokenizer.eval()
    metrics = evaluate_tokenizer(tokenizer, data) | {"seconds": session.seconds}
    if tokenizer.decodes:
        columns = reconstructions(tokenizer, data, config.monitor.images)
        grid = image_grid(columns, config.data.mean, config.data.std)
        session.log_image(" | ".join(columns), grid, f"{IMAGES}/reconstruction.png")
    session.export(partial(save_tokenizer, tokenizer), **metrics)
    return session.run_dir, {"task": "tokenizer", "tokenizer": str(session.run_dir), "kind": kind, **metrics}


def endless(data: ImageDataModule) -> Iterator[Float[Tensor, "B C H W"]]:
    """Batches of training images in [0, 1], epoch after epoch."""
    loader, epoch = data.train_dataloader(), 0
    while True:
        loader.sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        for batch in loader:
            yield batch["images"].float() / 255
        epoch += 1


@torch.inference_mode()
def evaluate_tokenizer(tokenizer: Tokenizer, data: ImageDataModule) -> dict[str, Any]:
    """How much of its vocabulary a tokenizer uses on training images, and how well it reconstructs test images.

    Returns:
        vocab_size, codes_used (tokens that occur), perplexity (exp of the tokens' entropy), most_frequent (fraction of
        the commonest token), psnr (in dB, of pixels in [0, 1]; None where the tokenizer does not decode).
    """
    device = next(iter(tokenizer.state_dict().values())).device
    counts = torch.zeros(tokenizer.vocab_size)
    for batch in data.eval_dataloader("train", MAX_IMAGES):
        tokens = tokenizer(batch["images"].to(device).float() / 255).cpu()
        counts += torch.bincount(tokens.flatten(), minlength=len(counts))
    fraction = counts / counts.sum()
    errors = []
    for batch in data.eval_dataloader("test", MAX_IMAGES) if tokenizer.decodes else []:
        pixels = batch["images"].to(device).float() / 255
        errors.append((tokenizer.decode(tokenizer(pixels)) - pixels).square().mean((1, 2, 3)).cpu())
    psnr = round(-10 * math.log10(float(torch.cat(errors).mean())), 2) if errors else None
    return {
        "vocab_size": len(counts),
        "codes_used": int((counts > 0).sum()),
        "perplexity": round(float(torch.exp(torch.special.entr(fraction).sum())), 1),
        "most_frequent": round(float(fraction.max()), 4),
        "psnr": psnr,
    }


@torch.inference_mode()
def reconstructions(tokenizer: Tokenizer, data: ImageDataModule, images: int) -> dict[str, Tensor]:
    """Test images beside what the tokenizer makes of them, [B, C, H, W] in [0, 1]."""
    device = next(iter(tokenizer.state_dict().values())).device
    pixels = next(iter(data.eval_dataloader("test", images)))["images"].to(device).float() / 255
    return {"original": pixels, "reconstruction": tokenizer.decode(tokenizer(pixels))}


def tokenizer_for(run: TokenizedRun) -> Path:
    """The run of the tokenizer that a pretraining without tokenizer= gets: found, or trained now and kept.

    It is that of run.tokenizer_recipe on the pretraining's own images, with a token for each of its patches; its
    directory is named by a hash of both. One that was interrupted is resumed.
    """
    config, kind = config_for(run)
    key = json.dumps({"kind": kind, **_identity(config)}, sort_keys=True)
    name = f"tokenizer-{Path(run.tokenizer_recipe).stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    run_dir = RUNS / name
    if (run_dir / WEIGHTS).exists():
        load_tokenizer(run_dir)  # raises now if it is damaged
        if is_first_process():
            print(f"tokenizer     {run_dir}, kept from an earlier run")
        return run_dir
    if not is_first_process():  # which trains it
        while not (run_dir / WEIGHTS).exists():
            time.sleep(1)
        return run_dir
    if _held_or_made(run_dir):
        return run_dir
    print(f"tokenizer     none given: {kind} is trained first, by tokenizer_recipe={run.tokenizer_recipe}", flush=True)
    config.run_dir, config.resume = str(run_dir), "auto"
    try:
        train_tokenizer(config, kind)
    except Stopped as stop:
        stop.run_dir = None  # the same command resumes it
        raise
    return run_dir


def _held_or_made(run_dir: Path) -> bool:
    """Hold a tokenizer's directory to train it there; True where another run, which is waited for, has made it."""
    waits = False
    while not (run_dir / WEIGHTS).exists():
        try:
            hold(run_dir)
            break
        except BlockingIOError as error:
            if not waits:
                print(f"tokenizer     another run is making it, which is waited for: {error}", flush=True)
            waits = True
            time.sleep(1)
    return (run_dir / WEIGHTS).exists()


def config_for(run: TokenizedRun) -> tuple[TokenizerRun, str]:
    """Config and kind of the tokenizer for a pretraining: its recipe's, on the pretraining's images and grid."""
    resolved = resolve(TokenizerRun, [f"recipe={run.tokenizer_recipe}"])
    config, (h, w) = resolved.config, run.encoder.grid
    P, channels = config.tokenizer.patch_size, run.encoder.channels
    options = replace(config.tokenizer, image_size=[h * P, w * P], channels=channels)
    data: DataConfig = replace(run.data, mean=[0.0] * channels, std=[1.0] * channels)
    trainer = replace(config.trainer, devices=1, precision=run.trainer.precision)
    return replace(config, tokenizer=options, data=data, trainer=trainer, seed=run.seed), resolved.name


def _identity(config: TokenizerRun) -> dict[str, Any]:
    """All that decides what a tokenizer becomes; images by path and number, so one that changes is not seen."""
    settings = asdict(config)
    kept = {name: settings[name] for name in ("tokenizer", "optim", "trainer", "seed")}
    path = str(Path(config.data.path).resolve()) if config.data.path else ""
    return kept | {"source": config.data.source, "path": path, "images": count(config.data)}
