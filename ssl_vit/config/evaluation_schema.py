"""Settings of the commands that train nothing: linear probe, k-NN, visualization, shards, benchmarks."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

from ssl_vit.config import checks
from ssl_vit.config.checks import Bounded, NonNegativeInt, PositiveFloat, PositiveInt, Rules, fresh
from ssl_vit.config.schema import DataConfig, Pool

POSITIVE_INTS = checks.each(checks.Bound("integers", checks.POSITIVE.holds), "positive")
TIMM = "timm:"  # begins the name of an encoder that timm builds, such as timm:vit_small_patch16_224


LOGREG_UP_TO = 5_000  # training images; the figures behind it are in docs/evaluation.md


class Protocol(NamedTuple):
    """What a linear protocol has of its own; None where it knows no such thing."""

    summary: str
    home: str  # module:function of (evaluation, backbone), which returns an evaluation's Result
    epochs: int | None = None  # over a small set grid and attentive make more
    batch_size: int | None = None
    base_lr: float | None = None  # per 256 images
    readout: tuple[str, ...] = ("pool", "layer", "blocks")  # settings by which a user may change what it reads


GRID = "learning rates x last 1 or 4 blocks x poolings, together (DINOv2, arXiv:2304.07193)"
CACHED, LIVE = "ssl_vit.evaluate.linear", "ssl_vit.supervised.linear_probe:evaluate_live"
QUERY, ATTENTIVE = "one learned query over the tokens (AIM, arXiv:2401.08541)", LIVE.replace("live", "attentive")
BY_SIZE = f"logreg for at most {LOGREG_UP_TO:,} labeled training images, grid for more"
PROTOCOLS = {
    "auto": Protocol(BY_SIZE, f"{CACHED}:evaluate_auto", 10, 256),
    "grid": Protocol(GRID, f"{CACHED}:evaluate_grid", 10, 256),
    "logreg": Protocol("logistic regression to its optimum (scikit-learn, C = 1)", f"{CACHED}:evaluate_logreg"),
    "mae": Protocol("MAE's: non-affine BatchNorm, LARS, live crops (arXiv:2111.06377, A.1)", LIVE, 90, 16384, 0.1),
    "dino": Protocol("DINO's: SGD on the last class tokens, live crops (arXiv:2104.14294)", LIVE, 100, 1024, 0.001),
    "beit": Protocol("BEiT's: a head for each block, AdamW, live crops (arXiv:2106.08254)", LIVE, 50, 1024, 1e-3, ()),
    "attentive": Protocol(QUERY, ATTENTIVE, 30, 256, 1e-3, ("layer",)),
}


def protocol_of(name: str) -> Protocol:
    """The row of a protocol, or that of a package.module:function of your own."""
    return PROTOCOLS.get(name) or Protocol("your own", "")


@dataclass(kw_only=True)
class EvaluationConfig(Bounded):
    """What every evaluation of frozen features has."""

    task: ClassVar[str]  # name of the evaluation, and of the files that it writes
    encoder: str = ""
    """A run, encoder.safetensors, a checkpoint, or timm:NAME; by default the newest run."""
    pool: Pool | None = None
    """Features of an image: cls (class token), mean (of patches), both; null: the protocol's own, or the run's."""
    layer: checks.BlockNumber | None = None
    """Block that is read: last, its number from 1, or best (on held-out training images); null likewise."""
    blocks: PositiveInt | None = None
    """Blocks up to that one whose features are put side by side; null likewise."""
    data: DataConfig = fresh(DataConfig, mean=[], std=[])
    train_limit: NonNegativeInt = 10000
    """Most labeled training images used; 0: all."""
    shots: Annotated[list[int], POSITIVE_INTS] = fresh(list)
    """Training images of each class, such as 1,5,10: mean and std over five subsets; the linear head is logreg."""
    fraction: Annotated[list[float], checks.each(checks.inside("(0, 1]"), "fractions")] = fresh(list)
    """Fractions of the training images, such as 0.01,0.1: likewise."""
    controls: bool = True
    """Also score a random encoder of the same shape, and raw pixels."""
    seed: checks.Seed = 0
    """Of the choice of training images, the held-out split and the random control."""

    def rules(self) -> Rules:
        if self.layer == "best":
            yield self.blocks in (None, 1), "blocks", "1 with layer=best, which tries single blocks"
            rule = "last or a number with shots= or fraction=, which leave no images to choose it on"
            yield not self.few, "layer", rule

    def unread(self) -> checks.Unread:
        names = "data.epoch_size data.shuffle_buffer"
        yield True, names, "encoder", "an evaluation reads images by number, not as a stream"
        yield True, "data.global_batch", "encoder", "nothing is trained in steps on data.*"

    @property
    def few(self) -> bool:
        """Whether subsets of the training images are used instead of all of them."""
        return bool(self.shots or self.fraction)

    @property
    def as_trained(self) -> bool:
        """Whether the encoder's run says what is read: with logistic regression, which reads one feature, and k-NN."""
        return self.few or getattr(self, "protocol", "logreg") == "logreg"


@dataclass(kw_only=True)
class LinearProbeConfig(EvaluationConfig):
    """Evaluate an encoder by a linear classifier on its frozen features."""

    task: ClassVar[str] = "linear_probe"
    protocol: str = "auto"
    """auto (the run's, else logreg for up to 5,000 training images, grid for more), grid, logreg, mae, dino, beit,
    attentive (docs/evaluation.md), or package.module:function."""
    epochs: PositiveInt | None = None
    """Passes over the training images; null: the protocol's own."""
    batch_size: PositiveInt | None = None
    """Images a step, as many as there are at most; null: the protocol's own."""
    base_lr: PositiveFloat | None = None
    """Learning rate per 256 images; null: the protocol's own."""

    def rules(self) -> Rules:
        yield from super().rules()
        if ":" not in self.protocol:
            checks.one_of("protocol", self.protocol, PROTOCOLS)
        protocol, of = protocol_of(self.protocol), f"with protocol={self.protocol}"
        for name in ("epochs", "batch_size", "base_lr"):
            yield getattr(self, name) is None or getattr(protocol, name) is not None, name, f"null {of}, which has none"
        for name in () if self.few else ("pool", "layer", "blocks"):
            free = getattr(self, name) is None or name in protocol.readout
            yield free, name, f"null {of}, which says itself what it reads"
        legal = self.few or self.layer != "best" or self.chosen(0)[0] == "logreg"
        yield legal, "layer", f"last or a number {of}; protocol=logreg and k-NN can choose"

    def unread(self) -> checks.Unread:
        yield from super().unread()
        names, why = "epochs batch_size base_lr", "few labels, shots= or fraction=, have logistic regression"
        yield self.few, names, "shots", why
        yield self.few and self.protocol not in ("auto", "logreg"), "protocol", "shots", why

    def chosen(self, images: int) -> tuple[str, str]:
        """The protocol for so many training images, and why: as set, or what auto means for them."""
        if self.protocol != "auto":
            return self.protocol, "as set"
        if self.epochs or self.batch_size:
            return "grid", "which has epochs= and batch_size="
        if self.layer == "best":
            return "logreg", "which can choose the block"
        small = images <= LOGREG_UP_TO
        why = f"{images:,} labeled training images, {'at most' if small else 'more than'} {LOGREG_UP_TO:,}"
        return "logreg" if small else "grid", why

    @property
    def schedule(self) -> tuple[int, int, float]:
        """(epochs, images a step, learning rate per 256 images): as set, else the protocol's own; 0 for none."""
        own = protocol_of(self.protocol)
        epochs, batch_size = self.epochs or own.epochs or 0, self.batch_size or own.batch_size or 0
        return epochs, batch_size, self.base_lr or own.base_lr or 0.0


@dataclass(kw_only=True)
class KNNConfig(EvaluationConfig):
    """Evaluate an encoder by weighted k-nearest neighbors of its frozen features."""

    task: ClassVar[str] = "knn"
    neighbors: Annotated[list[int], POSITIVE_INTS, checks.Bound("one or more", bool)] = fresh([10, 20, 100, 200].copy)
    """k: one, or several of which held-out training images choose; at most the training images."""
    temperature: checks.Temperature = 0.07
    """Softness of the votes: exp(cosine similarity / temperature)."""


FEATURES_FILE = checks.Bound(
    "a file that ends in .npz, .parquet or .csv", lambda path: path.endswith((".npz", ".parquet", ".csv"))
)


@dataclass(kw_only=True)
class EmbedConfig(Bounded):
    """Features of images as a table: names, labels where the images lie in a folder for each class, and features."""

    images: str = ""
    """An image, or a folder of images, nested or flat; by default that which the encoder was trained on."""
    encoder: str = ""
    """A run, encoder.safetensors, a checkpoint; by default the newest run."""
    out: Annotated[str, FEATURES_FILE] = "features.npz"
    """File to write; ends in .npz, .parquet or .csv."""
    pool: Pool | None = None
    """cls (class token), mean (of patches), both; null: what the run's own evaluation reads."""
    layer: checks.BlockNumber | None = None
    """Block that is read: last, or its number from 1; null likewise."""
    blocks: PositiveInt | None = None
    """Blocks up to that one whose features are put side by side; null likewise."""
    patches: bool = False
    """Features of each patch, [images, patches, channels], in place of one vector; for .npz."""
    batch_size: PositiveInt = 64
    """Images at a time."""

    def rules(self) -> Rules:
        yield self.layer != "best", "layer", "last or a number: there are no labels to choose it by"
        yield not self.patches or self.out.endswith(".npz"), "out", "a file that ends in .npz with patches=true"
        yield not self.patches or self.pool in (None, "mean"), "pool", "null with patches=true"


@dataclass(kw_only=True)
class VisualizeConfig(Bounded):
    """Attention of the class token, masks of it, and principal components of patch features, as PNG."""

    images: str = ""
    """An image, or a folder of images, by default as for embed; those that cannot be read are named and skipped."""
    encoder: str = ""
    """A run, encoder.safetensors, a checkpoint; by default the newest run."""
    out: str = ""
    """Folder to write to; by default visualize/ beside the encoder."""
    mass: Annotated[float, checks.inside("(0, 1]")] = 0.6
    """Fraction of each head's attention that its mask holds."""
    size: NonNegativeInt = 0
    """Short side that images are scaled to, in pixels; 0: their own."""
    limit: PositiveInt = 16
    """Most images of a folder."""


@dataclass(kw_only=True)
class CompareConfig(Bounded):
    """One table over runs: the settings that differ, figures with mean and std over seeds, steps and minutes."""

    runs: list[str] = fresh(list)
    """Directories of runs, as arguments or as a list with commas."""
    out: str = ""
    """Folder for compare.csv, compare.md and the curves, compare.png; empty: the table is only printed."""


@dataclass(kw_only=True)
class ShardsConfig(Bounded):
    """Pack images of any source into tar shards for data.source=webdataset, with their labels, in a mixed order."""

    data: DataConfig = fresh(DataConfig)
    out: str = ""
    """Folder to write to; it must be empty or new."""
    shard_mb: PositiveFloat = 256
    """Size at which a shard ends, in MB."""
    size: NonNegativeInt = 0
    """Short side that larger images are scaled down to, in pixels; 0: the files' bytes as they are."""

    def unread(self) -> checks.Unread:
        names = "batch_size global_batch workers mean std eval_crop cache_gb streaming epoch_size shuffle_buffer"
        why = "images are packed as they are, each once"
        yield True, " ".join(map(self.data.key, [*names.split(), "max_unreadable"])), "out", why


@dataclass(kw_only=True)
class BenchmarkConfig(Bounded):
    """Time a part beside what the field uses for the same work, in turn in one process; medians."""

    suite: Literal["views", "step", "startup", "probe", "memory", "spin", "differences", "doctor"] = "step"
    """views (crops), step (of a method), startup (until commands answer), probe (grid, k-NN), memory (of an epoch),
    spin (steps beside other work), differences (from the authors' ways), or doctor: where a run's time goes; with it
    give method=, recipe=, data.path= and all else as to pretrain."""
    repeats: PositiveInt = 7
    """Turns of each baseline."""
    method: Literal["mae", "dino", "beit"] = "mae"
    """Whose step."""
    size: Literal["small", "base"] = "small"
    """Encoder of a step, with patches of 16 pixels."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of a step; bf16 is autocast."""
    batch_size: PositiveInt = 16
    """Images of a step."""
    compile: bool = False
    """torch.compile the blocks of all baselines."""

    def unread(self) -> checks.Unread:
        yield self.suite != "step", "method size precision batch_size compile", "suite", "it is of suite=step"
        yield self.suite in ("memory", "differences", "doctor"), "repeats", "suite", f"suite={self.suite} has no turns"
