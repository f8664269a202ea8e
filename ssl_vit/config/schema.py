"""What every training shares: its settings, checked on construction; `--help` prints the string under a field."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

from ssl_vit.config import checks
from ssl_vit.config.auto_source import AUTO, KINDS, is_remote, source_at
from ssl_vit.config.checks import Bounded, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, fresh

# name: (embed_dim, depth, num_heads); arXiv:2010.11929 table 1, arXiv:2012.12877 table 1.
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}
SOURCES = (AUTO, "digits", "folder", "parquet", "zip", "torchvision", "hf", "webdataset")
LOGGERS = checks.Bound(
    "of tensorboard, csv and wandb, or none",
    lambda names: names == ["none"] or (bool(names) and set(names) <= {"tensorboard", "csv", "wandb"}),
)
Pool = Literal["cls", "mean", "both"]
LinearProtocol = Literal["auto", "grid", "logreg", "mae", "dino", "beit", "attentive"]
POOLS = get_args(Pool)
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]


@dataclass(kw_only=True)
class PatchGrid(Bounded):
    """An image cut into square patches."""

    patch_size: PositiveInt = 16
    """Side of a square patch, in pixels."""
    image_size: checks.ImageSize = 224
    """Training image in pixels: a side, or [height, width]; other sizes resample the positions."""
    channels: PositiveInt = 3
    """Channels of an image."""

    def rules(self) -> checks.Rules:
        whole = all(side % self.patch_size == 0 for side in self.height_width)
        yield whole, "image_size", f"a multiple of {self.key('patch_size')}={self.patch_size}"

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
class EncoderConfig(PatchGrid, section="encoder"):
    """The Vision Transformer that every method trains."""

    size: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """embed_dim, depth and num_heads by name."""
    embed_dim: PositiveInt | None = None
    """Channels of a token; overrides the size's."""
    depth: checks.Depth | None = None
    """Number of blocks; overrides the size's."""
    num_heads: PositiveInt | None = None
    """Attention heads; must divide embed_dim; overrides the size's."""
    mlp_ratio: PositiveFloat = 4.0
    """Hidden channels of a block's MLP, per channel of a token."""
    pos_embed: Literal["learned", "sincos", "relative", "relative_per_block"] = "learned"
    """learned, sincos (fixed), or BEiT's bias of the attention: relative (one for all blocks), relative_per_block."""
    resample: Literal["timm", "dino", "beit"] = "timm"
    """How positions for another grid are made: as in timm, or by DINO's authors (local crops) or BEiT's and MAE's."""
    num_registers: NonNegativeInt = 0
    """Register tokens between class token and patches (arXiv:2309.16588). With them the class token has no position."""
    init_values: Annotated[float, checks.inside("[-100, 100]")] | None = None
    """Initial gain of each residual branch (arXiv:2103.17239 eq. 2); null: no gain."""
    drop_path: Annotated[float, checks.inside("[0, 1)")] = 0.0
    """Stochastic-depth rate of the last block; earlier blocks ramp up linearly from 0."""
    init: Literal["trunc_normal", "xavier", "beit"] = "trunc_normal"
    """Initial weights: trunc_normal (std .02, DINO), xavier (MAE), or beit (std .0108, shrinking with depth)."""
    grad_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, about a third more time."""

    def rules(self) -> checks.Rules:
        yield from super().rules()
        embed_dim, _, num_heads = self.shape
        for rule, divisor in ((f"a multiple of encoder.num_heads={num_heads}", num_heads), ("a multiple of 4", 4)):
            checks.require(embed_dim % divisor == 0, "encoder.embed_dim", embed_dim, rule)
        rule = f"0 with encoder.pos_embed={self.pos_embed}: a register has no place"
        yield self.num_registers == 0 or not self.relative, "num_registers", rule
        rule = f"timm or beit with encoder.pos_embed={self.pos_embed}"
        yield self.resample != "dino" or not self.relative, "resample", rule
        rule = f"large enough for one hidden channel of an MLP, with encoder.embed_dim={embed_dim}"
        yield embed_dim * self.mlp_ratio >= 1, "mlp_ratio", rule

    def unread(self) -> checks.Unread:
        set_alone = None not in (self.embed_dim, self.depth, self.num_heads)
        values = "encoder.embed_dim={}, depth={} and num_heads={}".format(*self.shape)
        yield set_alone, "size", "embed_dim", f"{values} are set, give all three as null to have a size by name"

    @property
    def relative(self) -> bool:
        """Whether positions are a bias of the attention scores."""
        return self.pos_embed in ("relative", "relative_per_block")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(embed_dim, depth, num_heads) after overrides."""
        embed_dim, depth, num_heads = SIZES[self.size]
        return self.embed_dim or embed_dim, self.depth or depth, self.num_heads or num_heads


@dataclass(kw_only=True)
class OptimConfig(Bounded, section="optim"):
    """AdamW and its schedules, by optimizer step."""

    base_lr: PositiveFloat = 1.5e-4
    """Peak learning rate per 256 images: lr = base_lr * global batch / 256 (arXiv:1706.02677)."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of the cosine."""
    warmup_epochs: NonNegativeFloat = 40
    """Epochs of linear warm-up from 0. A run that max_steps or max_minutes cuts short is warmed up in proportion."""
    weight_decay: NonNegativeFloat = 0.05
    """Decoupled weight decay; which parameters have it is the method's rule."""
    betas: Annotated[tuple[float, float], checks.each(checks.inside("[0, 1)"), "two numbers")] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    clip_grad: NonNegativeFloat = 0.0
    """Largest gradient norm, of all parameters together (DINO: of each parameter by itself); 0 does not clip."""


@dataclass(kw_only=True)
class DataConfig(Bounded, section="data"):
    """Where images come from and how they reach the device."""

    source: str = AUTO
    """auto (by what lies at data.path), folder (image files), parquet, zip, hf, webdataset (tar shards), torchvision,
    digits (embedded), or a package.module:Class."""
    path: str = ""
    """Folder or file; torchvision: CLASS:ROOT, such as CIFAR10:downloads; hf: a name or a saved folder; webdataset: a
    folder of tar files, or their URLs with braces. digits needs none."""
    test_path: str = ""
    """Images to evaluate on; by default a `test`, `val` or `validation` split under path, else a held-out split."""
    labels: bool = True
    """Evaluate with the labels that there are, as the run's header names them; false: as if there were none."""
    batch_size: PositiveInt = 64
    """Images per process and step; the most of them where data.global_batch is set."""
    global_batch: Annotated[int, checks.inside("[1, 1e7]")] | None = None
    """Images per optimizer step of all processes, from whose number their batches and trainer.accumulate follow; null:
    as given."""
    workers: Annotated[int | Literal["auto"], checks.either(["auto"], checks.at_least(0))] = "auto"
    """Processes that read images; auto: 0 for small images in memory, else one less than this process's cores."""
    mean: Annotated[list[float], checks.each(checks.inside("[-1e6, 1e6]"))] = fresh(IMAGENET_MEAN.copy)
    """Mean of each channel, of pixels in [0, 1]; subtracted on the device."""
    std: Annotated[list[float], checks.each(checks.POSITIVE), checks.each(checks.inside("[1e-6, 1e6]"))] = fresh(
        IMAGENET_STD.copy
    )
    """Std of each channel, of pixels in [0, 1]; divided by on the device."""
    eval_crop: Annotated[float, checks.inside("[0.01, 1]")] = 0.875
    """Evaluation resizes the short side to image_size / eval_crop and crops the middle; 224 / 256 = 0.875."""
    white_16bit: Annotated[int, checks.inside("[1, 65535]")] = 65535
    """Value of a 16-bit image that becomes white; 4095 for 12-bit scans."""
    cache_gb: NonNegativeFloat = 2.0
    """Decoded images are kept in memory where all of them fit in this many GB; 0 never. Streams are not kept."""
    streaming: bool = False
    """Read a data set of Hugging Face from where it lies while training, instead of loading all of it first."""
    epoch_size: PositiveInt | None = None
    """Images of an epoch of a stream (webdataset; hf with data.streaming); null: as many as it has, where known."""
    shuffle_buffer: PositiveInt = 1000
    """Encoded images of a stream that each worker holds, to take the next one from; 1: in the order of the shards."""
    on_error: Literal["replace", "skip", "raise"] = "replace"
    """An unreadable image: replace (by the next of its label, or stream batch), skip (a smaller batch), or raise."""
    max_unreadable: Fraction = 0.01
    """The run stops where more than this fraction of all images, training and test, cannot be read; 1% means 0.01."""

    def __post_init__(self) -> None:
        if self.source == AUTO and self.path:
            self.path = os.fspath(self.path)
            self.source = source_at("data.path", self.path)
            if self.test_path and (other := source_at("data.test_path", self.test_path)) != self.source:
                line = (
                    f"data.test_path={self.test_path} holds {KINDS[other]}, data.path={self.path} {KINDS[self.source]}"
                )
                raise ValueError(f"{line}: give two of one kind, or bring the one into the other's")
        super().__post_init__()

    def rules(self) -> checks.Rules:
        if ":" not in self.source:  # package.module:Class is a source from outside
            checks.one_of("data.source", self.source, SOURCES)
        yield len(self.mean) == len(self.std), "std", f"as long as data.mean={self.mean}"
        legal = not self.streaming or self.source == "hf"
        yield legal, "streaming", f"false with data.source={self.source}: it is for hf"
        rule = "null but for a stream: data.source=webdataset, or hf with data.streaming=true"
        yield self.epoch_size is None or self.streams, "epoch_size", rule

    def unread(self) -> checks.Unread:
        digits, reads = self.source == "digits", f"data.source={self.source} reads no"
        yield digits, "path", "source", f"{reads} data.path; add data.source=auto"
        yield digits, "white_16bit", "source", f"{reads} 16-bit images"
        why = f"{reads} data.test_path, its test images are its own"
        yield self.source in ("digits", "torchvision"), "test_path", "source", why
        why = f"data.source={self.source} is no stream"
        yield self.source in SOURCES and not self.streams, "shuffle_buffer", "source", why
        yield self.on_error == "raise", "max_unreadable", "on_error", "data.on_error=raise stops at the first"

    @property
    def summary(self) -> str:
        """What is read, in short."""
        return f"{self.path}{': ' * bool(self.path)}{KINDS.get(self.source, 'images')} (data.source={self.source})"

    @property
    def streams(self) -> bool:
        """Whether pretraining reads the images one after the other, shard by shard."""
        return self.source == "webdataset" or self.streaming

    @property
    def remote(self) -> bool:
        """Whether the images of data.path come as a stream alone: none can be read by its number, to evaluate on."""
        return self.streaming or (self.source == "webdataset" and is_remote(self.path))


@dataclass(kw_only=True)
class TrainerConfig(Bounded, section="trainer"):
    """How long, on what, how precise. The run ends at the first limit it reaches; schedules end with it."""

    max_epochs: PositiveInt = 800
    """Passes over the images."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; null: no limit."""
    max_minutes: Annotated[float, checks.POSITIVE, checks.inside("(0, 1e9]")] | None = None
    """Minutes of training; null: no limit."""
    plan_minutes: Annotated[float, checks.POSITIVE, checks.inside("(0, 1e9]")] = 7.0
    """Minutes that trainer.max_epochs=auto plans for, by the time of a step that is measured before; it is no limit."""
    checkpoint_every_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; null: every ten minutes. The end always has one."""
    max_skipped_steps: PositiveInt = 10
    """Skipped steps in a row (loss or gradient not finite) after which the last checkpoint is resumed, once."""
    keep_checkpoints: PositiveInt = 2
    """How many checkpoints are kept, the newest: where one is damaged, the one before it is resumed."""
    devices: Annotated[int | Literal["auto"], checks.either(["auto"], checks.POSITIVE_INT)] = "auto"
    """Number of GPUs or processes on a node; auto: what torchrun started, else every GPU, or one CPU process."""
    num_nodes: PositiveInt = 1
    """Machines."""
    strategy: Literal["auto", "ddp", "fsdp", "deepspeed"] = "auto"
    """auto (ddp for several processes), ddp (all weights in each), fsdp (weights, optimizer sharded), or deepspeed."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "auto"
    """Lightning precision; auto: bf16-mixed where the GPU or CPU (AMX, AVX512-BF16) multiplies in it, else 32-true."""
    accumulate: PositiveInt = 1
    """Batches per optimizer step."""
    compile: bool = False
    """torch.compile the transformer blocks: encoder, decoder, teacher."""
    log_every_steps: PositiveInt = 10
    """Optimizer steps between logged values."""
    logger: Annotated[list[str], LOGGERS] = fresh(["tensorboard"].copy)
    """Where curves go beside metrics.jsonl: tensorboard, csv, wandb (with WANDB_MODE=offline to the disk), or none."""

    def rules(self) -> checks.Rules:
        if self.strategy == "fsdp":
            rule = "auto, 32-true, bf16-mixed or bf16-true with trainer.strategy=fsdp"
            yield self.precision not in ("16-mixed", "64-true"), "precision", rule
            yield not self.compile, "compile", "false with trainer.strategy=fsdp"


@dataclass(kw_only=True)
class MonitorConfig(Bounded, section="monitor"):
    """What is evaluated and shown while training."""

    every_epochs: NonNegativeInt = 10
    """Epochs between two evaluations: images, and with labels a linear probe and k-NN; one more at step 0; 0: never."""
    images: PositiveInt = 8
    """Test images shown in TensorBoard."""
    train_limit: PositiveInt = 2000
    """Most training images that such an evaluation takes."""
    test_limit: PositiveInt = 1000
    """Most test images that it takes."""
    collapse: bool = True
    """Diagnose from what the method logs whether it learns, with advice."""
    skipped_steps: bool = True
    """List the steps whose loss or gradient was not finite, with their images, in skipped_steps.jsonl."""


@dataclass(kw_only=True)
class ReadoutConfig(Bounded, section="readout"):
    """Which features stand for an image, while training and by default in every evaluation after it."""

    pool: Pool = "mean"
    """cls (class token), mean (of patches), both (side by side)."""
    layer: checks.BlockNumber = "last"
    """Block that is read: last, its number from 1, or best (chosen on held-out training images by the evaluation)."""
    blocks: PositiveInt = 1
    """Blocks up to that one whose features are put side by side."""
    protocol: LinearProtocol = "auto"
    """Linear probe where the command names none: auto is logreg for small sets, else grid; docs/evaluation.md."""

    def rules(self) -> checks.Rules:
        yield self.blocks == 1 or self.layer != "best", "blocks", "1 with readout.layer=best, which tries single blocks"


@dataclass(kw_only=True)
class TrainingRun(Bounded):
    """What every training command has."""

    own_section: ClassVar[str] = "method"  # of what is trained; its `name` in a run's config.yaml says what that is
    recipe: str = "digits"
    """Name of a recipe that the project brings along, or the path of a YAML file."""
    run_dir: str = ""
    """Where the run writes; made up from method, recipe and time when empty."""
    seed: checks.Seed = 0
    """All random numbers are a function of it."""
    resume: str = ""
    """Continue a run: auto (the newest of this method and recipe, or the one in run_dir), a run or a checkpoint."""
    optim: OptimConfig = fresh(OptimConfig)
    data: DataConfig = fresh(DataConfig)
    trainer: TrainerConfig = fresh(TrainerConfig)
    monitor: MonitorConfig = fresh(MonitorConfig)

    def rules(self) -> checks.Rules:
        legal = self.monitor.every_epochs == 0 or bool(self.data.test_path) or not self.data.remote
        rule = "0 where data.path is a remote stream: there is nothing to look at, or give data.test_path"
        yield legal, "monitor.every_epochs", rule

    def unread(self) -> checks.Unread:
        resumed = Path(self.resume)
        elsewhere = self.resume not in ("", "auto") and Path(self.run_dir) not in (resumed, *resumed.parents)
        yield elsewhere, "run_dir", "resume", f"resume={self.resume} goes on in the run's own directory"
        why = f"data.global_batch={self.data.global_batch} sets it (data.batch_size: the most of a process); or null"
        yield bool(self.data.global_batch), "trainer.accumulate", "data.global_batch", why
        late = self.optim.warmup_epochs >= self.trainer.max_epochs
        why = f"with trainer.max_epochs={self.trainer.max_epochs} the learning rate never reaches its peak"
        yield late, "optim.warmup_epochs", "trainer.max_epochs", f"{why}: warm up for less, or train longer"

    @property
    def own_config(self) -> Any:
        """The settings that only what is trained has."""
        return getattr(self, self.own_section)

    @property
    def patches(self) -> PatchGrid:
        """The training image and its patches; a fine-tuning's are its encoder's."""
        return self.own_config


@dataclass(kw_only=True)
class MethodConfig(Bounded, section="method"):
    """What only a method has: nothing, where it adds none."""


@dataclass(kw_only=True)
class RunConfig(TrainingRun):
    """One pretraining run. A method's own RunConfig sets the type of `method` and the paper's defaults."""

    init_from: str = ""
    """Start from an encoder's weights: anything load_encoder reads."""
    method: Any = fresh(MethodConfig)
    encoder: EncoderConfig = fresh(EncoderConfig)
    readout: ReadoutConfig = fresh(ReadoutConfig)

    def rules(self) -> checks.Rules:
        yield from super().rules()
        rule = f"one number a channel (encoder.channels={self.encoder.channels}); data.std likewise"
        yield len(self.data.mean) == self.encoder.channels, "data.mean", rule
        depth, layer = self.encoder.shape[1], self.readout.layer
        rule = f"last, best, or a number from 1 to {depth}, the encoder's blocks"
        yield type(layer) is not int or layer <= depth, "readout.layer", rule
        legal = self.readout.blocks <= (layer if type(layer) is int else depth)
        yield (
            legal,
            "readout.blocks",
            f"at most the {layer if type(layer) is int else depth} blocks up to readout.layer={layer}",
        )

    def unread(self) -> checks.Unread:
        yield from super().unread()
        why = "resume= continues a run, init_from= starts a new one from its weights: give one of them"
        yield bool(self.resume), "init_from", "resume", why
        yield bool(self.init_from), "encoder.init", "init_from", f"the weights are those of init_from={self.init_from}"
        yield (
            self.monitor.every_epochs == 0,
            "monitor.images",
            "monitor.every_epochs",
            "monitor.every_epochs=0 shows none",
        )

    @property
    def patches(self) -> PatchGrid:
        """The training image and its patches."""
        return self.encoder


class Kind(NamedTuple):
    """A row of the table of methods, or of tokenizers: what the configuration knows of it without torch."""

    config: type[TrainingRun]
    home: str  # its class, as module:Class, whose Config is `config`; of a tokenizer the class of what is trained
    training: str = ""  # of a tokenizer: the Objective that trains it by gradient, as module:Class; empty without one
