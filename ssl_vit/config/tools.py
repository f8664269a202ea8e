"""Settings of the commands that train nothing: evaluations, pictures, benchmarks; see schema.py."""

from dataclasses import dataclass, field
from typing import Any

from ssl_vit.config.schema import POOLS, DataConfig, one_of, require, require_layer


@dataclass(kw_only=True)
class ProbeConfig:
    """Judge an encoder by a linear classifier on its frozen features, or by k-NN."""

    encoder: str = ""
    """A run, encoder.safetensors, a checkpoint; by default the newest run."""
    pool: str = "mean"
    """Features of a picture: cls (class token), mean (of patches), both; by default as the encoder's run had it."""
    layer: Any = "last"
    """Block that is read: last, its number from 1, or best (on held-out training pictures); by default as the run's."""
    blocks: int = 1
    """Blocks up to that one whose features are put side by side; by default as the encoder's run had it."""
    data: DataConfig = field(default_factory=DataConfig)
    train_limit: int = 10000
    """Most labelled training pictures used; 0: all."""
    controls: bool = True
    """Also score a random encoder of the same shape, and raw pixels."""
    neighbours: int = 20
    """k of k-NN."""
    temperature: float = 0.07
    """Softness of k-NN's votes: exp(cosine similarity / temperature)."""
    seed: int = 0
    """Draws the training pictures, the held-out part and the random control."""

    def __post_init__(self) -> None:
        one_of("pool", self.pool, POOLS)
        require_layer("layer", self.layer)
        require(self.blocks > 0, "blocks", self.blocks, "a positive integer")
        rule = "1 with layer=best, which tries single blocks"
        require(self.blocks == 1 or self.layer != "best", "blocks", self.blocks, rule)
        require(self.train_limit >= 0, "train_limit", self.train_limit, "0 or more")
        require(self.neighbours > 0, "neighbours", self.neighbours, "a positive integer")
        require(self.temperature > 0, "temperature", self.temperature, "positive")
        require(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(kw_only=True)
class VisualizeConfig:
    """Attention of the class token, masks of it, and principal components of patch features, as PNG."""

    images: str = ""
    """A picture, or a folder of pictures."""
    encoder: str = ""
    """A run, encoder.safetensors, a checkpoint; by default the newest run."""
    out: str = ""
    """Folder to write to; by default visualize/ beside the encoder."""
    mass: float = 0.6
    """Share of each head's attention that its mask holds."""
    size: int = 0
    """Short side that pictures are scaled to, in pixels; 0: their own."""
    limit: int = 16
    """Most pictures of a folder."""

    def __post_init__(self) -> None:
        require(0 < self.mass <= 1, "mass", self.mass, "in (0, 1]")
        require(self.size >= 0, "size", self.size, "0 or more")
        require(self.limit > 0, "limit", self.limit, "a positive integer")


SUITES = {
    "views": "ssl_vit.benchmark.views",
    "step": "ssl_vit.benchmark.step",
    "startup": "ssl_vit.benchmark.startup",
}
"""Benchmarks by name; each module has run(config), which prints one JSON object a line."""


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Time a part beside what the field uses for the same work, in turn in one process; medians."""

    suite: str = "step"
    """views (crops, one core), step (one optimiser step of DINO ViT-S/16), startup (commands, until they answer)."""
    repeats: int = 7
    """Turns of each side."""
    batch_size: int = 4
    """Pictures of a step."""
    compile: bool = False
    """torch.compile the blocks of both sides."""

    def __post_init__(self) -> None:
        one_of("suite", self.suite, SUITES)
        require(self.repeats > 0, "repeats", self.repeats, "a positive integer")
        require(self.batch_size > 0, "batch_size", self.batch_size, "a positive integer")
