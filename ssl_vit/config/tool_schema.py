"""Settings of the commands that train nothing and judge nothing: images, benchmarks; see schema.py."""

from dataclasses import dataclass, field

from ssl_vit.config.checks import one_of, require
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.schema import DataConfig


@dataclass(kw_only=True)
class VisualizeConfig:
    """Attention of the class token, masks of it, and principal components of patch features, as PNG."""

    images: str = ""
    """An image, or a folder of images."""
    encoder: str = ""
    """A run, encoder.safetensors, a checkpoint; by default the newest run."""
    out: str = ""
    """Folder to write to; by default visualize/ beside the encoder."""
    mass: float = 0.6
    """Share of each head's attention that its mask holds."""
    size: int = 0
    """Short side that images are scaled to, in pixels; 0: their own."""
    limit: int = 16
    """Most images of a folder."""

    def __post_init__(self) -> None:
        require(0 < self.mass <= 1, "mass", self.mass, "in (0, 1]")
        require(self.size >= 0, "size", self.size, "0 or more")
        require(self.limit > 0, "limit", self.limit, "a positive integer")


@dataclass(kw_only=True)
class ShardsConfig:
    """Pack images of any source into tar shards for data.source=webdataset, with their labels, in a mixed order."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = ""
    """Folder to write to; it must be empty or new."""
    shard_mb: float = 256
    """Size at which a shard ends, in MB."""
    size: int = 0
    """Short side that larger images are scaled down to, in pixels; 0: the files' bytes as they are."""

    def __post_init__(self) -> None:
        require(self.shard_mb > 0, "shard_mb", self.shard_mb, "positive")
        require(self.size >= 0, "size", self.size, "0 or more")


SUITES = {
    "views": "benchmarks.views",
    "step": "benchmarks.step",
    "startup": "benchmarks.startup",
    "probe": "benchmarks.probe",
    "memory": "benchmarks.memory",
}
"""Benchmarks by name; each module has run(config), which prints one JSON object a line."""
DOCTOR = "doctor"
"""The suite that examines a run: its other words are that run's settings, not a BenchmarkConfig's."""


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Time a part beside what the field uses for the same work, in turn in one process; medians."""

    suite: str = "step"
    """views (crops, one core), step (of a method), startup (until commands answer), probe (grid and k-NN), memory (over
    an epoch of 200,000 images), or doctor: where a run's time goes; with it give method=, recipe=, data.path= and all
    else as to tools/pretrain.py."""
    repeats: int = 7
    """Turns of each side."""
    method: str = "mae"
    """Whose step: mae, dino or beit."""
    size: str = "small"
    """Encoder of a step: small or base, patches of 16 pixels."""
    precision: str = "bf16"
    """Of a step: bf16 (autocast) or fp32."""
    batch_size: int = 16
    """Images of a step."""
    compile: bool = False
    """torch.compile the blocks of all sides."""

    def __post_init__(self) -> None:
        one_of("suite", self.suite, (*SUITES, DOCTOR))
        require(self.repeats > 0, "repeats", self.repeats, "a positive integer")
        one_of("method", self.method, METHODS)
        one_of("size", self.size, ("small", "base"))
        one_of("precision", self.precision, ("bf16", "fp32"))
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive integer")
