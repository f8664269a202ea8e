"""Settings of the evaluations: the linear probe with its protocols, and k-NN; see schema.py."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from ssl_vit.config.checks import one_of, require, require_layer
from ssl_vit.config.schema import LINEAR_PROTOCOLS, POOLS, DataConfig

TIMM = "timm:"
"""Prefix of an encoder that timm builds, such as timm:vit_small_patch16_224."""


class Protocol(NamedTuple):
    """What a linear protocol has of its own; None where it knows no such thing."""

    summary: str
    epochs: int | None = None
    """Over a small set grid and attentive make more."""
    batch_size: int | None = None
    base_lr: float | None = None
    """Per 256 images."""
    readout: tuple[str, ...] = ("pool", "layer", "blocks")
    """Settings by which a user may change what it reads."""


PROTOCOLS = {
    "grid": Protocol(
        "learning rates x last 1 or 4 blocks x poolings, trained together (DINOv2, arXiv:2304.07193)", 10, 256
    ),
    "logreg": Protocol("logistic regression to its optimum (scikit-learn, C = 1), for small sets"),
    "mae": Protocol("MAE's: non-affine BatchNorm, LARS, live crops (arXiv:2111.06377, A.1)", 90, 16384, 0.1),
    "dino": Protocol("DINO's: SGD on the last class tokens, live crops (arXiv:2104.14294)", 100, 1024, 0.001),
    "beit": Protocol("BEiT's: a head for each block, AdamW, live crops (arXiv:2106.08254)", 50, 1024, 1e-3, ()),
    "attentive": Protocol("one learned query over the tokens (AIM, arXiv:2401.08541)", 30, 256, 1e-3, ("layer",)),
}
"""Linear protocols by name."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """What every evaluation of frozen features has."""

    task: ClassVar[str]
    """Name of the evaluation, and of the files that it writes."""

    encoder: str = ""
    """A run, encoder.safetensors, a checkpoint, or timm:NAME; by default the newest run."""
    pool: str | None = None
    """Features of an image: cls (class token), mean (of patches), both; null: the protocol's own, or the run's."""
    layer: Any = None
    """Block that is read: last, its number from 1, or best (on held-out training images); null likewise."""
    blocks: int | None = None
    """Blocks up to that one whose features are put side by side; null likewise."""
    data: DataConfig = field(default_factory=DataConfig)
    train_limit: int = 10000
    """Most labeled training images used; 0: all."""
    shots: list[int] = field(default_factory=list)
    """Training images of each class, such as 1,5,10: mean and deviation of five draws; the linear head is logreg."""
    fraction: list[float] = field(default_factory=list)
    """Shares of the training images, such as 0.01,0.1: likewise."""
    controls: bool = True
    """Also score a random encoder of the same shape, and raw pixels."""
    seed: int = 0
    """Draws the training images, the held-out part and the random control."""

    def __post_init__(self) -> None:
        if self.pool is not None:
            one_of("pool", self.pool, POOLS)
        if self.layer is not None:
            require_layer("layer", self.layer)
        require(self.blocks is None or self.blocks > 0, "blocks", self.blocks, "a positive integer")
        rule = "1 with layer=best, which tries single blocks"
        require(self.blocks in (None, 1) or self.layer != "best", "blocks", self.blocks, rule)
        require(self.train_limit >= 0, "train_limit", self.train_limit, "0 or more")
        require(all(count > 0 for count in self.shots), "shots", self.shots, "positive integers")
        require(all(0 < fraction <= 1 for fraction in self.fraction), "fraction", self.fraction, "shares in (0, 1]")
        rule = "last or a number with shots= or fraction=, which leave no images to choose it on"
        require(not self.few or self.layer != "best", "layer", self.layer, rule)
        require(self.seed >= 0, "seed", self.seed, "0 or more")

    @property
    def few(self) -> bool:
        """Whether parts of the training images are judged instead of all of them."""
        return bool(self.shots or self.fraction)

    @property
    def as_trained(self) -> bool:
        """Whether the encoder's run says what is read: its readout.pool, layer and blocks are the defaults."""
        return True


@dataclass(kw_only=True)
class LinearProbeConfig(EvaluationConfig):
    """Judge an encoder by a linear classifier on its frozen features."""

    task: ClassVar[str] = "linear_probe"

    protocol: str = "grid"
    """grid, logreg, mae, dino, beit or attentive (docs/evaluation.md); by default as the encoder's run had it."""
    epochs: int | None = None
    """Passes over the training images; null: the protocol's own."""
    batch_size: int | None = None
    """Images a step, as many as there are at most; null: the protocol's own."""
    base_lr: float | None = None
    """Learning rate per 256 images; null: the protocol's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("protocol", self.protocol, LINEAR_PROTOCOLS)
        protocol = PROTOCOLS[self.protocol]
        for name in ("epochs", "batch_size", "base_lr"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "positive, or null")
            own = getattr(protocol, name) is not None
            require(value is None or own, name, value, f"null with protocol={self.protocol}, which has none")
        if self.few:
            return
        for name in ("pool", "layer", "blocks"):
            value = getattr(self, name)
            legal = value is None or name in protocol.readout
            require(legal, name, value, f"null with protocol={self.protocol}, which says itself what it reads")
        legal = self.layer != "best" or self.protocol == "logreg"
        rule = f"last or a number with protocol={self.protocol}; protocol=logreg and k-NN can choose"
        require(legal, "layer", self.layer, rule)

    @property
    def as_trained(self) -> bool:
        """Whether the encoder's run says what is read: with logistic regression, which reads one feature."""
        return self.protocol == "logreg" or self.few

    @property
    def schedule(self) -> tuple[int, int, float]:
        """(epochs, images a step, learning rate per 256 images): as set, else the protocol's own; 0 for none."""
        own = PROTOCOLS[self.protocol]
        return (
            self.epochs or own.epochs or 0,
            self.batch_size or own.batch_size or 0,
            self.base_lr or own.base_lr or 0.0,
        )


@dataclass(kw_only=True)
class KNNConfig(EvaluationConfig):
    """Judge an encoder by weighted k-nearest neighbors of its frozen features."""

    task: ClassVar[str] = "knn"

    neighbors: list[int] = field(default_factory=lambda: [10, 20, 100, 200])
    """k: one, or several of which held-out training images choose; at most the training images."""
    temperature: float = 0.07
    """Softness of the votes: exp(cosine similarity / temperature)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        legal = bool(self.neighbors) and all(count > 0 for count in self.neighbors)
        require(legal, "neighbors", self.neighbors, "positive integers")
        require(self.temperature > 0, "temperature", self.temperature, "positive")
