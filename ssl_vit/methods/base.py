"""What all training shares: AdamW with the papers' schedules, named losses in the log, guarded steps, sharding.

An Objective is a LightningModule that any `pl.Trainer` fits. It has `transform`, `losses` and `export`; where it needs
them `inputs`, `after_step`, `on_skipped_step`, `visualize`, `decays` and `clip`. A Method is one on an encoder, and
needs `losses` alone: `ssl_vit.methods`, or a class of your own. Those of `ssl_vit.tokenizers` train tokenizers, that of
`ssl_vit.supervised` a classifier.
"""

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vit.callbacks.collapse import CollapseMonitor
from ssl_vit.callbacks.image_logger import ImageLogger
from ssl_vit.callbacks.online_eval import OnlineProbe
from ssl_vit.callbacks.skipped_steps import SkippedSteps
from ssl_vit.config.checks import override, require
from ssl_vit.config.schema import EncoderConfig, MonitorConfig, OptimConfig, ReadoutConfig, RunConfig, TrainingRun
from ssl_vit.config.signature import GIVEN, config_of, expose
from ssl_vit.data.loader import batch_images, full_length, warn_unless_normalized
from ssl_vit.data.rng import seeded_generator, seeded_globals
from ssl_vit.data.transforms.crops import RandomCrop, Transform
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.methods.guard import Guard
from ssl_vit.models.blocks import Block
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import TRAINED, load_encoder, require_fit, save_encoder, transfer
from ssl_vit.optim.param_groups import adamw, average_gradients, decay_groups, grad_norm, scaled_lr
from ssl_vit.optim.progress import fraction_done, fraction_of_epochs, is_logged, pace_of, resume_pace
from ssl_vit.optim.schedules import warmup_cosine
from ssl_vit.parallel.distributed import mean_over_ranks
from ssl_vit.parallel.fsdp import gather, mesh_of, plain_copy, shard

log = logging.getLogger("ssl_vit")
Fields = dict[str, Any] | None


class Objective(pl.LightningModule, ABC):
    """A sum of losses to minimize on batches of images.

    Args:
        optim: an OptimConfig, or a dict of the fields that differ from the paper's.
        seed: all random numbers of a step are a function of (seed, epoch, batch, rank); None: PyTorch's seed, as
            `pl.seed_everything` sets it, when the training begins. The global generators stay as they are.
        monitor: what is evaluated and listed while training, a MonitorConfig or a dict of what differs from it.
        options: fields of the objective's own config, such as mask_ratio.
    """

    Config: ClassVar[type[TrainingRun]]
    """Its run's configuration. Where a class declares none, it has its base's, and as settings of its own what its
    __init__ takes with a default."""
    max_skipped_steps = 10
    """Steps in a row that may be skipped because loss or gradient is not finite."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if hasattr(cls, "Config"):
            if "Config" not in vars(cls) and "__init__" in vars(cls):
                cls.Config = config_of(cls, cls.Config)
            run = cls.Config()
            sections = {name: section for name, section in vars(run).items() if is_dataclass(section)}
            expose(cls, run.own_config, sections)

    def __init__(
        self,
        optim: OptimConfig | Fields = None,
        seed: int | None = None,
        monitor: MonitorConfig | Fields = None,
        **options: Any,
    ) -> None:
        super().__init__()
        paper = self.Config()
        taken = {name: value for name, value in vars(self).get(GIVEN, {}).items() if hasattr(paper.own_config, name)}
        self.optim_config: OptimConfig = override(paper.optim, optim, "optim")
        self.monitor_config: MonitorConfig = override(paper.monitor, monitor, "monitor")
        self.config = override(paper.own_config, taken | options, paper.own_section)
        own = {name: value for name, value in vars(self.config).items() if name not in ("optim", "seed", "monitor")}
        self.keep_hyperparameters(optim=self.optim_config, monitor=self.monitor_config, seed=seed, **own)
        self.seed = torch.initial_seed() if seed is None else seed
        self.extra_metrics: dict[str, Any] = {}  # scalars that losses() sets, logged beside its terms
        self._position: tuple[Any, ...] = (0, 0)
        self.global_batch = self.steps_ahead = 0
        self.guard, self._resumed = Guard(), dict[str, Any]()  # the pace of the run that a fit resumes
        self._grad_norm: Tensor | None = None
        self._sharded = False
        self._plain: list[Any] = []  # the first rank's copy of a sharded objective, in a list: it is no submodule

    @classmethod
    def from_run(cls, run: Any, **parts: Any) -> Any:
        """With a run's options, and what else __init__ takes."""
        return cls(optim=run.optim, seed=run.seed, monitor=run.monitor, **vars(run.own_config), **parts)

    def keep_hyperparameters(self, **values: Any) -> None:
        """Save what __init__ takes as plain values, which load_from_checkpoint hands to it again."""
        plain = {name: asdict(value) if is_dataclass(value) else value for name, value in values.items()}  # pyright: ignore
        self.save_hyperparameters(plain)

    def save_hyperparameters(self, *args: Any, ignore: Any = (), frame: Any = None, logger: bool = True) -> None:
        """As Lightning's, which cannot find options that an __init__ takes as **options; saved ones stay."""
        if not args or isinstance(args[0], str):
            given, kept = vars(self).get(GIVEN, {}), [ignore] if isinstance(ignore, str) else ignore
            args = ({name: given[name] for name in args or given if name not in (*self.hparams, *kept)},)
        frame = frame or inspect.currentframe()
        while frame.f_back:  # where it looks for arguments: there are none outermost
            frame = frame.f_back
        super().save_hyperparameters(*args, frame=frame, logger=logger)

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
    def export(self, folder: str | Path, **metadata: Any) -> Path:
        """Write the result of the training with its metadata; returns its file. After several ranks it is whole()'s."""

    def after_step(self) -> None:
        """Called once after each optimizer step."""

    def on_skipped_step(self) -> None:
        """Called in place of after_step where a step is skipped: drops what losses() has kept for it."""

    def visualize(self, images: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Columns [B, C, H, W] for ImageLogger, floats normalized as `images` are, or uint8; pixels: in [0, 1]."""
        return {}

    def setup(self, stage: str) -> None:
        """Each fit has its own count of steps, and its own seed where none is given."""
        self.guard, self._resumed = Guard(), {}
        if stage == "fit" and self.hparams["seed"] is None:
            self.seed = int(self.trainer.strategy.broadcast(torch.initial_seed()))

    def configure_callbacks(self) -> list[pl.Callback]:
        """Its monitors, for any Trainer: those that `monitor` turns on and the Trainer does not have already."""
        attached, switches = self.trainer.callbacks, self.monitor_config  # pyright: ignore[reportAttributeAccessIssue]
        wanted: list[pl.Callback] = [SkippedSteps()] if switches.skipped_steps else []
        wanted += [self.online_evaluation()] if switches.every_epochs else []
        wanted += [CollapseMonitor()] * switches.collapse  # which reads what the evaluation has found
        return [own for own in wanted if not any(isinstance(other, type(own)) for other in attached)]

    def online_evaluation(self) -> ImageLogger:
        """What is evaluated and shown every few epochs: here what visualize() makes."""
        return ImageLogger(self.monitor_config)

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
        own = {"global_batch": self.global_batch, "steps_ahead": self.steps_ahead, "taken": self.guard.taken}
        checkpoint |= {"sharded": self._sharded, "seed": self.seed, "pace": pace_of(self._trainer) | own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumed = checkpoint.get("pace", {"taken": checkpoint["global_step"]})  # older ones lack it
        self.guard = Guard(self._resumed["taken"])
        if self.hparams["seed"] is None:
            self.seed = checkpoint["seed"]
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
        self.guard.require_fewer(self.max_skipped_steps, self.global_step)
        if not self.global_batch:
            warn_unless_normalized(batch_images(batch))
            self.global_batch = full_length(batch) * self.trainer.world_size * self.trainer.accumulate_grad_batches
        total, losses = self._losses_of(batch, self.current_epoch, batch_idx)
        if is_logged(self.trainer):
            scalars = {"loss": total} | losses | self.extra_metrics
            values = [torch.as_tensor(value, dtype=torch.float32, device=self.device) for value in scalars.values()]
            means = mean_over_ranks(torch.stack(values).detach())
            for name, mean in zip(scalars, means, strict=True):
                self.log(f"train/{name}", mean, prog_bar=name == "loss")
        self.guard.watch(total, batch)
        return total

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """The same losses as val/..., with the same draws each time; centers, teachers and counters stay."""
        total, losses = self._losses_of(batch, "val", dataloader_idx, batch_idx)
        terms = {f"val/{name}": loss for name, loss in ({"loss": total} | losses).items()}
        self.log_dict(terms, batch_size=full_length(batch), sync_dist=True)

    def _losses_of(self, batch: Any, *position: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a batch's losses, and the terms; what they draw depends on (seed, position, rank) alone."""
        self._position = position
        own = self.generator(torch.device("cpu"))
        with seeded_globals(own.initial_seed() + 1, self.device):  # pyright: ignore  # drop path draws from PyTorch's own
            losses = self.losses(self.inputs(batch))
        return torch.stack(list(losses.values())).sum(), losses

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim = self.optim_config
        groups = decay_groups(self.named_parameters(), optim.weight_decay, self.decays)
        return adamw(groups, optim.base_lr, optim.betas)

    @property
    def learning_rate(self) -> float:
        """Peak of the schedule, optim.base_lr scaled to the global batch; before the first step for 256 images.

        `Tuner.lr_find(method, attr_name="learning_rate")` sets it.
        """
        return scaled_lr(self.optim_config.base_lr, self.global_batch or 256)

    @learning_rate.setter
    def learning_rate(self, peak: float) -> None:
        self.optim_config = replace(self.optim_config, base_lr=peak * 256 / (self.global_batch or 256))

    def on_train_start(self) -> None:
        """A clean slate, whatever batches an earlier fit, or trial of a Tuner, had."""
        self.global_batch, self.steps_ahead = resume_pace(self.trainer, self._resumed)
        self.guard, self._resumed = Guard(self.guard.taken), {}
        self.on_skipped_step()
        epochs = self.optim_config.warmup_epochs
        if fraction_of_epochs(self.trainer, epochs) >= 1:
            effect = "the learning rate never reaches its peak; lower it, or train longer"
            log.warning(f"optim.warmup_epochs={epochs} is no shorter than the run: {effect}")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        average_gradients(self.parameters(), self.guard.batches, self.trainer.accumulate_grad_batches)
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        # Under a loss scale (16-mixed) an infinite norm is common, and its scaler's to handle.
        self._grad_norm = None if scaled else grad_norm(self.parameters())
        if not self.guard.check(self._grad_norm, self.global_step, self.current_epoch) and not scaled:
            optimizer.zero_grad()  # AdamW skips what has no gradient: weights and moments stay
        optim, done = self.optim_config, fraction_done(self.trainer)
        warmup, lr = fraction_of_epochs(self.trainer, optim.warmup_epochs), optimizer.param_groups[-1]["lr"]
        if not self.trainer.lr_scheduler_configs:  # those of a Tuner's search, or of your own configure_optimizers
            lr = warmup_cosine(done, 1.0, peak=self.learning_rate, final=optim.min_lr, warmup=warmup)
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
        """For a step's own random numbers, by (seed, epoch, batch, rank); outside a trainer None, PyTorch's own."""
        key = self.seed, *self._position
        return None if self._trainer is None else seeded_generator(device, *key, self.global_rank)


class Method(Objective):
    """A self-supervised objective on one encoder; it needs `losses` alone.

    Args:
        encoder: an EncoderConfig, or a dict of the fields that differ from the paper's.
        mean: of each channel of the images in [0, 1], by which batches are normalized; kept with the encoder. None:
            that of the ImageDataModule that it is trained on.
        std: likewise.
        readout: which features `Trainer.predict` and the online evaluation read, a ReadoutConfig or a dict.
        optim: an OptimConfig, or a dict of the fields that differ from the paper's.
        seed, options: as an Objective takes them.
    """

    Config = RunConfig
    exported = TRAINED
    """Prefix of the exported encoder's weights in the state dict; a checkpoint carries it."""

    def __init__(
        self,
        encoder: EncoderConfig | Fields = None,
        optim: OptimConfig | Fields = None,
        seed: int | None = None,
        *,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        readout: ReadoutConfig | Fields = None,
        **options: Any,
    ) -> None:
        super().__init__(optim, seed, **options)
        paper: Any = self.Config()
        self.encoder_config: EncoderConfig = override(paper.encoder, encoder, "encoder")
        self.readout: ReadoutConfig = override(paper.readout, readout, "readout")
        self.encoder = VisionTransformer(self.encoder_config)
        for name, values in (("mean", mean), ("std", std)):
            fits = values is None or len(values) == self.channels
            require(fits, name, values, f"one number a channel (encoder.channels={self.channels})")
        self.mean, self.std = mean and list(mean), std and list(std)
        self.keep_hyperparameters(encoder=self.encoder_config, readout=self.readout, mean=self.mean, std=self.std)

    @classmethod
    def from_run(cls, run: RunConfig, **parts: Any) -> Any:
        return super().from_run(run, encoder=run.encoder, readout=run.readout, **parts)

    @property
    def image_size(self) -> tuple[int, int]:
        """Training image (H, W), in pixels."""
        return self.encoder_config.height_width

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.encoder_config.channels

    def transform(self) -> Transform:
        """By default a random crop of 20 to 100 % of the image, half of them mirrored."""
        return RandomCrop(self.image_size, (0.2, 1.0))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B S D"]:
        """Tokens of the exported encoder."""
        return self.export_encoder()(images)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Float[Tensor, "B _"]:
        """Features of the images, of several crops the first, as `readout` says; best is the last block here."""
        images, layer = batch_images(batch), self.readout.layer
        backbone = EncoderBackbone(self.export_encoder())
        feature = backbone.feature(self.readout.pool, "last" if layer == "best" else layer, self.readout.blocks)
        return backbone.extractor(feature)(images if isinstance(images, Tensor) else images[0])

    def online_evaluation(self) -> OnlineProbe:
        """Probes of the encoder's features too."""
        return OnlineProbe(self.monitor_config, self.readout)

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

    def export(self, folder: str | Path, **metadata: Any) -> Path:
        """Write the encoder."""
        return save_encoder(self.export_encoder(), folder, **(self.statistics() | metadata))

    def statistics(self) -> dict[str, list[float]]:
        """mean and std of the images as far as they are known: given, or those of the trainer's ImageDataModule."""
        data = getattr(getattr(self._trainer, "datamodule", None), "data", None)
        found = {name: getattr(self, name) or getattr(data, name, None) for name in ("mean", "std")}
        return {name: values for name, values in found.items() if values}

    def start_from(self, source: str) -> None:
        """Begin with the weights of another encoder, from anything that load_encoder reads."""
        transfer(load_encoder(source), self.encoder, f"init_from={source}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint |= {"exported": self.exported, "metadata": self.statistics()}
