"""What all training shares: AdamW with the papers' schedules, named losses in the log, guarded steps, sharding.

An Objective is a LightningModule that any `pl.Trainer` fits. It has `transform`, `losses` and `export`; where it needs
them `inputs`, `after_step`, `on_skipped_step`, `visualize`, `decays` and `clip`. A Method is one on an encoder:
`ssl_vit.methods`. Those of `ssl_vit.tokenizers` train tokenizers, that of `ssl_vit.supervised` a classifier.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_vit.config.checks import override
from ssl_vit.config.schema import EncoderConfig, OptimConfig, RunConfig, TrainingRun
from ssl_vit.data.loader import batch_images, full_length, warn_unless_normalized
from ssl_vit.data.rng import seeded_generator
from ssl_vit.data.transforms.crops import Transform
from ssl_vit.methods.guard import DivergenceError, Guard
from ssl_vit.models.blocks import Block
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import TRAINED, load_encoder, require_fit, save_encoder, transfer
from ssl_vit.optim.param_groups import decay_groups, grad_norm, scaled_lr
from ssl_vit.optim.progress import fraction_done, fraction_of_epochs, is_logged
from ssl_vit.optim.schedules import warmup_cosine
from ssl_vit.parallel.distributed import mean_over_ranks
from ssl_vit.parallel.fsdp import gather, mesh_of, plain_copy, shard

log = logging.getLogger("ssl_vit")
Fields = dict[str, Any] | None


class Objective(pl.LightningModule, ABC):
    """A sum of losses to minimize on batches of images.

    Args:
        optim: an OptimConfig, or a dict of the fields that differ from the paper's.
        seed: all random numbers of a step are a function of (seed, epoch, batch, rank).
        options: fields of the objective's own config, such as mask_ratio.
    """

    Config: ClassVar[type[TrainingRun]]
    max_skipped_steps = 10
    """Steps in a row that may be skipped because loss or gradient is not finite."""

    def __init__(self, optim: OptimConfig | Fields = None, seed: int = 0, **options: Any) -> None:
        super().__init__()
        paper = self.Config()
        self.optim_config: OptimConfig = override(paper.optim, optim, "optim")
        self.config = override(paper.own_config, options, paper.own_section)
        self.seed, self.global_batch, self._position = seed, 0, (0, 0)
        self.extra_metrics: dict[str, Any] = {}  # scalars that losses() sets, logged beside its terms
        self.guard = Guard()
        self._grad_norm: Tensor | None = None
        self._sharded = False
        self._plain: list[Any] = []  # the first rank's copy of a sharded objective, in a list: it is no submodule

    @classmethod
    def from_run(cls, run: Any, **parts: Any) -> Any:
        """With a run's options, and what else __init__ takes."""
        return cls(optim=run.optim, seed=run.seed, **vars(run.own_config), **parts)

    @abstractmethod
    def transform(self) -> Transform:
        """The augmentation, uint8 image -> uint8 image or crops, for ImageDataModule."""

    @abstractmethod
    def losses(self, images: Any, /) -> dict[str, Tensor]:
        """Normalized images -> scalar terms by name; their sum is minimized."""

    def inputs(self, batch: Any) -> Any:
        """What losses() takes of a batch: by default its images alone."""
        return batch_images(batch)

    @abstractmethod
    def export(self, folder: Path, **metadata: Any) -> Path:
        """Write the result of the training with its metadata; returns its file. After several ranks it is whole()'s."""

    def after_step(self) -> None:
        """Called once after each optimizer step."""

    def on_skipped_step(self) -> None:
        """Called in place of after_step where a step is skipped: drops what losses() has kept for it."""

    def visualize(self, images: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Columns [B, C, H, W] for ImageLogger, floats normalized as `images` are, or uint8; pixels: in [0, 1]."""
        return {}

    def configure_model(self) -> None:
        """Shard the weights over the ranks where the trainer's strategy is ModelParallelStrategy."""
        mesh = mesh_of(self._trainer)
        if mesh is not None and not self._sharded:
            self._plain = [plain_copy(self)] if self.trainer.is_global_zero else []
            shard(self, mesh, Block)
            self._sharded = True

    def whole(self) -> Any:
        """Itself, of a sharded objective a copy with all weights; None on ranks but the first. All of them call it."""
        if not self._sharded:
            return self if self._trainer is None or self._trainer.is_global_zero else None
        copied = gather(self, self._plain[0] if self._plain else None)
        if copied is not None:
            copied.trainer = self.trainer
            copied.to(self.device)
        return copied

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sharded"] = self._sharded

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sharded = checkpoint.get("sharded", False)  # older ones lack it
        if sharded != self._sharded and self._trainer is not None:  # the optimizer's state is numbered otherwise
            raise ValueError(
                f"the checkpoint to resume was made {'with' if sharded else 'without'} trainer.strategy=fsdp: resume "
                "with the strategy that it had, or begin a run from its weights with init_from="
            )
        if not self._sharded:  # else the strategy has loaded them, name by name
            require_fit(self.state_dict(), checkpoint["state_dict"], "the checkpoint to resume")

    def decays(self, name: str, parameter: Tensor) -> bool:
        """Whether weight decay acts on a parameter: not on vectors and biases (timm's rule, which MAE uses)."""
        return parameter.ndim > 1 and not name.endswith(".bias")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.guard.in_a_row >= self.max_skipped_steps:
            raise DivergenceError(
                f"loss or gradient was not finite in {self.guard.in_a_row} steps in a row before step "
                f"{self.global_step}; the weights have not moved since. Lower optim.base_lr, set optim.clip_grad=1, or "
                "train with trainer.precision=32-true"
            )
        if not self.global_batch:
            warn_unless_normalized(batch_images(batch))
            self.global_batch = full_length(batch) * self.trainer.world_size * self.trainer.accumulate_grad_batches
        self._position = (self.current_epoch, batch_idx)
        own = self.generator(torch.device("cpu"))
        torch.manual_seed(own.initial_seed() + 1)  # pyright: ignore  # drop path uses PyTorch's own generators
        losses = self.losses(self.inputs(batch))
        total = torch.stack(list(losses.values())).sum()
        if is_logged(self.trainer):
            scalars = {"loss": total} | losses | self.extra_metrics
            values = [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in scalars.values()]
            means = mean_over_ranks(torch.stack(values).detach())
            self.log_dict({f"train/{name}": mean for name, mean in zip(scalars, means, strict=True)})
        self.guard.watch(total, batch)
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.optim_config
        groups = decay_groups(self.named_parameters(), optim.weight_decay, self.decays)
        return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas, fused=True)

    def on_train_start(self) -> None:
        epochs = self.optim_config.warmup_epochs
        if fraction_of_epochs(self.trainer, epochs) >= 1:
            effect = "the learning rate never reaches its peak; lower it, or train longer"
            log.warning(f"optim.warmup_epochs={epochs} is no shorter than the run: {effect}")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        # Under a loss scale (16-mixed) an infinite norm is common, and its scaler's to handle.
        self._grad_norm = None if scaled else grad_norm(self.parameters())
        if not self.guard.check(self._grad_norm, self.global_step, self.current_epoch) and not scaled:
            optimizer.zero_grad()  # AdamW skips what has no gradient: weights and moments stay
        optim, done = self.optim_config, fraction_done(self.trainer)
        warmup, peak = (
            fraction_of_epochs(self.trainer, optim.warmup_epochs),
            scaled_lr(optim.base_lr, self.global_batch),
        )
        lr = warmup_cosine(done, 1.0, peak=peak, final=optim.min_lr, warmup=warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        if is_logged(self.trainer):
            self.log_dict({"train/lr": lr} | ({} if self._grad_norm is None else {"train/grad_norm": self._grad_norm}))

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if not self.optim_config.clip_grad:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
        elif self._grad_norm is None:
            raise ValueError(
                "trainer.precision=16-mixed scales the loss, and scaled gradients cannot be clipped: choose bf16-mixed "
                "or 32-true, or set optim.clip_grad=0"
            )
        elif not self.guard.skipped:
            self.clip(self.optim_config.clip_grad, self._grad_norm)

    def clip(self, largest: float, norm: Tensor) -> None:
        """Scale the gradients, whose norm of all together is `norm`, down to the norm `largest` if it is above."""
        # Lightning's own refuses fused optimizers, whose step would undo a loss scale after the clipping.
        torch.nn.utils.clip_grads_with_norm_(self.parameters(), largest, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        # Here and not in on_train_batch_end, which also fires between accumulated batches.
        self.on_skipped_step() if self.guard.skipped else self.after_step()

    def generator(self, device: torch.device) -> torch.Generator | None:
        """For this step's random numbers, by (seed, epoch, batch, rank); outside a trainer None, PyTorch's own."""
        key = self.seed, *self._position
        return None if self._trainer is None else seeded_generator(device, *key, self.global_rank)


class Method(Objective):
    """A self-supervised objective on one encoder, given as a config or a dict of what differs from the paper's."""

    exported = TRAINED
    """Prefix of the exported encoder's weights in the state dict; a checkpoint carries it."""

    def __init__(
        self, encoder: EncoderConfig | Fields = None, optim: OptimConfig | Fields = None, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(optim, seed, **options)
        self.encoder_config: EncoderConfig = override(self.Config().encoder, encoder, "encoder")  # pyright: ignore
        self.encoder = VisionTransformer(self.encoder_config)
        configs = {"encoder": asdict(self.encoder_config), "optim": asdict(self.optim_config), "seed": seed}
        self.save_hyperparameters(configs | asdict(self.config))

    @classmethod
    def from_run(cls, run: RunConfig, **parts: Any) -> Any:
        return super().from_run(run, encoder=run.encoder, **parts)

    @property
    def image_size(self) -> tuple[int, int]:
        """Training image (H, W), in pixels."""
        return self.encoder_config.height_width

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.encoder_config.channels

    def require_crops(self, images: Any, count: int, legal: str) -> Sequence[Tensor]:
        """The images; ValueError where they are not `count` tensors, as transform() makes them: `legal` ones."""
        if isinstance(images, Tensor) or len(images) != count:
            given, name = "one tensor" if isinstance(images, Tensor) else f"{len(images)} tensors", type(self).__name__
            legal += f": use {name}.transform() with ssl_vit.ImageDataModule"
            raise ValueError(f"images arrive as {given}; {name} takes {legal}")
        return images

    def export_encoder(self) -> VisionTransformer:
        """The encoder that is saved and evaluated."""
        return self.get_submodule(self.exported.removesuffix("."))  # pyright: ignore[reportReturnType]

    def export(self, folder: Path, **metadata: Any) -> Path:
        """Write the encoder."""
        return save_encoder(self.export_encoder(), folder, **metadata)

    def start_from(self, source: str) -> None:
        """Begin with the weights of another encoder, from anything that load_encoder reads."""
        transfer(load_encoder(source), self.encoder, f"init_from={source}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["exported"] = self.exported
