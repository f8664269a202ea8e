"""Training a tokenizer, by the same trainer and into the same kind of run directory as an encoder; judging it."""

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssl_vit import __version__
from ssl_vit.callbacks.online_eval import ImageLogger, image_grid, save_image
from ssl_vit.config.pretrain_schema import TokenizedRun
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import DataConfig
from ssl_vit.config.tokenizer_schema import KMeansRun, TokenizerRun
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import count
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.run.directory import open_run
from ssl_vit.run.files import QUARANTINE, RUNS
from ssl_vit.run.launch import is_first_process
from ssl_vit.run.lock import hold
from ssl_vit.run.signals import Stopped
from ssl_vit.tokenizers.base import WEIGHTS, Tokenizer, load_tokenizer, save_tokenizer
from ssl_vit.tokenizers.kmeans import fit_kmeans
from ssl_vit.tokenizers.training import training_named
from ssl_vit.train.trainer import data_of, fit, quiet_lightning

MIN_HELD_OUT = 5000
"""Most images that a tokenizer's use of its vocabulary, and its reconstructions, are measured on."""


def train_tokenizer(config: TokenizerRun, kind: str) -> tuple[Path, dict[str, Any]] | None:
    """Train to the end; the run directory, which then holds the tokenizer, and what is known of it.

    Of several processes the first one writes and has them, the others have None.

    Raises:
        ValueError, OSError: bad input or a full disk; what is written stays, and the log says how to go on.
    """
    quiet_lightning()
    started = time.time()
    pl.seed_everything(config.seed, verbose=False)
    if isinstance(config, KMeansRun):
        run_dir, _ = open_run(config, kind, "tokenizer")
        print(f"run           {run_dir}")
        cfg = config.tokenizer
        print(f"k-means       {cfg.patches:,} patches of {cfg.patch_size} pixels to {cfg.vocab_size:,} tokens")
        data = images_of_run(config)
        data.read_errors.list_in(run_dir / QUARANTINE)
        tokenizer = fit_kmeans(cfg, endless(data), config.seed)
    else:
        training = training_named(kind).from_run(config)  # what does not fit shows before anything is written
        run_dir, checkpoint = open_run(config, kind, "tokenizer")
        data = data_of(config, training)
        trained = fit(config, training, data, run_dir, checkpoint, ImageLogger(config.monitor, run_dir))
        if trained is None:
            return None
        tokenizer = trained.tokenizer.eval()
    metadata = judge(tokenizer, data) | {"seconds": round(time.time() - started, 1)}
    show(tokenizer, data, run_dir, config.monitor.images)
    known = {"recipe": config.recipe, "data": asdict(config.data), "seed": config.seed, "ssl_vit": __version__}
    print(f"saved {save_tokenizer(tokenizer, run_dir, **known, **metadata)}")
    return run_dir, {"task": "tokenizer", "tokenizer": str(run_dir), "kind": kind, **metadata}


def images_of_run(config: TokenizerRun) -> ImageDataModule:
    """Random crops of the run's images."""
    cfg = config.tokenizer
    view = RandomCrop(cfg.height_width, cfg.crop_scale, flip=cfg.flip)
    return ImageDataModule(view, config.data, image_size=cfg.height_width, channels=cfg.channels, seed=config.seed)


def endless(data: ImageDataModule) -> Iterator[Float[Tensor, "B C H W"]]:
    """Batches of training images in [0, 1], epoch after epoch."""
    loader, epoch = data.train_dataloader(), 0
    while True:
        loader.sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
        for batch in loader:
            yield batch["images"].float() / 255
        epoch += 1


@torch.inference_mode()
def judge(tokenizer: Tokenizer, data: ImageDataModule) -> dict[str, Any]:
    """How much of its vocabulary a tokenizer uses on training images, and how well it draws test images.

    Returns:
        vocab_size, codes_used (tokens met), perplexity (exp of the tokens' entropy), most_frequent (share of the
        commonest token), psnr (in dB, of pixels in [0, 1]; None where the tokenizer cannot draw).
    """
    device = next(iter(tokenizer.state_dict().values())).device
    counts = torch.zeros(tokenizer.vocab_size)
    for batch in data.eval_dataloader("train", MIN_HELD_OUT):
        tokens = tokenizer(batch["images"].to(device).float() / 255).cpu()
        counts += torch.bincount(tokens.flatten(), minlength=len(counts))
    fraction = counts / counts.sum()
    errors = []
    for batch in data.eval_dataloader("test", MIN_HELD_OUT) if tokenizer.decodes else []:
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
def show(tokenizer: Tokenizer, data: ImageDataModule, run_dir: Path, images: int) -> None:
    """Test images beside what the tokenizer makes of them, in TensorBoard and as images/reconstruction.png."""
    if not tokenizer.decodes:
        return
    device = next(iter(tokenizer.state_dict().values())).device
    batch = next(iter(data.eval_dataloader("test", images)))
    pixels = batch["images"].to(device).float() / 255
    columns = {"original": pixels, "reconstruction": tokenizer.decode(tokenizer(pixels))}
    grid = image_grid(columns, data.data.mean, data.data.std)
    with SummaryWriter(str(run_dir)) as writer:
        writer.add_image(" | ".join(columns), grid)
    save_image(grid, run_dir / "images" / "reconstruction.png")


def tokenizer_for(run: TokenizedRun) -> Path:
    """The run of the tokenizer that a pretraining without tokenizer= gets: found, or trained now and kept.

    It is that of run.tokenizer_recipe on the pretraining's own images, with a token for each of its patches; its
    directory is named by a hash of both. One that was interrupted is gone on with.
    """
    config, kind = settings_for(run)
    key = json.dumps({"kind": kind, **_what_it_learns(config)}, sort_keys=True)
    name = f"tokenizer-{Path(run.tokenizer_recipe).stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    run_dir = RUNS / name
    if (run_dir / WEIGHTS).exists():
        load_tokenizer(run_dir)  # says so now if it is broken
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
        stop.run_dir = None  # the same command goes on with it
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


def settings_for(run: TokenizedRun) -> tuple[TokenizerRun, str]:
    """Settings and kind of the tokenizer for a pretraining: its recipe's, on the pretraining's images and grid."""
    resolved = resolve(TokenizerRun, [f"recipe={run.tokenizer_recipe}"])
    config, (h, w) = resolved.config, run.encoder.grid
    P, channels = config.tokenizer.patch_size, run.encoder.channels
    tokenizer = replace(config.tokenizer, image_size=[h * P, w * P], channels=channels)
    data: DataConfig = replace(run.data, mean=[0.0] * channels, std=[1.0] * channels)
    trainer = replace(config.trainer, devices=1, precision=run.trainer.precision)
    return replace(config, tokenizer=tokenizer, data=data, trainer=trainer, seed=run.seed), resolved.name


def _what_it_learns(config: TokenizerRun) -> dict[str, Any]:
    """All that decides what a tokenizer becomes; images by place and number, which does not see one that changes."""
    settings = asdict(config)
    kept = {name: settings[name] for name in ("tokenizer", "optim", "trainer", "seed")}
    path = str(Path(config.data.path).resolve()) if config.data.path else ""
    return kept | {"source": config.data.source, "path": path, "images": count(config.data)}
