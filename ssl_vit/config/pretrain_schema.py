"""The methods' own settings, and each method's RunConfig with its paper's defaults; schema.py has all the rest."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ssl_vit.config import checks
from ssl_vit.config.checks import Bounded, CropScale, Fraction, NonNegativeFloat, PositiveInt, fresh
from ssl_vit.config.schema import EncoderConfig, Kind, OptimConfig, ReadoutConfig, RunConfig, TrainerConfig

CropFractions = Annotated[tuple[float, float, float], checks.each(checks.inside("[0, 1]"), "three numbers")]


@dataclass(kw_only=True)
class MAEConfig(Bounded, section="method"):
    """Masked autoencoder (arXiv:2111.06377)."""

    mask_ratio: Annotated[float, checks.inside("(0, 1)")] = 0.75
    """Fraction of patches hidden."""
    norm_pix: bool = True
    """Normalize each target patch by its own mean and std."""
    decoder_embed_dim: Annotated[PositiveInt, checks.Bound("a multiple of 4", lambda channels: channels % 4 == 0)] = 512
    """Channels of a decoder token."""
    decoder_depth: checks.Depth = 8
    """Decoder blocks."""
    decoder_num_heads: PositiveInt = 16
    """Decoder attention heads; must divide decoder_embed_dim."""
    crop_scale: CropScale = (0.2, 1.0)
    """Area of the random crop, as a fraction of the image."""
    crop_ratio: checks.CropRatio = (3 / 4, 4 / 3)
    """Width / height of a crop, as a multiple of its own size's: how much it is stretched at most."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""

    def rules(self) -> checks.Rules:
        divides = self.decoder_embed_dim % self.decoder_num_heads == 0
        yield divides, "decoder_num_heads", f"a divisor of method.decoder_embed_dim={self.decoder_embed_dim}"


@dataclass(kw_only=True)
class DINOConfig(Bounded, section="method"):
    """Self-distillation with no labels (arXiv:2104.14294)."""

    global_crops: PositiveInt = 2
    """Large crops of an image, encoder.image_size pixels wide; the teacher sees these alone."""
    local_crops: checks.NonNegativeInt = 8
    """Small crops of an image, for the student."""
    local_size: PositiveInt = 96
    """Side of a local crop, in pixels."""
    global_scale: CropScale = (0.4, 1.0)
    """Area of a global crop, as a fraction of the image."""
    local_scale: CropScale = (0.05, 0.4)
    """Area of a local crop, as a fraction of the image."""
    crop_ratio: checks.CropRatio = (3 / 4, 4 / 3)
    """Width / height of a crop, as a multiple of its own size's: how much it is stretched at most."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""
    brightness: checks.Strength = 0.4
    """Strength of color jitter: a random factor in [1 - strength, 1 + strength]."""
    contrast: checks.Strength = 0.4
    """As brightness."""
    saturation: checks.Strength = 0.2
    """As brightness."""
    hue: Annotated[float, checks.inside("[0, 0.5]")] = 0.1
    """Hue moves by at most this fraction of the circle."""
    jitter_p: Fraction = 0.8
    """Fraction of crops whose colors are jittered."""
    gray_p: Fraction = 0.2
    """Fraction of crops turned gray."""
    blur_p: CropFractions = (1.0, 0.1, 0.5)
    """Fraction of crops blurred: first global, other globals, locals."""
    blur_sigma: Annotated[tuple[float, float], checks.each(checks.POSITIVE), checks.interval(0, 100)] = (0.1, 2.0)
    """Std of the Gaussian blur, in pixels."""
    solarize_p: CropFractions = (0.0, 0.2, 0.0)
    """Fraction of crops solarized: first global, other globals, locals."""
    pool: Literal["cls", "mean"] = "cls"
    """What the head sees of a crop: the class token, or the mean of patches."""
    prototypes: Annotated[int, checks.at_least(2)] = 65536
    """Outputs of the head, K."""
    head_hidden: PositiveInt = 2048
    """Channels of the head's two hidden layers."""
    head_bottleneck: PositiveInt = 256
    """Channels of the head before the prototypes."""
    head_norm: bool = False
    """BatchNorm in the head's hidden layers."""
    norm_last_layer: bool = True
    """Keep prototypes at length 1; if not, their lengths are learned."""
    freeze_last_layer: NonNegativeFloat = 1
    """Epochs in which the prototypes do not move."""
    student_temp: checks.Temperature = 0.1
    """Temperature of the student's softmax."""
    teacher_temp: checks.Temperature = 0.07
    """Temperature of the teacher's softmax after its warm-up."""
    warmup_teacher_temp: checks.Temperature = 0.04
    """Temperature of the teacher's softmax at the start."""
    warmup_teacher_temp_epochs: NonNegativeFloat = 30
    """Epochs from warmup_teacher_temp to teacher_temp, linearly."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """What keeps the teacher from one prototype for all: the moving mean (center), or Sinkhorn-Knopp."""
    center_momentum: Fraction = 0.9
    """Fraction of the old center in the new one, at each step."""
    momentum: Fraction = 0.996
    """Fraction of the old teacher in the new one at the first step; grows to 1 by half a cosine."""
    weight_decay_end: NonNegativeFloat = 0.4
    """Weight decay at the end; grows from optim.weight_decay by half a cosine."""

    def rules(self) -> checks.Rules:
        crops = self.global_crops + self.local_crops
        rule = f"large enough for two crops of an image; with method.local_crops={self.local_crops} there is {crops}"
        yield crops > 1, "global_crops", rule

    def unread(self) -> checks.Unread:
        why = "method.local_crops=0: there are none"
        yield self.local_crops == 0, "local_size local_scale", "local_crops", why
        jitter = "brightness contrast saturation hue"
        yield self.jitter_p == 0, jitter, "jitter_p", "method.jitter_p=0 changes no colors"
        yield not any(self.blur_p), "blur_sigma", "blur_p", "method.blur_p=0,0,0 blurs no crop"
        why = f"method.centering={self.centering} has no center"
        yield self.centering != "mean", "center_momentum", "centering", why
        why = "method.warmup_teacher_temp_epochs=0: there is no warm-up"
        yield self.warmup_teacher_temp_epochs == 0, "warmup_teacher_temp", "warmup_teacher_temp_epochs", why


def color_rules(run: RunConfig, *names: str) -> checks.Rules:
    """The method's settings of these names change colors: they are 0, or the images have 1 or 3 channels."""
    channels = run.encoder.channels
    for name in names if channels not in (1, 3) else ():
        rule = f"0 for encoder.channels={channels}: it is defined for 1 or 3 channels"
        yield getattr(run.method, name) == 0, f"method.{name}", rule


@dataclass(kw_only=True)
class MAERun(RunConfig):
    """MAE with the paper's defaults: ViT-B/16, betas .9 .95, weight decay .05, 800 epochs, warm-up 40."""

    method: MAEConfig = fresh(MAEConfig)
    encoder: EncoderConfig = fresh(EncoderConfig, pos_embed="sincos", init="xavier")
    optim: OptimConfig = fresh(OptimConfig, betas=(0.9, 0.95))

    def rules(self) -> checks.Rules:
        yield from super().rules()
        rule = "learned or sincos: the encoder sees single patches, not their offsets"
        yield not self.encoder.relative, "encoder.pos_embed", rule
        h, w = self.encoder.grid
        rule = f"low enough that one of the {h * w} patches stays visible"
        kept = int(h * w * (1 - self.method.mask_ratio))
        yield kept > 0, "method.mask_ratio", rule
        yield kept < h * w, "method.mask_ratio", f"high enough to hide one of the {h * w} patches"


@dataclass(kw_only=True)
class DINORun(RunConfig):
    """DINO with the paper's defaults: ViT-S/16, lr 5e-4 per 256 images, weight decay .04 to .4, 300 epochs."""

    method: DINOConfig = fresh(DINOConfig)
    encoder: EncoderConfig = fresh(EncoderConfig, size="small", drop_path=0.1)
    optim: OptimConfig = fresh(
        OptimConfig, base_lr=5e-4, min_lr=1e-6, warmup_epochs=10, weight_decay=0.04, clip_grad=3.0
    )
    trainer: TrainerConfig = fresh(TrainerConfig, max_epochs=300)
    readout: ReadoutConfig = fresh(ReadoutConfig, pool="cls")

    def rules(self) -> checks.Rules:
        yield from super().rules()
        whole = self.method.local_size % self.encoder.patch_size == 0 or self.method.local_crops == 0
        yield whole, "method.local_size", f"a multiple of encoder.patch_size={self.encoder.patch_size}"
        yield from color_rules(self, "jitter_p", "gray_p")
        yield self.data.batch_size > 1, "data.batch_size", "2 or more: the teacher's center is a mean over images"


@dataclass(kw_only=True)
class BEiTConfig(Bounded, section="method"):
    """Masked prediction of visual tokens (arXiv:2106.08254), with BEiT v2's additions (arXiv:2208.06366) as options."""

    mask_ratio: Annotated[float, checks.inside("(0, 1)")] = 0.383
    """Most patches hidden, as a fraction: 75 of 14 x 14, the authors' 40 %. Blocks that no longer fit leave fewer."""
    exact_mask: bool = False
    """Hide exactly as many as mask_ratio means, by single patches added or taken away (BEiT v2)."""
    smallest_block: PositiveInt | None = None
    """Least area of a block, in patches; null: 16 on a grid of 14 x 14, in proportion on others."""
    block_aspect: Annotated[float, checks.inside("[0.01, 1]")] = 0.3
    """Blocks are this to its inverse as high as wide."""
    class_branch: bool = False
    """Predict the tokens from the last class token and the patches of an early block too (BEiT v2, section 2.3)."""
    early_block: PositiveInt | None = None
    """Blocks below the class-token branch, 1 .. depth - 1; null: three quarters of them."""
    branch_depth: checks.Depth = 2
    """Blocks of the class-token branch."""
    crop_scale: CropScale = (0.08, 1.0)
    """Area of the random crop, as a fraction of the image."""
    crop_ratio: checks.CropRatio = (3 / 4, 4 / 3)
    """Width / height of a crop, as a multiple of its own size's: how much it is stretched at most."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""
    jitter: Fraction = 0.4
    """Strength of the change of brightness, contrast and saturation, for every crop; 0: none."""

    def unread(self) -> checks.Unread:
        names = "early_block branch_depth"
        yield not self.class_branch, names, "class_branch", "method.class_branch=false: there is no such branch"


@dataclass(kw_only=True)
class TokenizedRun(RunConfig):
    """A method that predicts a tokenizer's tokens."""

    tokenizer: str = ""
    """A tokenizer's run or file; empty: one is trained first, and kept for the next run of the same recipe and data."""
    tokenizer_recipe: str = "imagenet"
    """Recipe of the tokenizer that is trained first: a name, or the path of a YAML file."""

    def unread(self) -> checks.Unread:
        yield from super().unread()
        yield bool(self.tokenizer), "tokenizer_recipe", "tokenizer", f"tokenizer={self.tokenizer} is trained already"


@dataclass(kw_only=True)
class BEiTRun(TokenizedRun):
    """BEiT with the paper's defaults: ViT-B/16, lr 1.5e-3 for 2,048 images, weight decay .05, 800 epochs."""

    method: BEiTConfig = fresh(BEiTConfig)
    encoder: EncoderConfig = fresh(EncoderConfig, pos_embed="relative", init_values=0.1, drop_path=0.1, init="beit")
    optim: OptimConfig = fresh(OptimConfig, base_lr=1.875e-4, min_lr=1e-5, warmup_epochs=10, clip_grad=3.0)
    readout: ReadoutConfig = fresh(ReadoutConfig, layer="best")

    def rules(self) -> checks.Rules:
        yield from super().rules()
        (h, w), depth, early = self.encoder.grid, self.encoder.shape[1], self.method.early_block
        hidden = int(h * w * self.method.mask_ratio)
        yield hidden > 0, "method.mask_ratio", f"high enough to hide one of the {h * w} patches"
        yield early is None or early < depth, "method.early_block", f"less than the encoder's {depth} blocks"
        block = self.method.smallest_block
        yield (
            block is None or block <= hidden,
            "method.smallest_block",
            f"at most {hidden}, the patches that are hidden",
        )
        yield from color_rules(self, "jitter")


METHODS = {
    "mae": Kind(MAERun, "ssl_vit.methods.mae:MAE"),
    "dino": Kind(DINORun, "ssl_vit.methods.dino:DINO"),
    "beit": Kind(BEiTRun, "ssl_vit.methods.beit:BEiT"),
}
