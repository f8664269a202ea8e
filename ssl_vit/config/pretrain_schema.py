"""The methods' own settings, and each method's RunConfig with its paper's defaults; see schema.py for all the rest."""

from dataclasses import dataclass, field

from ssl_vit.config.checks import interval, one_of, require
from ssl_vit.config.schema import EncoderConfig, OptimConfig, ReadoutConfig, RunConfig, TrainerConfig


@dataclass(kw_only=True)
class MAEConfig:
    """Masked autoencoder (arXiv:2111.06377)."""

    mask_ratio: float = 0.75
    """Share of patches hidden."""
    norm_pix: bool = True
    """Normalize each target patch by its own mean and deviation."""
    decoder_embed_dim: int = 512
    """Channels of a decoder token."""
    decoder_depth: int = 8
    """Decoder blocks."""
    decoder_num_heads: int = 16
    """Decoder attention heads; must divide decoder_embed_dim."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of the random crop, as a share of the image."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, "method.mask_ratio", self.mask_ratio, "in (0, 1)")
        require(self.decoder_embed_dim > 0, "method.decoder_embed_dim", self.decoder_embed_dim, "a positive integer")
        require(self.decoder_embed_dim % 4 == 0, "method.decoder_embed_dim", self.decoder_embed_dim, "a multiple of 4")
        require(self.decoder_depth > 0, "method.decoder_depth", self.decoder_depth, "a positive integer")
        legal = self.decoder_num_heads > 0 and self.decoder_embed_dim % self.decoder_num_heads == 0
        rule = f"a divisor of method.decoder_embed_dim={self.decoder_embed_dim}"
        require(legal, "method.decoder_num_heads", self.decoder_num_heads, rule)
        interval("method.crop_scale", self.crop_scale, 0.01, 1.0)


@dataclass(kw_only=True)
class DINOConfig:
    """Self-distillation with no labels (arXiv:2104.14294)."""

    global_crops: int = 2
    """Large crops of an image, encoder.image_size pixels wide; the teacher sees these alone."""
    local_crops: int = 8
    """Small crops of an image, for the student."""
    local_size: int = 96
    """Side of a local crop, in pixels."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Area of a global crop, as a share of the image."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a local crop, as a share of the image."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""
    brightness: float = 0.4
    """Strength of color jitter: factors are drawn from [1 - strength, 1 + strength]."""
    contrast: float = 0.4
    """As brightness."""
    saturation: float = 0.2
    """As brightness."""
    hue: float = 0.1
    """Hue moves by at most this share of the circle, in [0, 0.5]."""
    jitter_p: float = 0.8
    """Share of crops whose colors are jittered."""
    gray_p: float = 0.2
    """Share of crops turned gray."""
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Share of crops blurred: first global, other globals, locals."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Deviation of the Gaussian blur, in pixels."""
    solarize_p: tuple[float, float, float] = (0.0, 0.2, 0.0)
    """Share of crops solarized: first global, other globals, locals."""
    pool: str = "cls"
    """What the head sees of a crop: cls (class token), or mean (of patches)."""
    prototypes: int = 65536
    """Outputs of the head, K."""
    head_hidden: int = 2048
    """Width of the head's two hidden layers."""
    head_bottleneck: int = 256
    """Width of the head before the prototypes."""
    head_norm: bool = False
    """BatchNorm in the head's hidden layers."""
    norm_last_layer: bool = True
    """Keep prototypes at length 1; if not, their lengths are learned."""
    freeze_last_layer: float = 1
    """Epochs in which the prototypes do not move."""
    student_temp: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temp: float = 0.07
    """Temperature of the teacher's softmax after its warm-up."""
    warmup_teacher_temp: float = 0.04
    """Temperature of the teacher's softmax at the start."""
    warmup_teacher_temp_epochs: float = 30
    """Epochs from warmup_teacher_temp to teacher_temp, linearly."""
    centering: str = "mean"
    """What keeps the teacher from one prototype for all: mean (moving center), or sinkhorn (Sinkhorn-Knopp)."""
    center_momentum: float = 0.9
    """Share of the old center in the new one, at each step."""
    momentum: float = 0.996
    """Share of the old teacher in the new one at the first step; grows to 1 by half a cosine."""
    weight_decay_end: float = 0.4
    """Weight decay at the end; grows from optim.weight_decay by half a cosine."""

    def __post_init__(self) -> None:
        crops = self.global_crops + self.local_crops
        require(self.global_crops > 0, "method.global_crops", self.global_crops, "a positive integer")
        require(self.local_crops >= 0, "method.local_crops", self.local_crops, "0 or more")
        rule = f"large enough for two crops of an image; with method.local_crops={self.local_crops} there is {crops}"
        require(crops > 1, "method.global_crops", self.global_crops, rule)
        for name in ("global_scale", "local_scale"):
            interval(f"method.{name}", getattr(self, name), 0.01, 1.0)
        for name in ("brightness", "contrast", "saturation"):
            require(getattr(self, name) >= 0, f"method.{name}", getattr(self, name), "0 or more")
        require(0 <= self.hue <= 0.5, "method.hue", self.hue, "in [0, 0.5]")
        for name in ("jitter_p", "gray_p"):
            require(0 <= getattr(self, name) <= 1, f"method.{name}", getattr(self, name), "in [0, 1]")
        for name in ("blur_p", "solarize_p"):
            fractions = getattr(self, name)
            require(
                all(0 <= fraction <= 1 for fraction in fractions),
                f"method.{name}",
                list(fractions),
                "three numbers in [0, 1]",
            )
        require(self.blur_sigma[0] > 0, "method.blur_sigma", list(self.blur_sigma), "positive")
        interval("method.blur_sigma", self.blur_sigma, 0, 100)
        one_of("method.pool", self.pool, ("cls", "mean"))
        for name in ("local_size", "head_hidden", "head_bottleneck"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "a positive integer")
        require(self.prototypes > 1, "method.prototypes", self.prototypes, "2 or more")
        for name in ("freeze_last_layer", "warmup_teacher_temp_epochs"):
            require(getattr(self, name) >= 0, f"method.{name}", getattr(self, name), "0 or more")
        for name in ("student_temp", "teacher_temp", "warmup_teacher_temp"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "positive")
        one_of("method.centering", self.centering, ("mean", "sinkhorn"))
        for name in ("center_momentum", "momentum"):
            require(0 <= getattr(self, name) <= 1, f"method.{name}", getattr(self, name), "in [0, 1]")
        require(self.weight_decay_end >= 0, "method.weight_decay_end", self.weight_decay_end, "0 or more")


def _paper_mae_encoder() -> EncoderConfig:
    return EncoderConfig(pos_embed="sincos", init="xavier")


@dataclass(kw_only=True)
class MAERun(RunConfig):
    """MAE with the paper's defaults: ViT-B/16, betas .9 .95, weight decay .05, 800 epochs, warm-up 40."""

    encoder: EncoderConfig = field(default_factory=_paper_mae_encoder)
    method: MAEConfig = field(default_factory=MAEConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(betas=(0.9, 0.95)))

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "learned or sincos: the encoder sees single patches, not their offsets"
        require(not self.encoder.relative, "encoder.pos_embed", self.encoder.pos_embed, rule)
        h, w = self.encoder.grid
        kept = int(h * w * (1 - self.method.mask_ratio))
        rule = f"low enough that one of the {h * w} patches stays visible"
        require(kept > 0, "method.mask_ratio", self.method.mask_ratio, rule)


@dataclass(kw_only=True)
class DINORun(RunConfig):
    """DINO with the paper's defaults: ViT-S/16, lr 5e-4 per 256 images, weight decay .04 to .4, 300 epochs."""

    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig(size="small", drop_path=0.1))
    method: DINOConfig = field(default_factory=DINOConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            base_lr=5e-4, min_lr=1e-6, warmup_epochs=10, weight_decay=0.04, clip_grad=3.0
        )
    )
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=300))
    readout: ReadoutConfig = field(default_factory=lambda: ReadoutConfig(pool="cls"))

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"a multiple of encoder.patch_size={self.encoder.patch_size}"
        size = self.method.local_size
        require(self.method.local_crops == 0 or size % self.encoder.patch_size == 0, "method.local_size", size, rule)
        if self.encoder.channels not in (1, 3):
            for name in ("jitter_p", "gray_p"):
                rule = f"0 for encoder.channels={self.encoder.channels}: it is defined for 1 or 3 channels"
                require(getattr(self.method, name) == 0, f"method.{name}", getattr(self.method, name), rule)
        rule = "2 or more: the teacher's center is a mean over images"
        require(self.data.batch_size > 1, "data.batch_size", self.data.batch_size, rule)


@dataclass(kw_only=True)
class BEiTConfig:
    """Masked prediction of visual tokens (arXiv:2106.08254), with BEiT v2's additions (arXiv:2208.06366) as options."""

    mask_ratio: float = 0.383
    """Most patches hidden, as a share: 75 of 14 x 14, the authors' 40 %. Blocks that no longer fit leave fewer."""
    exact_mask: bool = False
    """Hide exactly as many as mask_ratio says, by single patches added or taken away (BEiT v2)."""
    smallest_block: int | None = None
    """Least area of a block, in patches; null: 16 on a grid of 14 x 14, in proportion on others."""
    block_aspect: float = 0.3
    """Blocks are this to its inverse as high as wide."""
    class_branch: bool = False
    """Predict the tokens from the last class token and the patches of an early block too (BEiT v2, section 2.3)."""
    early_block: int | None = None
    """Blocks below the class-token branch, 1 .. depth - 1; null: three quarters of them."""
    branch_depth: int = 2
    """Blocks of the class-token branch."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Area of the random crop, as a share of the image."""
    flip: bool = True
    """Mirror half of the crops left to right; not for images where sides mean something."""
    jitter: float = 0.4
    """Strength of the change of brightness, contrast and saturation, for every crop; 0: none."""

    def __post_init__(self) -> None:
        require(0 < self.mask_ratio < 1, "method.mask_ratio", self.mask_ratio, "in (0, 1)")
        smallest = self.smallest_block
        require(smallest is None or smallest > 0, "method.smallest_block", smallest, "a positive integer or null")
        require(0 < self.block_aspect <= 1, "method.block_aspect", self.block_aspect, "in (0, 1]")
        require(self.branch_depth > 0, "method.branch_depth", self.branch_depth, "a positive integer")
        early = self.early_block
        require(early is None or early > 0, "method.early_block", early, "a positive integer or null")
        interval("method.crop_scale", self.crop_scale, 0.01, 1.0)
        require(0 <= self.jitter <= 1, "method.jitter", self.jitter, "in [0, 1]")


def _paper_beit_encoder() -> EncoderConfig:
    return EncoderConfig(pos_embed="relative", init_values=0.1, drop_path=0.1, init="beit")


@dataclass(kw_only=True)
class TokenizedRun(RunConfig):
    """A method that predicts a tokenizer's tokens."""

    tokenizer: str = ""
    """A tokenizer's run or file; empty: one is trained first, and kept for the next run of the same recipe and data."""
    tokenizer_recipe: str = "imagenet"
    """Recipe of the tokenizer that is trained first: a name, or the path of a YAML file."""


@dataclass(kw_only=True)
class BEiTRun(TokenizedRun):
    """BEiT with the paper's defaults: ViT-B/16, lr 1.5e-3 for 2,048 images, weight decay .05, 800 epochs."""

    encoder: EncoderConfig = field(default_factory=_paper_beit_encoder)
    method: BEiTConfig = field(default_factory=BEiTConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(base_lr=1.875e-4, min_lr=1e-5, warmup_epochs=10, clip_grad=3.0)
    )
    readout: ReadoutConfig = field(default_factory=lambda: ReadoutConfig(layer="best"))

    def __post_init__(self) -> None:
        super().__post_init__()
        h, w = self.encoder.grid
        hidden = int(h * w * self.method.mask_ratio)
        rule = f"high enough to hide one of the {h * w} patches"
        require(hidden > 0, "method.mask_ratio", self.method.mask_ratio, rule)
        early, depth = self.method.early_block, self.encoder.shape[1]
        rule = f"less than the encoder's {depth} blocks"
        require(early is None or early < depth, "method.early_block", early, rule)
        if self.encoder.channels not in (1, 3):
            rule = f"0 for encoder.channels={self.encoder.channels}: it is defined for 1 or 3 channels"
            require(self.method.jitter == 0, "method.jitter", self.method.jitter, rule)


METHODS: dict[str, type[RunConfig]] = {"mae": MAERun, "dino": DINORun, "beit": BEiTRun}
"""Methods by their name on the command line; another's is given as package.module:Class."""
