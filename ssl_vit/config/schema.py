"""Every setting there is: name, type, default, meaning and unit, on one page.

A run is one RunConfig, written on the command line as `part.field=value`. Defaults are the papers'; each method has
its own RunConfig, because the papers disagree (MAE: fixed sine-cosine positions, betas .9 .95; others otherwise).
The string under a field is its documentation: `--help` prints it. Values are checked on construction, so a dataclass
that exists is legal.
"""

from dataclasses import dataclass, field
from typing import Any

from ssl_vit.config.checks import one_of, require, require_layer, sides_of

# name: (width, depth, heads); arXiv:2010.11929 table 1, arXiv:2012.12877 table 1.
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
PIPE = "pipe:"
"""Begins a URL of WebDataset that is a shell command."""
POOLS = ("cls", "mean", "both")
LINEAR_PROTOCOLS = ("grid", "logreg", "mae", "dino", "beit", "attentive")
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


def is_remote(path: str) -> bool:
    """Whether a path of tar shards is a URL that is no file of this machine."""
    return path.startswith(PIPE) or ("://" in path and not path.startswith("file://"))


@dataclass(kw_only=True)
class PatchGrid:
    """An image cut into square patches."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    image_size: Any = 224
    """Training image in pixels: a side, or [height, width]; other sizes resample the positions."""
    channels: int = 3
    """Channels of an image."""

    def check(self, section: str) -> None:
        """ValueError, in the name of a section, unless a grid of whole patches covers the image."""
        require(self.patch_size > 0, f"{section}.patch_size", self.patch_size, "a positive integer")
        for side in sides_of(f"{section}.image_size", self.image_size):
            rule = f"a multiple of {section}.patch_size={self.patch_size}"
            require(side % self.patch_size == 0, f"{section}.image_size", self.image_size, rule)
        require(self.channels > 0, f"{section}.channels", self.channels, "a positive integer")

    @property
    def height_width(self) -> tuple[int, int]:
        """Training image (H, W), in pixels."""
        size = self.image_size
        return (size[0], size[-1]) if isinstance(size, list | tuple) else (size, size)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (h, w) of the training image."""
        height, width = self.height_width
        return height // self.patch_size, width // self.patch_size


@dataclass(kw_only=True)
class EncoderConfig(PatchGrid):
    """The Vision Transformer that every method trains."""

    size: str = "base"
    """Width, depth and heads by name: tiny, small, base, large, huge."""
    embed_dim: int | None = None
    """Channels of a token; overrides the size's."""
    depth: int | None = None
    """Number of blocks; overrides the size's."""
    num_heads: int | None = None
    """Attention heads; must divide the width; overrides the size's."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, in widths."""
    pos_embed: str = "learned"
    """learned, sincos (fixed 2-D sine-cosine), relative (BEiT's bias of the attention scores, shared by blocks), or
    relative_per_block (one for each, as in BEiT's fine-tuning)."""
    num_registers: int = 0
    """Register tokens between class token and patches (arXiv:2309.16588). With them the class token has no position."""
    init_values: float | None = None
    """Initial gain of each residual branch (arXiv:2103.17239 eq. 2); null leaves it out."""
    drop_path: float = 0.0
    """Stochastic-depth rate of the last block; earlier blocks ramp up linearly from 0."""
    init: str = "trunc_normal"
    """Initial weights: trunc_normal (std .02, DINO), xavier (MAE), or beit (std .0108, shrinking with depth)."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""

    def __post_init__(self) -> None:
        one_of("encoder.size", self.size, SIZES)
        for name in ("embed_dim", "depth", "num_heads"):
            value = getattr(self, name)
            require(value is None or value > 0, f"encoder.{name}", value, "a positive integer or null")
        width, _, heads = self.shape
        require(width % heads == 0, "encoder.embed_dim", width, f"a multiple of encoder.num_heads={heads}")
        require(width % 4 == 0, "encoder.embed_dim", width, "a multiple of 4")
        require(self.mlp_ratio > 0, "encoder.mlp_ratio", self.mlp_ratio, "positive")
        self.check("encoder")
        one_of("encoder.pos_embed", self.pos_embed, ("learned", "sincos", "relative", "relative_per_block"))
        require(self.num_registers >= 0, "encoder.num_registers", self.num_registers, "0 or more")
        rule = f"0 with encoder.pos_embed={self.pos_embed}: a register has no place"
        require(self.num_registers == 0 or not self.relative, "encoder.num_registers", self.num_registers, rule)
        require(0 <= self.drop_path < 1, "encoder.drop_path", self.drop_path, "in [0, 1)")
        one_of("encoder.init", self.init, ("trunc_normal", "xavier", "beit"))

    @property
    def relative(self) -> bool:
        """Whether positions are a bias of the attention scores."""
        return self.pos_embed in ("relative", "relative_per_block")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(width, depth, heads) after overrides."""
        width, depth, heads = SIZES[self.size]
        return self.embed_dim or width, self.depth or depth, self.num_heads or heads


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its schedules, by optimizer step."""

    base_lr: float = 1.5e-4
    """Peak learning rate per 256 images: lr = base_lr * global batch / 256 (arXiv:1706.02677)."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = 40
    """Epochs of linear warm-up from 0. A run that max_steps or max_minutes cuts short is warmed up in proportion."""
    weight_decay: float = 0.05
    """Decoupled weight decay; which parameters have it is the method's rule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    clip_grad: float = 0.0
    """Largest gradient norm, of all parameters together (DINO: of each parameter by itself); 0 does not clip."""

    def __post_init__(self) -> None:
        require(self.base_lr > 0, "optim.base_lr", self.base_lr, "positive")
        require(self.min_lr >= 0, "optim.min_lr", self.min_lr, "0 or more")
        require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        legal = all(0 <= beta < 1 for beta in self.betas)
        require(legal, "optim.betas", list(self.betas), "two numbers in [0, 1)")
        require(self.clip_grad >= 0, "optim.clip_grad", self.clip_grad, "0 or more")


@dataclass(kw_only=True)
class DataConfig:
    """Where images come from and how they reach the device."""

    source: str = "folder"
    """digits (embedded), folder, parquet, torchvision, hf (Hugging Face datasets), webdataset (tar shards), or
    package.module:Class of your own."""
    path: str = ""
    """Folder or file of the images; for torchvision CLASS:ROOT, such as CIFAR10:downloads; for hf a name or a saved
    folder; for webdataset a folder of tar files, or their URLs with braces. digits needs none."""
    test_path: str = ""
    """Images to evaluate on; by default a `test`, `val` or `validation` part under path, else a held-out part."""
    batch_size: int = 64
    """Images per process and step."""
    workers: Any = "auto"
    """Processes that read images; auto: 0 for small images in memory, else one less than this process's cores."""
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_MEAN))
    """Mean of each channel, of pixels in [0, 1]; taken off on the device."""
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STD))
    """Deviation of each channel, of pixels in [0, 1]; divided by on the device."""
    eval_crop: float = 0.875
    """Evaluation resizes the short side to image_size / eval_crop and crops the middle; 224 / 256 = 0.875."""
    white_16bit: int = 65535
    """Value of a 16-bit image that becomes white; 4095 for 12-bit scans."""
    cache_gb: float = 2.0
    """Decoded images are kept in memory where all of them fit in this many GB; 0 never. Streams are not kept."""
    streaming: bool = False
    """Read a data set of Hugging Face from where it lies while training, instead of loading all of it first."""
    epoch_size: int | None = None
    """Images of an epoch of a stream (webdataset; hf with data.streaming); null: as many as it has, where known."""
    shuffle_buffer: int = 1000
    """Encoded images of a stream that each worker holds, to draw the next one from; 1: in the order of the shards."""
    on_error: str = "replace"
    """An image that cannot be read: replace (by the next one of its label, in a stream of its batch), skip (training
    goes on with a smaller batch, evaluation replaces), or raise (the run stops)."""
    max_unreadable: float = 0.01
    """The run stops where more than this share of all images, training and test, cannot be read; 1% means 0.01."""

    def __post_init__(self) -> None:
        if ":" not in self.source:  # package.module:Class is a source from outside
            one_of("data.source", self.source, ("digits", "folder", "parquet", "torchvision", "hf", "webdataset"))
        require(self.batch_size > 0, "data.batch_size", self.batch_size, "a positive integer")
        legal = self.workers == "auto" or (type(self.workers) is int and self.workers >= 0)
        require(legal, "data.workers", self.workers, "auto, or 0 or more")
        require(len(self.mean) == len(self.std), "data.std", self.std, f"as long as data.mean={self.mean}")
        require(all(value > 0 for value in self.std), "data.std", self.std, "positive")
        require(0 < self.eval_crop <= 1, "data.eval_crop", self.eval_crop, "in (0, 1]")
        require(0 < self.white_16bit <= 65535, "data.white_16bit", self.white_16bit, "in [1, 65535]")
        require(self.cache_gb >= 0, "data.cache_gb", self.cache_gb, "0 or more")
        one_of("data.on_error", self.on_error, ("replace", "skip", "raise"))
        require(0 <= self.max_unreadable <= 1, "data.max_unreadable", self.max_unreadable, "in [0, 1]")
        rule = f"false with data.source={self.source}: it is for hf"
        require(not self.streaming or self.source == "hf", "data.streaming", "true", rule)
        require(self.epoch_size is None or self.epoch_size > 0, "data.epoch_size", self.epoch_size, "positive, or null")
        rule = "null but for a stream: data.source=webdataset, or hf with data.streaming=true"
        require(self.epoch_size is None or self.streams, "data.epoch_size", self.epoch_size, rule)
        require(self.shuffle_buffer > 0, "data.shuffle_buffer", self.shuffle_buffer, "a positive integer")

    @property
    def streams(self) -> bool:
        """Whether pretraining reads the images one after the other, shard by shard."""
        return self.source == "webdataset" or self.streaming

    @property
    def remote(self) -> bool:
        """Whether the images of data.path can be read in no other way: it has none by number, to look at."""
        return self.streaming or (self.source == "webdataset" and is_remote(self.path))


@dataclass(kw_only=True)
class TrainerConfig:
    """How long, on what, how precise. The run ends at the first limit it reaches; schedules end with it."""

    max_epochs: int = 800
    """Passes over the images."""
    max_steps: int | None = None
    """Optimizer steps; null: no limit."""
    max_minutes: float | None = None
    """Minutes of training; null: no limit."""
    checkpoint_every_steps: int | None = None
    """Optimizer steps between checkpoints; null: every ten minutes. The end always has one."""
    max_skipped_steps: int = 10
    """Steps in a row that may be left out because loss or gradient is not finite; after them the run goes back to its
    last checkpoint, and the second time stops."""
    keep_checkpoints: int = 2
    """How many checkpoints are kept, the newest: where one is damaged, the one before it is resumed."""
    devices: Any = "auto"
    """Number of GPUs or processes on a node; auto: what torchrun started, else every GPU, or one CPU process."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """auto (ddp for several processes), ddp (each has all weights, gradients are averaged), fsdp (each has a share of
    the weights, teachers' too, and of the optimizer's state), or deepspeed (as Lightning sets it up)."""
    precision: str = "auto"
    """Lightning precision; auto: bf16-mixed where the GPU or the CPU (AMX) multiplies matrices in it, else 32-true."""
    accumulate: int = 1
    """Batches per optimizer step."""
    compile: bool = False
    """torch.compile the transformer blocks: encoder, decoder, teacher."""
    log_every_steps: int = 10
    """Optimizer steps between logged values."""

    def __post_init__(self) -> None:
        for name in (
            "max_epochs",
            "keep_checkpoints",
            "max_skipped_steps",
            "num_nodes",
            "accumulate",
            "log_every_steps",
        ):
            value = getattr(self, name)
            require(value > 0, f"trainer.{name}", value, "a positive integer")
        for name in ("max_steps", "max_minutes", "checkpoint_every_steps"):
            value = getattr(self, name)
            require(value is None or value > 0, f"trainer.{name}", value, "positive, or null")
        legal = self.devices == "auto" or (type(self.devices) is int and self.devices > 0)
        require(legal, "trainer.devices", self.devices, "auto, or a positive integer")
        one_of("trainer.strategy", self.strategy, ("auto", "ddp", "fsdp", "deepspeed"))
        precisions = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")
        one_of("trainer.precision", self.precision, precisions)
        if self.strategy == "fsdp":
            legal = self.precision not in ("16-mixed", "64-true")
            rule = "auto, 32-true, bf16-mixed or bf16-true with trainer.strategy=fsdp"
            require(legal, "trainer.precision", self.precision, rule)
            require(not self.compile, "trainer.compile", self.compile, "false with trainer.strategy=fsdp")


@dataclass(kw_only=True)
class MonitorConfig:
    """What is looked at while training."""

    every_epochs: int = 10
    """Epochs between two looks: images, feature health, and with labels a linear probe and k-NN; 0: never."""
    images: int = 8
    """Test images shown in TensorBoard."""
    train_limit: int = 2000
    """Most training images that a look may take."""
    test_limit: int = 1000
    """Most test images that a look may take."""

    def __post_init__(self) -> None:
        require(self.every_epochs >= 0, "monitor.every_epochs", self.every_epochs, "0 or more")
        for name in ("images", "train_limit", "test_limit"):
            require(getattr(self, name) > 0, f"monitor.{name}", getattr(self, name), "a positive integer")


@dataclass(kw_only=True)
class ReadoutConfig:
    """Which features stand for an image, in the looks while training and by default in every evaluation after."""

    pool: str = "mean"
    """cls (class token), mean (of patches), both (side by side)."""
    layer: Any = "last"
    """Block that is read: last, its number from 1, or best (chosen on held-out training images by the evaluation)."""
    blocks: int = 1
    """Blocks up to that one whose features are put side by side."""
    protocol: str = "grid"
    """Linear probe where the command names none: grid, or logreg for small sets; docs/evaluation.md has them all."""

    def __post_init__(self) -> None:
        one_of("readout.pool", self.pool, POOLS)
        one_of("readout.protocol", self.protocol, LINEAR_PROTOCOLS)
        require_layer("readout.layer", self.layer)
        require(self.blocks > 0, "readout.blocks", self.blocks, "a positive integer")
        rule = "1 with readout.layer=best, which tries single blocks"
        require(self.blocks == 1 or self.layer != "best", "readout.blocks", self.blocks, rule)


@dataclass(kw_only=True)
class TrainingRun:
    """What every training command has."""

    recipe: str = "digits"
    """Name of a recipe that the project brings along, or the path of a YAML file."""
    run_dir: str = ""
    """Where the run writes; made up from method, recipe and time when empty."""
    seed: int = 0
    """Every random draw is a function of it."""
    resume: str = ""
    """Continue a run: auto (the newest of this method and recipe, or the one in run_dir), a run or a checkpoint."""
    method: Any = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        rule = "0 where data.path is a remote stream: there is nothing to look at, or give data.test_path"
        visible = bool(self.data.test_path) or not self.data.remote
        require(self.monitor.every_epochs == 0 or visible, "monitor.every_epochs", self.monitor.every_epochs, rule)

    @property
    def patches(self) -> PatchGrid:
        """The training image and its patches."""
        raise NotImplementedError


@dataclass(kw_only=True)
class RunConfig(TrainingRun):
    """One pretraining run. A method's own RunConfig sets the type of `method` and the paper's defaults."""

    init_from: str = ""
    """Start from an encoder's weights: anything load_encoder reads."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    readout: ReadoutConfig = field(default_factory=ReadoutConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resume and self.init_from:
            raise ValueError("resume= continues a run, init_from= starts a new one from its weights: give one of them")
        channels = self.encoder.channels
        require(
            len(self.data.mean) == channels,
            "data.mean",
            self.data.mean,
            f"one number a channel (encoder.channels={channels}); data.std likewise",
        )

    @property
    def patches(self) -> PatchGrid:
        """The training image and its patches."""
        return self.encoder
