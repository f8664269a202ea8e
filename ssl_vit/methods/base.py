"""What all training shares: AdamW with the papers' schedules, named losses in the log, guarded steps, sharding.

An Objective is a LightningModule that any `pl.Trainer` fits. It has `transform` (the augmentation of an image),
`losses` (named terms, whose sum is minimized) and `export` (what is kept); where it needs them `inputs`, `after_step`,
`on_skipped_step`, `visualize`, `decays` and `clip`. A Method is an Objective on an encoder: `ssl_vit.methods`. Those of
`ssl_vit.tokenizers` train tokenizers, that of `ssl_vit.supervised` a classifier.
"""

import logging
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_vit.config.checks import override
from ssl_vit.config.schema import EncoderConfig, OptimConfig, RunConfig, TrainingRun
from ssl_vit.data.loader import batch_images, full_length
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

    def __init__(self, optim: OptimConfig | dict[str, Any] | None = None, seed: int = 0, **options: Any) -> None:
        super().__init__()
        paper = self.Config()
        self.optim_config: OptimConfig = override(paper.optim, optim, "optim")
        self.config = override(paper.own_config, options, paper.own_section)
        self.seed, self.global_batch, self._position = seed, 0, (0, 0)
        self.extra_metrics: dict[str, Any] = {}  # scalars that losses() sets, logged beside its terms
        self.guard = Guard()
        self._grad_norm: Tensor | None = None
        self._sharded = False
        self._plain: list[
            Any
        ] = []  # copy of a sharded objective on the first rank; in a list, so that it is no submodule

    @classmethod
    def from_run(cls, run: Any) -> Any:
        """With a run's options."""
        return cls(optim=run.optim, seed=run.seed, **vars(run.own_config))

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
        """Write the result of the training with its metadata; returns its file.

        After training on several ranks it is whole() that is exported.
        """

    def after_step(self) -> None:
        """Called once after each optimizer step."""

    def on_skipped_step(self) -> None:
        """Called in place of after_step where a step is skipped: drop what losses() has kept for it."""

    def visualize(self, images: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Columns of images for ImageLogger, by default none.

        Args:
            images: [B, C, H, W] normalized; pixels: the same in [0, 1].

        Returns:
            Floats [B, C, H, W] normalized as `images` are, or uint8.
        """
        return {}

    def configure_model(self) -> None:
        """Shard the weights over the ranks where the trainer's strategy is ModelParallelStrategy."""
        mesh = mesh_of(self._trainer)
        if mesh is None or self._sharded:
            return
        if self.trainer.is_global_zero:
            self._plain = [plain_copy(self)]
        shard(self, mesh, Block)
        self._sharded = True

    def whole(self) -> Any:
        """What can be evaluated and exported: itself, of a sharded objective a copy with all weights.

        Called on every rank of a trainer; None on all but the first.
        """
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
            raise DivergenceError(self.global_step, self.guard.in_a_row)
        if not self.global_batch:
            self.global_batch = full_length(batch) * self.trainer.world_size * self.trainer.accumulate_grad_batches
        self._position = (self.current_epoch, batch_idx)
        own = self.generator(torch.device("cpu"))
        assert own is not None  # a step is taken by a trainer
        torch.manual_seed(own.initial_seed() + 1)  # drop path uses PyTorch's own generators
        losses = self.losses(self.inputs(batch))
        total = torch.stack(list(losses.values())).sum()
        if is_logged(self.trainer):
            self.log_means({"loss": total} | losses | self.extra_metrics)
        self.guard.watch(total, batch)
        return total

    def log_means(self, scalars: dict[str, Any]) -> None:
        """Log scalars as train/<name>, each the mean over all ranks."""
        values = [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in scalars.values()]
        means = mean_over_ranks(torch.stack(values).detach())
        self.log_dict({f"train/{name}": mean for name, mean in zip(scalars, means, strict=True)})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.optim_config
        groups = decay_groups(self.named_parameters(), optim.weight_decay, self.decays)
        return torch.optim.AdamW(groups, lr=optim.base_lr, betas=optim.betas, fused=True)

    def on_train_start(self) -> None:
        if fraction_of_epochs(self.trainer, self.optim_config.warmup_epochs) >= 1:
            log.warning(
                f"optim.warmup_epochs={self.optim_config.warmup_epochs} is no shorter than the run: the learning rate "
                "never reaches its peak; lower it, or train longer"
            )

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._grad_norm = None  # with a loss scale an infinite one is common, and its scaler's to handle
        if not self.scales_loss():
            self._grad_norm = grad_norm(self.parameters())
        if not self.guard.check(self._grad_norm, self.global_step, self.current_epoch) and not self.scales_loss():
            optimizer.zero_grad()  # AdamW skips what has no gradient: weights and moments stay
        rate = self.learning_rate()
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        if is_logged(self.trainer):
            norm = {} if self._grad_norm is None else {"train/grad_norm": self._grad_norm}
            self.log_dict({"train/lr": rate} | norm)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        if not self.optim_config.clip_grad:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
            return
        if self.scales_loss():
            raise ValueError(
                "trainer.precision=16-mixed scales the loss, and scaled gradients cannot be clipped: choose bf16-mixed "
                "or 32-true, or set optim.clip_grad=0"
            )
        if not self.guard.skipped:
            self.clip(self.optim_config.clip_grad)

    def clip(self, largest: float) -> None:
        """Scale the gradients down to the norm `largest` of all together, if theirs is above."""
        # Lightning's own refuses fused optimizers, whose step would undo a loss scale after the clipping.
        assert self._grad_norm is not None  # where the loss is scaled, nothing is clipped
        torch.nn.utils.clip_grads_with_norm_(self.parameters(), largest, self._grad_norm)

    def scales_loss(self) -> bool:
        """Whether the trainer multiplies the loss, so that gradients in 16 bit do not vanish."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.guard.skipped:
            self.on_skipped_step()
        else:
            self.after_step()  # here and not in on_train_batch_end, which also fires between accumulated batches

    def learning_rate(self) -> float:
        """Rate of the next step: linear warm-up, then half a cosine to min_lr at the end of the run."""
        optim, peak = self.optim_config, scaled_lr(self.optim_config.base_lr, self.global_batch)
        warmup = fraction_of_epochs(self.trainer, optim.warmup_epochs)
        return warmup_cosine(fraction_done(self.trainer), 1.0, peak=peak, final=optim.min_lr, warmup=warmup)

    def generator(self, device: torch.device) -> torch.Generator | None:
        """For this step's random numbers, by (seed, epoch, batch, rank); outside a trainer None, PyTorch's own."""
        if self._trainer is None:
            return None
        return seeded_generator(device, self.seed, *self._position, self.global_rank)


class Method(Objective):
    """A self-supervised objective on one encoder.

    Args:
        encoder, optim: an EncoderConfig, an OptimConfig, or dicts of the fields that differ from the paper's.
        seed: all random numbers of a step are a function of (seed, epoch, batch, rank).
        options: fields of the method's own config, such as mask_ratio.
    """

    exported = TRAINED
    """Prefix of the exported encoder's weights in the state dict; a checkpoint carries it."""

    def __init__(
        self,
        encoder: EncoderConfig | dict[str, Any] | None = None,
        optim: OptimConfig | dict[str, Any] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(optim, seed, **options)
        self.encoder_config: EncoderConfig = override(self.Config().encoder, encoder, "encoder")  # pyright: ignore
        self.encoder = VisionTransformer(self.encoder_config)
        options = {"encoder": asdict(self.encoder_config), "optim": asdict(self.optim_config), "seed": seed}
        self.save_hyperparameters(options | asdict(self.config))

    @classmethod
    def from_run(cls, run: RunConfig) -> Any:
        """With a run's options."""
        return cls(run.encoder, run.optim, run.seed, **vars(run.method))

    def export_encoder(self) -> VisionTransformer:
        """The encoder that is saved and evaluated."""
        return self.encoder

    def export(self, folder: Path, **metadata: Any) -> Path:
        """Write the encoder."""
        return save_encoder(self.export_encoder(), folder, **metadata)

    def start_from(self, source: str) -> None:
        """Begin with the weights of another encoder, from anything that load_encoder reads."""
        transfer(load_encoder(source), self.encoder, f"init_from={source}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["exported"] = self.exported
