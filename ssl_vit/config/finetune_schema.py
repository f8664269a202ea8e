"""Settings of fine-tuning and of predicting with its result; schema.py has all the rest."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ssl_vit.config import checks
from ssl_vit.config.checks import Bounded, Fraction, PositiveInt, fresh
from ssl_vit.config.schema import DataConfig, OptimConfig, TrainerConfig, TrainingRun

KINDS_OF_TABLES = (".csv", ".json", ".html")
TABLE_FILE = checks.Bound("a file that ends in .csv, .json or .html", lambda path: path.endswith(KINDS_OF_TABLES))


@dataclass(kw_only=True)
class FinetuneConfig(Bounded, section="finetune"):
    """A classification head on an encoder, both trained; defaults are MAE's for ViT-B (arXiv:2111.06377, table 9)."""

    pool: Literal["mean", "cls"] = "mean"
    """What the head sees: mean (of patches, through a norm of its own) or cls (class token, through the encoder's)."""
    layer_decay: Annotated[float, checks.inside("(0, 1]")] = 0.65
    """Each block learns at this fraction of the rate of the block above it (arXiv:2003.10555); 1: all alike."""
    drop_path: Annotated[float, checks.inside("[0, 1)")] = 0.1
    """Stochastic-depth rate of the last block; earlier blocks ramp up linearly from 0."""
    label_smoothing: Annotated[float, checks.inside("[0, 1)")] = 0.1
    """Fraction of each target that is spread evenly over all classes."""
    mixup: checks.Strength = 0.8
    """Images are mixed with a weight from Beta(mixup, mixup) (arXiv:1710.09412); 0: never."""
    cutmix: checks.Strength = 1.0
    """A box of an image, its area from Beta(cutmix, cutmix), is another's (arXiv:1905.04899); 0: never."""
    mix_p: Fraction = 1.0
    """Fraction of batches that are mixed."""
    switch_p: Fraction = 0.5
    """Fraction of mixed batches that get a box, where both mixup and cutmix are on."""
    randaugment: Annotated[float, checks.inside("[0, 10]")] = 9.0
    """Magnitude of RandAugment's operations (arXiv:1909.13719; timm's increasing set); 0: none."""
    randaugment_std: checks.Strength = 0.5
    """Std of that magnitude, from one operation to the next."""
    randaugment_ops: Annotated[int, checks.inside("[1, 100]")] = 2
    """Random operations for an image; each is then carried out with probability .5."""
    erasing_p: Fraction = 0.25
    """Fraction of images of which a box becomes noise (arXiv:1708.04896)."""
    crop_scale: checks.CropScale = (0.08, 1.0)
    """Area of the random crop, as a fraction of the image."""
    crop_ratio: checks.CropRatio = (3 / 4, 4 / 3)
    """Width / height of a crop, as a multiple of its own size's: how much it is stretched at most."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""
    jitter: Fraction = 0.0
    """Strength of the change of brightness, contrast and saturation, for every crop; 0: none."""
    ema: Annotated[float, checks.inside("[0, 1)")] = 0.0
    """Fraction of the old weights in their moving average, which is then evaluated and kept; 0: no average."""
    class_weights: bool = False
    """Weigh each image by n / (K n_c): n images, K classes, n_c images of its class."""
    head_std: Annotated[float, checks.inside("(0, 1]")] = 2e-5
    """Std of the head's initial weights."""
    rel_pos_per_block: bool = True
    """Give each block of an encoder with relative positions a table of its own, as BEiT's authors do."""

    def unread(self) -> checks.Unread:
        mixes = bool(self.mixup or self.cutmix)
        yield not mixes, "mix_p", "mixup", "finetune.mixup=0 and finetune.cutmix=0 mix no images"
        both = bool(self.mixup and self.cutmix)
        why = f"finetune.mixup={self.mixup:g} and finetune.cutmix={self.cutmix:g} are not both on"
        yield not both, "switch_p", "cutmix" if self.mixup else "mixup", why
        names, why = "randaugment_std randaugment_ops", "finetune.randaugment=0 has no operations"
        yield not self.randaugment, names, "randaugment", why


@dataclass(kw_only=True)
class DistillConfig(Bounded, section="distill"):
    """A teacher whose predictions a distillation token learns as well (DeiT, arXiv:2012.12877, section 4)."""

    teacher: str = ""
    """timm:NAME, timm:NAME:FILE with weights of your own, or a fine-tuned run or model.safetensors; empty: none."""
    kind: Literal["hard", "soft"] = "hard"
    """hard: the teacher's best class is the label; soft: all of its probabilities."""
    alpha: Fraction = 0.5
    """Weight of the teacher's part of the loss; the labels' part has the rest."""
    temperature: checks.Temperature = 1.0
    """Of both softmaxes, for soft."""

    def unread(self) -> checks.Unread:
        yield not self.teacher, "kind alpha temperature", "teacher", "there is no distill.teacher"
        yield self.kind == "hard", "temperature", "kind", "distill.kind=hard takes the teacher's best class"


@dataclass(kw_only=True)
class FinetuneRun(TrainingRun):
    """One fine-tuning. Its data is by default what the encoder was trained on, normalized as it was then."""

    own_section: ClassVar[str] = "finetune"
    recipe: str = "digits"
    """Name of a recipe that the project brings along, or the path of a YAML file; by default that of the encoder's."""
    encoder: str = ""
    """Where to start: a run, encoder.safetensors, a checkpoint, an official .pth; by default the newest pretraining."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """pretrained, or scratch: the same network from fresh weights, the supervised control."""
    image_size: checks.ImageSize | None = None
    """Image in pixels, a side or [height, width]; null: the encoder's. Positions are resampled."""
    data: DataConfig = fresh(DataConfig, mean=[], std=[])
    finetune: FinetuneConfig = fresh(FinetuneConfig)
    distill: DistillConfig = fresh(DistillConfig)
    optim: OptimConfig = fresh(OptimConfig, base_lr=5e-4, min_lr=1e-6, warmup_epochs=5)
    trainer: TrainerConfig = fresh(TrainerConfig, max_epochs=100)

    def unread(self) -> checks.Unread:
        yield from super().unread()
        names = "data.epoch_size data.shuffle_buffer"
        yield True, names, "encoder", "a fine-tuning reads images by number, not as a stream"
        yield True, "monitor.train_limit monitor.images", "encoder", "only test images are evaluated, and none is shown"


@dataclass(kw_only=True)
class PredictConfig(Bounded):
    """Classes of images by a fine-tuned model, as a table or as a page to look at."""

    images: str = ""
    """An image, or a folder of images, nested or flat; by default that which the model was trained on."""
    model: str = ""
    """A fine-tuned run or model.safetensors; by default the newest."""
    out: Annotated[str, TABLE_FILE] = "predictions.csv"
    """File to write; ends in .csv or .json, tables, or .html: a page with thumbnails, the least confident first."""
    top: PositiveInt = 5
    """Most probable classes listed for each image."""
    batch_size: PositiveInt = 64
    """Images at a time."""
