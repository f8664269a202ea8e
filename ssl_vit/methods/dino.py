"""Self-distillation with no labels (DINO: Caron et al., 2021, arXiv:2104.14294).

A student learns to predict, from any crop of an image, a teacher's output for its large crops. The teacher is a moving
average of the student; centering and a low temperature of its outputs prevent collapse.

Letters: B images, G global crops, V crops in all (globals first), C channels, H x W pixels, D width, K prototypes.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vit.config.pretrain_schema import DINOConfig, DINORun
from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import MultiCrop, RandomCrop
from ssl_vit.evaluate.features import feature_std
from ssl_vit.evaluate.visualize import attention_images
from ssl_vit.methods.base import Method
from ssl_vit.methods.heads import ProjectionHead
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.optim.ema import ema_update, frozen_copy
from ssl_vit.optim.param_groups import clip_each
from ssl_vit.optim.progress import fraction_done, fraction_of_epochs, is_logged
from ssl_vit.optim.schedules import cosine, linear
from ssl_vit.parallel.distributed import mean_over_ranks, sum_over_ranks

Crops = Sequence[Float[Tensor, "B C _ _"]]
Images = Float[Tensor, "B C H W"]
Logits = Float[Tensor, "V B K"]
Targets = Float[Tensor, "G B K"]


def centered_targets(logits: Targets, center: Float[Tensor, " K"], temperature: float) -> Targets:
    """The teacher's output: softmax((logits - center) / temperature), in float32 (equation 1, section 3.1)."""
    return ((logits.float() - center) / temperature).softmax(-1)


def sinkhorn_targets(logits: Targets, temperature: float, iterations: int = 3) -> Targets:
    """The teacher's output, spread evenly over the prototypes by Sinkhorn-Knopp (SwAV, arXiv:2006.09882, section 3.1).

    All crops of all ranks share the prototypes: every prototype gets the same mass, then every crop mass 1. In float64,
    where exp(logit / temperature) needs no shift: a shift that differs by rank would change the result.
    """
    mass = (logits.double() / temperature).exp().flatten(0, 1)  # [G * B, K]
    for _ in range(iterations):
        mass = mass / sum_over_ranks(mass.sum(0))
        mass = mass / mass.sum(1, keepdim=True)
    return mass.float().view_as(logits)


class CrossEntropyOfPairs(torch.autograd.Function):
    """Mean of -sum_k target log softmax(student / temperature) over images and pairs of different crops (equation 3).

    Targets sum to 1, so a pair's cross-entropy is logsumexp(z) - target . z, and the gradient of a crop's logits is
    (number of its pairs) * softmax(z) - (sum of their targets): one softmax a crop, and nothing for each pair.
    """

    @staticmethod
    def forward(ctx: Any, student: Logits, targets: Targets, temperature: float) -> Float[Tensor, ""]:
        V, G, B = len(student), len(targets), student.shape[1]
        scores = student.float() / temperature
        probabilities = scores.softmax(-1)
        # logsumexp: the largest probability is exp(largest score - logsumexp)
        normalizer = scores.amax(-1) - probabilities.amax(-1).log()
        pairs = torch.full((V, 1), float(G), device=scores.device)  # how many teacher crops each crop is compared with
        pairs[:G] -= 1
        ctx.save_for_backward(probabilities, targets, pairs)
        ctx.scale = 1 / (B * G * (V - 1) * temperature)
        agreement = (scores.sum(0) * targets.sum(0)).sum() - (scores[:G] * targets).sum()
        return ((pairs * normalizer).sum() - agreement) / (B * G * (V - 1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        probabilities, targets, pairs = ctx.saved_tensors
        grad = probabilities * pairs[..., None]
        grad -= targets.sum(0)
        grad[: len(targets)] += targets
        return grad.mul_(ctx.scale * grads[0]), None, None


def cross_entropy_of_pairs(student: Logits, targets: Targets, temperature: float) -> Float[Tensor, ""]:
    """DINO's loss for logits of the student and targets of the teacher, in float32; see CrossEntropyOfPairs."""
    return CrossEntropyOfPairs.apply(student, targets, temperature)  # pyright: ignore


def entropy(probabilities: Float[Tensor, "*n K"]) -> Float[Tensor, ""]:
    """Mean of -sum_k p log p, in nats."""
    return torch.special.entr(probabilities).sum(-1).mean()


class DINO(Method):
    """Self-distillation on V crops of each image, the G global ones first; options: DINOConfig."""

    Config = DINORun
    config: DINOConfig
    exported = "teacher_encoder."

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head = ProjectionHead(self.encoder.embed_dim, self.config)
        self.teacher_encoder = frozen_copy(self.encoder)
        self.teacher_head = frozen_copy(self.head).train()  # its BatchNorm, if any, uses the batch at hand
        self.center: Tensor
        self.register_buffer("center", torch.zeros(self.config.prototypes))
        self._teacher_means: list[Tensor] = []  # of the batches since the last step
        self._fraction = 0.0  # of the run that is done, read once a step: on several ranks that is a broadcast

    def train(self, mode: bool = True) -> "DINO":
        """The teacher's encoder stays in eval mode: no drop path in a target."""
        super().train(mode)
        self.teacher_encoder.eval()
        return self

    def transform(self) -> MultiCrop:
        cfg = self.config
        large = RandomCrop(self.encoder_config.height_width, cfg.global_scale, cfg.crop_ratio, cfg.flip)
        small = RandomCrop((cfg.local_size, cfg.local_size), cfg.local_scale, cfg.crop_ratio, cfg.flip)
        alike = ("brightness", "contrast", "saturation", "hue", "jitter_p", "gray_p", "blur_sigma")
        color = partial(ColorAugmentation, **{name: getattr(cfg, name) for name in alike})
        first, others, local = (color(blur_p=b, solarize_p=s) for b, s in zip(cfg.blur_p, cfg.solarize_p, strict=True))
        crops = [(large, first)] + [(large, others)] * (cfg.global_crops - 1)
        return MultiCrop(crops + [(small, local)] * cfg.local_crops)

    def losses(self, images: Crops | Tensor) -> dict[str, Float[Tensor, ""]]:
        """{"cross_entropy": loss}."""
        cfg, G = self.config, self.config.global_crops
        legal = f"a list of method.global_crops={G} + method.local_crops={cfg.local_crops} crops"
        crops = self.require_crops(images, G + cfg.local_crops, legal)
        self._fraction = fraction_done(self._trainer)
        with torch.no_grad():
            features = self.extract_features(self.teacher_encoder, crops[:G])
            teacher = self.teacher_head(features).unflatten(0, (G, -1))  # [G, B, K]
        student = self.head(self.extract_features(self.encoder, crops)).unflatten(0, (len(crops), -1))  # [V, B, K]
        if cfg.centering == "mean":
            targets = centered_targets(teacher, self.center, self.teacher_temperature())
        else:
            targets = sinkhorn_targets(teacher, self.teacher_temperature())
        if self.training:
            self._teacher_means.append(teacher.float().mean((0, 1)))
        loss = cross_entropy_of_pairs(student, targets, cfg.student_temp)
        if is_logged(self._trainer):
            self.measure(loss.detach(), features, student.detach(), targets)
        return {"cross_entropy": loss}

    def extract_features(self, encoder: VisionTransformer, crops: Crops) -> Float[Tensor, "n D"]:
        """One vector for each crop of each image, crop by crop; crops of one size go through together."""
        groups = [torch.cat(list(group)) for _, group in groupby(crops, key=lambda crop: crop.shape)]
        tokens = encoder.encode_many([encoder.embed(images) for images in groups], [*map(encoder.grid_of, groups)])
        return torch.cat([x[:, 0] if self.config.pool == "cls" else x[:, 1:].mean(1) for x in tokens])

    def teacher_temperature(self) -> float:
        """Linear from warmup_teacher_temp to teacher_temp, then constant."""
        warmup = fraction_of_epochs(self._trainer, self.config.warmup_teacher_temp_epochs)
        return linear(self._fraction, warmup, self.config.warmup_teacher_temp, self.config.teacher_temp)

    def measure(self, loss: Tensor, features: Tensor, student: Tensor, targets: Tensor) -> None:
        """Set extra_metrics, which tell a healthy run from a collapsed one, from losses()' own tensors."""
        spread, spread_of_mean = entropy(targets), entropy(targets.flatten(0, 1).mean(0))
        own = (student[: len(targets)].float() / self.config.student_temp).softmax(-1)
        self.extra_metrics = {
            "teacher_entropy": spread,
            "teacher_mean_entropy": spread_of_mean,
            # of a target about which image of the batch it is of: 0 nothing, 1 all that the prototypes can hold
            "information": (spread_of_mean - spread) / math.log(min(targets.shape[1:])),
            "student_entropy": entropy(own),
            "kl": loss - spread,
            "feature_std": feature_std(features.float()),
            "center_norm": self.center.norm(),
            "teacher_temp": self.teacher_temperature(),
            "momentum": self.momentum(),
        }

    def momentum(self) -> float:
        """Weight of the old teacher in the next one."""
        return cosine(self._fraction, self.config.momentum, 1.0)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        start, end = self.optim_config.weight_decay, self.config.weight_decay_end
        optimizer.param_groups[0]["weight_decay"] = cosine(self._fraction, start, end)
        if self._fraction < fraction_of_epochs(self._trainer, self.config.freeze_last_layer):
            self.head.last_layer.zero_grad()

    def clip(self, largest: float, norm: Tensor) -> None:
        """Each parameter's gradient by itself, as the authors do."""
        clip_each(self.parameters(), largest)

    def after_step(self) -> None:
        mean = mean_over_ranks(torch.stack(self._teacher_means).mean(0))
        self._teacher_means = []
        self.center.lerp_(mean, 1 - self.config.center_momentum)
        ema_update(self.teacher_encoder, self.encoder, self.momentum())
        ema_update(self.teacher_head, self.head, self.momentum())

    def on_skipped_step(self) -> None:
        self._teacher_means = []

    @torch.no_grad()
    def visualize(self, images: Images, pixels: Images) -> dict[str, Tensor]:
        """Each image, and the attention of each head in the teacher's last block."""
        encoder = self.teacher_encoder
        heads = attention_images(encoder.attention_maps(images), encoder.grid_of(images), encoder.patch_size)
        return {"image": images} | {
            f"attention of head {i + 1}": head[:, None] for i, head in enumerate(heads.unbind(1))
        }

    def start_from(self, source: str) -> None:
        super().start_from(source)
        self.teacher_encoder.load_state_dict(self.encoder.state_dict())
