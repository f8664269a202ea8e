"""Settings of fine-tuning and of predicting with its result; see schema.py for the rest."""

from dataclasses import dataclass, field
from typing import Any

from ssl_vit.config.checks import interval, one_of, require, sides_of
from ssl_vit.config.schema import OptimConfig, TrainerConfig, TrainingRun


@dataclass(kw_only=True)
class FinetuneConfig:
    """A classification head on an encoder, both trained; defaults are MAE's for ViT-B (arXiv:2111.06377, table 9)."""

    pool: str = "mean"
    """What the head sees: mean (of patches, through a norm of its own) or cls (class token, through the encoder's)."""
    layer_decay: float = 0.65
    """Each block learns at this share of the rate of the block above it (arXiv:2003.10555); 1: all alike."""
    drop_path: float = 0.1
    """Stochastic-depth rate of the last block; earlier blocks ramp up linearly from 0."""
    label_smoothing: float = 0.1
    """Share of each target that is spread evenly over all classes."""
    mixup: float = 0.8
    """Images are mixed by a share drawn from Beta(mixup, mixup) (arXiv:1710.09412); 0: never."""
    cutmix: float = 1.0
    """A box of an image, its area drawn from Beta(cutmix, cutmix), is another's (arXiv:1905.04899); 0: never."""
    mix_p: float = 1.0
    """Share of batches that are mixed."""
    switch_p: float = 0.5
    """Share of mixed batches that get a box, where both mixup and cutmix are on."""
    randaugment: float = 9.0
    """Magnitude of RandAugment's operations, in (0, 10] (arXiv:1909.13719; timm's increasing set); 0: none."""
    randaugment_std: float = 0.5
    """Deviation of that magnitude from one operation to the next."""
    randaugment_ops: int = 2
    """Operations drawn for an image; each is then carried out with probability .5."""
    erasing_p: float = 0.25
    """Share of images of which a box becomes noise (arXiv:1708.04896)."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop, as a share of the image."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""
    jitter: float = 0.0
    """Strength of the change of brightness, contrast and saturation, for every crop; 0: none."""
    ema: float = 0.0
    """Share of the old weights in their moving average, which is then judged and kept; 0: the weights themselves."""
    class_weights: bool = False
    """Weigh each image by n / (K n_c): n images, K classes, n_c images of its class."""
    head_std: float = 2e-5
    """Deviation of the head's initial weights."""
    rel_pos_per_block: bool = True
    """Give each block of an encoder with relative positions a table of its own, as BEiT's authors do."""

    def __post_init__(self) -> None:
        one_of("method.pool", self.pool, ("mean", "cls"))
        require(0 < self.layer_decay <= 1, "method.layer_decay", self.layer_decay, "in (0, 1]")
        for name in ("drop_path", "label_smoothing", "ema"):
            require(0 <= getattr(self, name) < 1, f"method.{name}", getattr(self, name), "in [0, 1)")
        for name in ("mix_p", "switch_p", "erasing_p", "jitter"):
            require(0 <= getattr(self, name) <= 1, f"method.{name}", getattr(self, name), "in [0, 1]")
        for name in ("mixup", "cutmix", "randaugment_std"):
            require(getattr(self, name) >= 0, f"method.{name}", getattr(self, name), "0 or more")
        require(0 <= self.randaugment <= 10, "method.randaugment", self.randaugment, "in [0, 10]")
        require(self.randaugment_ops > 0, "method.randaugment_ops", self.randaugment_ops, "a positive integer")
        interval("method.crop_scale", self.crop_scale, 0.01, 1.0)
        require(self.head_std > 0, "method.head_std", self.head_std, "positive")


@dataclass(kw_only=True)
class DistillConfig:
    """A teacher whose answers a distillation token learns as well (DeiT, arXiv:2012.12877, section 4)."""

    teacher: str = ""
    """timm:NAME, timm:NAME:FILE with weights of your own, or a fine-tuned run or model.safetensors; empty: none."""
    kind: str = "hard"
    """hard (the teacher's best class is the label) or soft (all of its probabilities)."""
    alpha: float = 0.5
    """Weight of the teacher's part of the loss; the labels' part has the rest."""
    temperature: float = 1.0
    """Softness of both sides' probabilities, for soft."""

    def __post_init__(self) -> None:
        one_of("distill.kind", self.kind, ("hard", "soft"))
        require(0 <= self.alpha <= 1, "distill.alpha", self.alpha, "in [0, 1]")
        require(self.temperature > 0, "distill.temperature", self.temperature, "positive")


@dataclass(kw_only=True)
class FinetuneRun(TrainingRun):
    """One fine-tuning. Its data is by default what the encoder was trained on, normalized as it was then."""

    recipe: str = "digits"
    """Name of a recipe that the project brings along, or the path of a YAML file; by default that of the encoder's."""
    encoder: str = ""
    """Where to start: a run, encoder.safetensors, a checkpoint, an official .pth; by default the newest pretraining."""
    init: str = "pretrained"
    """pretrained, or scratch: the same network from fresh weights, the supervised control."""
    image_size: Any = None
    """Image in pixels, a side or [height, width]; null: the encoder's. Positions are resampled."""
    method: FinetuneConfig = field(default_factory=FinetuneConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(base_lr=5e-4, min_lr=1e-6, warmup_epochs=5))
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=100))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("init", self.init, ("pretrained", "scratch"))
        if self.image_size is not None:
            sides_of("image_size", self.image_size)


@dataclass(kw_only=True)
class PredictConfig:
    """Classes of images by a fine-tuned model, as a table."""

    images: str = ""
    """An image, or a folder of images, nested or flat."""
    model: str = ""
    """A fine-tuned run or model.safetensors; by default the newest."""
    out: str = "predictions.csv"
    """Table to write; ends in .csv or .json."""
    top: int = 5
    """Most probable classes listed for each image."""
    batch_size: int = 64
    """Images at a time."""

    def __post_init__(self) -> None:
        require(self.out.endswith((".csv", ".json")), "out", self.out, "a file that ends in .csv or .json")
        require(self.top > 0, "top", self.top, "a positive integer")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive integer")
