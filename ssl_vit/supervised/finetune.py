"""Fine-tuning: an encoder and a classification head, trained on labeled images.

MAE's recipe (He et al., 2022, arXiv:2111.06377, appendix A.1, table 9); with a teacher DeiT's extra token.
Letters: B images, C channels, H x W pixels, K classes.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ssl_vit.callbacks.image_logger import ImageLogger
from ssl_vit.config.checks import override, require
from ssl_vit.config.finetune_schema import DistillConfig, FinetuneConfig, FinetuneRun
from ssl_vit.config.schema import EncoderConfig, OptimConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.loader import batch_images, batch_labels
from ssl_vit.data.transforms.augment import BatchAugmentation, ColorJitteredCrop, RandAugmentCrop, randaugment
from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.evaluate.features import Resources, extract_features
from ssl_vit.evaluate.metrics import figures
from ssl_vit.methods.base import Objective
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import as_encoder
from ssl_vit.optim.ema import ema_update, frozen_copy
from ssl_vit.optim.param_groups import adamw, layer_groups
from ssl_vit.parallel.distributed import mean_over_ranks
from ssl_vit.supervised.classifier import Classifier, save_classifier, tunable

LOGGED = ("top1", "top5", "calibration_error")


def soft_cross_entropy(
    logits: Float[Tensor, "B K"], targets: Float[Tensor, "B K"], class_weights: Float[Tensor, " K"] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy against probabilities, in float32, averaged over the batch, or over class_weights of all ranks."""
    losses = -(targets * logits.float().log_softmax(1)).sum(1)
    if class_weights is None:
        return losses.mean()
    weights = targets @ class_weights
    return (weights * losses).sum() / mean_over_ranks(weights.sum())


def balancing_weights(counts: Int64[Tensor, " K"]) -> Float[Tensor, " K"]:
    """n / (K n_c) for each class: n images of K classes, n_c of this one (King and Zeng, 2001)."""
    return counts.sum() / (len(counts) * counts.clamp_min(1).float())


def hard_distillation(student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """Cross-entropy against the teacher's best class (DeiT, arXiv:2012.12877, equation 3)."""
    return F.cross_entropy(student.float(), teacher.argmax(1))


def soft_distillation(
    student: Float[Tensor, "B K"], teacher: Float[Tensor, "B K"], temperature: float
) -> Float[Tensor, ""]:
    """Temperature^2 times the KL divergence from the teacher, over B K (DeiT's losses.py; equation 2 has B alone)."""
    ours, theirs = (logits.float().div(temperature).log_softmax(1) for logits in (student, teacher))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2 / student.numel()


def layer_of(name: str, depth: int) -> int:
    """Layer of a parameter for the learning rate's decay, as MAE's: 0 below the blocks, block i at i + 1, the rest."""
    name = name.removeprefix("encoder.")
    if name.startswith(("cls_token", "reg_token", "pos_embed", "patch_embed")):
        return 0
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else depth + 1


def class_probabilities(model: Classifier, data: ImageDataModule, limit: int = 0) -> tuple[Tensor, Tensor]:
    """[m, K] of test images, at most `limit`, 0 for all, by the model on its device; and their labels [m]."""
    model, resources = model.eval(), Resources(str(next(model.parameters()).device))
    return extract_features(lambda images: model(images).float().softmax(1), data, "test", limit, resources=resources)


class OnlineAccuracy(ImageLogger):
    """Evaluates the classifier on test images: monitor/top1, monitor/top5 and monitor/calibration_error."""

    def measure(self, objective: Any, data: ImageDataModule) -> dict[str, float]:
        scores = figures(*class_probabilities(objective.final_model(), data, self.config.test_limit), data.classes)
        return {f"monitor/{name}": scores[name] for name in LOGGED if scores[name] is not None}


class FineTune(Objective):
    """A classifier trained on labels, and on a teacher's scores where there is one.

    Args:
        encoder: where to start, anything as_encoder takes; it is copied.
        classes: names, in the order of the labels.
        optim, seed, options: as an Objective takes them, with fields of FinetuneConfig.
        image_size: in pixels, a side or [height, width]; None: the encoder's.
        counts: training images of each class, for class_weights.
        teacher: normalized images [B, C, H, W] -> class scores [B, K]; adds a distillation token, and has to be given
            to load_from_checkpoint() again.
        distill: a DistillConfig, or a dict of the fields that differ from DeiT's.

    ValueError: class_weights without counts, augmentation that the encoder's channels do not allow, an image size that
    is no multiple of its patch, a teacher for one with relative positions.
    """

    Config = FinetuneRun
    config: FinetuneConfig
    class_weights: Tensor | None

    def __init__(
        self,
        encoder: VisionTransformer | EncoderConfig | dict[str, Any] | str,
        classes: list[str],
        optim: OptimConfig | dict[str, Any] | None = None,
        seed: int | None = None,
        *,
        image_size: Any = None,
        counts: Int64[Tensor, " K"] | None = None,
        teacher: nn.Module | None = None,
        distill: DistillConfig | dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(optim, seed, **options)
        encoder = as_encoder(encoder)
        self.distill: DistillConfig = override(DistillConfig(), distill, "distill")
        cfg, channels = self.config, encoder.config.channels
        for name in ("randaugment", "jitter"):
            rule = f"0 for images of {channels} channels: colors are defined for 1 or 3"
            require(channels in (1, 3) or not getattr(cfg, name), f"finetune.{name}", f"{getattr(cfg, name):g}", rule)
        tuned = tunable(encoder, image_size, cfg.drop_path, cfg.rel_pos_per_block)
        self.model = Classifier(tuned, classes, cfg.pool, teacher is not None, cfg.head_std)
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.averaged = frozen_copy(self.model) if cfg.ema else None
        if cfg.class_weights and counts is None:
            raise ValueError("finetune.class_weights=true needs counts=, the training images of each class")
        weights = balancing_weights(torch.as_tensor(counts)) if cfg.class_weights and counts is not None else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.augment = BatchAugmentation(cfg, len(classes))
        counted = None if counts is None else torch.as_tensor(counts).tolist()
        known = {"encoder": encoder.config, "classes": list(classes), "image_size": image_size, "counts": counted}
        self.keep_hyperparameters(distill=self.distill, **known)

    def train(self, mode: bool = True) -> "FineTune":
        """Teacher and averaged weights stay in eval mode: no drop path in them."""
        super().train(mode)
        for frozen in (self.teacher, self.averaged):
            if frozen is not None:
                frozen.eval()
        return self

    def transform(self) -> RandAugmentCrop | ColorJitteredCrop:
        cfg, encoder = self.config, self.model.encoder
        mean = encoder.metadata.get("mean", [0.5] * encoder.config.channels)
        fill = [min(255, round(255 * value)) for value in mean]
        ops = randaugment(cfg.randaugment, cfg.randaugment_std, cfg.randaugment_ops, fill) if cfg.randaugment else None
        crop = RandAugmentCrop(RandomCrop(encoder.config.height_width, cfg.crop_scale, cfg.crop_ratio, cfg.flip), ops)
        if not cfg.jitter:
            return crop
        strengths = dict.fromkeys(("brightness", "contrast", "saturation"), cfg.jitter)
        jitter = ColorAugmentation(**strengths, hue=0.0, jitter_p=1.0, gray_p=0.0, blur_p=0.0, solarize_p=0.0)
        return ColorJitteredCrop(crop, jitter)

    @property
    def image_size(self) -> tuple[int, int]:
        """Training image (H, W), in pixels."""
        return self.model.encoder.config.height_width

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.model.encoder.config.channels

    @property
    def mean(self) -> list[float] | None:
        """Of each channel of the images that the encoder was trained on."""
        return self.model.encoder.metadata.get("mean")

    @property
    def std(self) -> list[float] | None:
        """Likewise."""
        return self.model.encoder.metadata.get("std")

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores before the softmax, of final_model()."""
        return self.final_model()(images)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """val/loss, the cross-entropy with the labels, and val/top1, of images as they are."""
        images, labels = self.inputs(batch)
        scores = self(images).float()
        terms = {"val/loss": F.cross_entropy(scores, labels), "val/top1": (scores.argmax(1) == labels).float().mean()}
        self.log_dict(terms, batch_size=len(labels), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> Float[Tensor, "B K"]:
        """Class probabilities."""
        return self(batch_images(batch)).float().softmax(1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["metadata"] = self.model.encoder.metadata

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.model.encoder.metadata = self.final_model().encoder.metadata = checkpoint["metadata"]

    def inputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Normalized images and their labels."""
        return batch_images(batch), batch_labels(batch)

    def losses(self, labeled: tuple[Float[Tensor, "B C H W"], Int64[Tensor, " B"]]) -> dict[str, Float[Tensor, ""]]:
        """{"classification": loss}, with a teacher {"distillation": ...} too, each by its weight in the sum."""
        images, targets = self.augment(*labeled, self.step_seed())
        by_labels, by_teacher = self.model.both(images)
        loss = soft_cross_entropy(by_labels, targets, self.class_weights)
        if by_teacher is None or self.teacher is None:
            return {"classification": loss}
        cfg = self.distill
        distill = hard_distillation if cfg.kind == "hard" else partial(soft_distillation, temperature=cfg.temperature)
        with torch.no_grad():
            scores = self.teacher(images)
        return {"classification": (1 - cfg.alpha) * loss, "distillation": cfg.alpha * distill(by_teacher, scores)}

    def step_seed(self) -> int:
        """Seed of this step's augmentation, by (seed, epoch, batch, rank); outside a trainer drawn from PyTorch."""
        generator = self.generator(torch.device("cpu"))
        return int(torch.randint(2**53, ())) if generator is None else generator.initial_seed()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optim, depth, named = self.optim_config, self.model.encoder.depth, self.model.named_parameters()
        layer = partial(layer_of, depth=depth)
        groups = layer_groups(named, optim.weight_decay, self.decays, layer, depth + 1, self.config.layer_decay)
        return adamw(groups, optim.base_lr, optim.betas)

    def decays(self, name: str, parameter: Tensor) -> bool:
        """As MAE's and BEiT's authors: not vectors, class token and positions."""
        return super().decays(name, parameter) and not name.endswith(("cls_token", "reg_token", "pos_embed"))

    def after_step(self) -> None:
        if self.averaged is not None:
            ema_update(self.averaged, self.model, self.config.ema)

    def online_evaluation(self) -> OnlineAccuracy:
        """How well it classifies test images."""
        return OnlineAccuracy(self.monitor_config)

    def final_model(self) -> Classifier:
        """The classifier that is saved and evaluated: the averaged one where there is one."""
        return self.model if self.averaged is None else self.averaged

    def export(self, folder: str | Path, **metadata: Any) -> Path:
        """Write the classifier, and its encoder."""
        return save_classifier(self.final_model(), folder, **metadata)
