"""Trainings whose images and random numbers are given, so that one process and several can do the same.

A case is a name and what makes its objective; its batches hold what the objective would draw. Every process takes every
n-th row of a batch.

The comparison is in float64, because it is of the arithmetic and not of its rounding. In float32 the sums of two
processes, in another order, differ by some 1e-6 of their size, by more on one CPU than on another. AdamW, which divides
a gradient by its own size, makes whole steps out of gradients that are nothing but rounding: those of the keys' biases,
which cancel in the softmax, and of the biases before a BatchNorm. In float64 they are far below AdamW's epsilon.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from ssl_vit.config.tokenizer_schema import KMeansConfig
from ssl_vit.methods.beit import BEiT
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.guard import Guard
from ssl_vit.methods.heads import BatchNorm
from ssl_vit.methods.mae import MAE
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.supervised.finetune import FineTune
from ssl_vit.tokenizers.dvae import DVAETraining
from ssl_vit.tokenizers.kmeans import KMeans
from ssl_vit.tokenizers.vqkd import VQKDTraining

STEPS, NUM_IMAGES = 4, 8
OPTIM = {"base_lr": 0.0032, "warmup_epochs": 0}  # 1e-4 for 8 images
IMAGE = {"patch_size": 4, "image_size": 16}
ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 4, "drop_path": 0.0, **IMAGE}
HEAD = {"local_crops": 2, "local_size": 8, "prototypes": 24, "head_hidden": 16, "head_bottleneck": 8}
TOKENS = {"vocab_size": 12, **IMAGE}
PLAIN = {"mixup": 0.0, "cutmix": 0.0, "erasing_p": 0.0, "randaugment": 0.0, "drop_path": 0.0}


class GivenMAE(MAE):
    """Its noise comes with the images."""

    def inputs(self, batch):
        return batch

    def losses(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().losses(*batch)


class GivenBEiT(BEiT):
    """Its masks come with the images."""

    def inputs(self, batch):
        return batch

    def losses(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().losses(*batch)


class GivenDVAE(DVAETraining):
    """Its noise comes with the images."""

    def inputs(self, batch):
        return batch

    def losses(self, batch):  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().losses(*batch)


def make_mae(folder: Path, **changes: Any) -> MAE:
    options = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
    return GivenMAE({**ENCODER, **changes}, {**OPTIM, "clip_grad": 0.1}, **options)


def make_dino(folder: Path, clip_grad: float = 0.0, **options: Any) -> DINO:
    return DINO(ENCODER, {**OPTIM, "clip_grad": clip_grad}, **{**HEAD, "freeze_last_layer": 0.5, **options})


def make_beit(folder: Path) -> BEiT:
    tokenizer = KMeans(KMeansConfig(**TOKENS))
    tokenizer.centers.uniform_()
    paper = {"pos_embed": "relative", "init_values": 0.1, "init": "beit"}
    return GivenBEiT({**paper, **ENCODER}, OPTIM, tokenizer=tokenizer, class_branch=True, branch_depth=1)


def make_finetune(folder: Path) -> FineTune:
    counts = torch.tensor([10, 30, 5])
    options = {**PLAIN, "class_weights": True, "ema": 0.9}
    return FineTune(VisionTransformer(**ENCODER), list("abc"), OPTIM, counts=counts, **options)


def make_dvae(folder: Path) -> DVAETraining:
    return GivenDVAE(OPTIM, **{**TOKENS, "width": 32, "residuals": 1, "code_dim": 8, "kl_warmup": 0.0, "usage": 0.1})


def make_vqkd(folder: Path) -> VQKDTraining:
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    save_encoder(VisionTransformer(embed_dim=24, depth=1, num_heads=2, **IMAGE), folder, **statistics)
    options = {**TOKENS, "width": 32, "depth": 1, "heads": 4, "code_dim": 8, "revive_below": 0.0}
    return VQKDTraining(OPTIM, **options, teacher=str(folder))


MAKERS = {
    "mae": make_mae,
    "mae, blocks recomputed": lambda folder: make_mae(folder, grad_checkpointing=True),
    "dino": make_dino,
    "dino, clipped": lambda folder: make_dino(folder, clip_grad=0.01),
    "dino, sinkhorn": lambda folder: make_dino(folder, centering="sinkhorn"),
    "dino, BatchNorm": lambda folder: make_dino(folder, head_norm=True),
    "beit": make_beit,
    "finetune": make_finetune,
    "dvae": make_dvae,
    "vqkd": make_vqkd,
}


def make(case: str, folder: Path) -> Any:
    """The objective of a case, with the weights that it always starts from."""
    torch.manual_seed(0)
    return MAKERS[case](folder)


@contextmanager
def float64() -> Iterator[None]:
    """float64 wherever the library says nothing or float(), by which it keeps losses out of bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def batches(case: str) -> list[Any]:
    """STEPS batches of NUM_IMAGES for a case."""
    draw = torch.Generator().manual_seed(1)
    rand, kind, made = (lambda *shape: torch.rand(*shape, generator=draw)), case.split(",")[0], []
    for _ in range(STEPS):
        images = rand(NUM_IMAGES, 3, 16, 16)
        if kind == "mae":
            batch = [images, rand(NUM_IMAGES, 16)]
        elif kind == "dino":
            batch = [[images, rand(NUM_IMAGES, 3, 16, 16), rand(NUM_IMAGES, 3, 8, 8), rand(NUM_IMAGES, 3, 8, 8)]]
        elif kind == "beit":
            mask = rand(NUM_IMAGES, 16) < rand(NUM_IMAGES, 1)  # unequally many
            mask[:, 0] = True
            batch = [[images - 0.5, images], mask]
        elif kind == "finetune":
            batch = [images, (rand(NUM_IMAGES) * 3).long()]
        elif kind == "dvae":
            batch = [images, rand(NUM_IMAGES, 12, 4, 4)]
        else:
            batch = [images]
        made.append(batch)
    return made


def every(batch: Any, nth: int, start: int) -> Any:
    """Every n-th row of a batch, from `start` on."""
    return tree_map(lambda rows: rows[start::nth], batch)


class Losses(pl.Callback):
    """Remembers each batch's loss."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(float(outputs["loss"]))


def train(
    case: str, folder: Path, rank: int = 0, processes: int = 1, accumulate: int = 1, **options: Any
) -> dict[str, Any]:
    """Train a case on this process's rows, each batch as so many; its losses and, on the first process, all weights.

    Options are the trainer's; resume: a checkpoint; callbacks: beside the one that remembers losses.
    """
    resume, losses = options.pop("resume", None), Losses()
    callbacks = [losses, *options.pop("callbacks", [])]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": folder, **quiet, **options}
    trainer = pl.Trainer(
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        enable_checkpointing=len(callbacks) > 1,
        callbacks=callbacks,
        **settings,
    )
    objective = make(case, folder)
    split = [every(batch, accumulate, i) for batch in batches(case) for i in range(accumulate)]
    own = [every(batch, processes, rank) for batch in split]
    trainer.fit(objective, DataLoader(own, batch_size=None), ckpt_path=resume, weights_only=True)  # pyright: ignore
    whole = objective.whole()
    return {"losses": losses.seen, "weights": {} if whole is None else whole.state_dict()}


def batch_norm(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """What the head's BatchNorm makes of this process's vectors, and what a loss sends back through it."""
    draw = torch.Generator().manual_seed(2)
    vectors, weights = torch.randn(2, 8, 5, generator=draw)[:, rank::processes]
    norm = BatchNorm(5)
    vectors.requires_grad_()
    outputs = norm(vectors)
    (outputs.square() * weights).sum().backward()
    assert vectors.grad is not None
    return {"outputs": outputs.detach(), "gradients": vectors.grad, **norm.state_dict()}


def guarded_steps(rank: int) -> list[str]:
    """How three steps go of which the second has a loss that is not finite, on the second process alone."""
    guard = Guard()
    for step in range(3):
        guard.watch(torch.tensor(math.nan if (rank, step) == (1, 1) else 1.0), batch=None)
        guard.check(None, step, epoch=0)
    return [f"step {skipped.step}: {skipped.why}" for skipped in guard.found]


def sharded(processes: int) -> ModelParallelStrategy:
    """As trainer.strategy=fsdp."""
    return ModelParallelStrategy(processes, 1, save_distributed_checkpoint=False)


SHARDED = ["mae", "mae, blocks recomputed", "dino", "dino, BatchNorm", "beit", "finetune", "dvae", "vqkd"]


def run(rank: int, processes: int) -> None:
    """One of several processes: all cases in turn, into <rank>.pt of the current folder."""
    own, folder, found = {"rank": rank, "processes": processes, "devices": processes}, Path(f"{rank}"), {}
    with float64():
        for case in MAKERS:
            found["ddp", case] = train(case, folder, strategy="ddp", **own)
        for case in SHARDED:
            found["fsdp", case] = train(case, folder, strategy=sharded(processes), **own)
        found["batch norm"] = batch_norm(rank, processes)
    found["guard"] = guarded_steps(rank)
    half = ModelCheckpoint(".", filename="half", every_n_train_steps=STEPS, save_top_k=1, monitor=None)
    twice = {"max_epochs": 2, **own}
    found["whole"] = train("dino", folder, strategy=sharded(processes), callbacks=[half], **twice)
    found["resumed"] = train("dino", folder, strategy=sharded(processes), resume="half.ckpt", **twice)
    torch.save(found, f"{rank}.pt")
    torch.distributed.destroy_process_group()
