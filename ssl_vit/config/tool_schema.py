"""Settings of the commands that train nothing and evaluate nothing: visualization, shards, benchmarks."""

from dataclasses import dataclass
from typing import Annotated, Literal

from ssl_vit.config import checks
from ssl_vit.config.checks import Bounded, NonNegativeInt, PositiveFloat, PositiveInt, fresh
from ssl_vit.config.schema import DataConfig


@dataclass(kw_only=True)
class VisualizeConfig(Bounded):
    """Attention of the class token, masks of it, and principal components of patch features, as PNG."""

    images: str = ""
    """An image, or a folder of images."""
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
class ShardsConfig(Bounded):
    """Pack images of any source into tar shards for data.source=webdataset, with their labels, in a mixed order."""

    data: DataConfig = fresh(DataConfig)
    out: str = ""
    """Folder to write to; it must be empty or new."""
    shard_mb: PositiveFloat = 256
    """Size at which a shard ends, in MB."""
    size: NonNegativeInt = 0
    """Short side that larger images are scaled down to, in pixels; 0: the files' bytes as they are."""


@dataclass(kw_only=True)
class BenchmarkConfig(Bounded):
    """Time a part beside what the field uses for the same work, in turn in one process; medians."""

    suite: Literal["views", "step", "startup", "probe", "memory", "doctor"] = "step"
    """views (crops), step (of a method), startup (until commands answer), probe (grid, k-NN), memory (of an epoch), or
    doctor: where a run's time goes; with it give method=, recipe=, data.path= and all else as to pretrain."""
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
