"""Settings of the tokenizers: what turns the patches of an image into tokens, for BEiT; see schema.py for the rest."""

from dataclasses import dataclass, field
from typing import Any

from ssl_vit.config.checks import interval, require
from ssl_vit.config.schema import DataConfig, OptimConfig, PatchGrid, TrainerConfig, TrainingRun


@dataclass(kw_only=True)
class TokenizerConfig(PatchGrid):
    """What every tokenizer has: one token for each patch of an image."""

    vocab_size: int = 8192
    """Tokens there are."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Area of the random crops it is trained on, as a share of the image."""
    flip: bool = True
    """Mirror half of the crops left to right."""

    def __post_init__(self) -> None:
        self.check("method")
        require(self.vocab_size > 1, "method.vocab_size", self.vocab_size, "2 or more")
        interval("method.crop_scale", self.crop_scale, 0.01, 1.0)


@dataclass(kw_only=True)
class KMeansConfig(TokenizerConfig):
    """Each patch becomes the nearest of its pixels' k-means centers: seconds to fit, any number of channels."""

    patches: int = 200_000
    """Patches that the centers are fitted to; at least method.vocab_size."""
    passes: int = 20
    """Most passes of mini-batch k-means over them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = f"method.vocab_size={self.vocab_size} or more"
        require(self.patches >= self.vocab_size, "method.patches", self.patches, rule)
        require(self.passes > 0, "method.passes", self.passes, "a positive integer")


@dataclass(kw_only=True)
class DVAEConfig(TokenizerConfig):
    """Discrete variational autoencoder on the user's own images (arXiv:2102.12092, section 2.1 and appendix A)."""

    width: int = 256
    """Channels of the convolutions on the patch grid; half as many at each resolution above."""
    residuals: int = 2
    """Residual blocks at each resolution."""
    code_dim: int = 128
    """Channels of a codebook vector."""
    start_temperature: float = 1.0
    """Temperature of the Gumbel-softmax at the start; falls by half a cosine."""
    end_temperature: float = 0.0625
    """Temperature of the Gumbel-softmax at the end."""
    kl: float = 1e-4
    """Weight of how far a patch's tokens are from all being equally likely, in nats, beside the squared error."""
    kl_warmup: float = 0.1
    """Share of the run in which that weight grows from 0."""
    usage: float = 3e-3
    """Weight of how far the tokens of all patches of a batch together are from being used equally often, in nats."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "residuals", "code_dim"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "a positive integer")
        for name in ("start_temperature", "end_temperature"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "positive")
        for name in ("kl", "usage"):
            require(getattr(self, name) >= 0, f"method.{name}", getattr(self, name), "0 or more")
        require(0 <= self.kl_warmup <= 1, "method.kl_warmup", self.kl_warmup, "in [0, 1]")


@dataclass(kw_only=True)
class VQKDConfig(TokenizerConfig):
    """Tokens from which a frozen teacher's patch features can be told: BEiT v2's (arXiv:2208.06366, section 2.1)."""

    teacher: str = ""
    """The encoder whose features are told: anything load_encoder reads, a DINO run for one."""
    width: int = 384
    """Channels of the tokenizer's own Vision Transformer, encoder and decoder."""
    depth: int = 12
    """Blocks of its encoder."""
    heads: int = 6
    """Attention heads; must divide the width."""
    decoder_depth: int = 1
    """Blocks of its decoder."""
    code_dim: int = 32
    """Channels of a codebook vector."""
    codebook_momentum: float = 0.99
    """Share of the old codebook in the new one, at each step."""
    commitment: float = 1.0
    """Weight of the distance between a patch's code and its codebook vector."""
    revive_below: float = 0.01
    """A codebook vector used less often than this share of an even use is put on a patch of the batch; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "depth", "heads", "decoder_depth", "code_dim"):
            require(getattr(self, name) > 0, f"method.{name}", getattr(self, name), "a positive integer")
        require(
            self.width % self.heads == 0, "method.width", self.width, f"a multiple of method.num_heads={self.heads}"
        )
        require(0 <= self.codebook_momentum < 1, "method.codebook_momentum", self.codebook_momentum, "in [0, 1)")
        require(self.commitment >= 0, "method.commitment", self.commitment, "0 or more")
        require(0 <= self.revive_below < 1, "method.revive_below", self.revive_below, "in [0, 1)")


def _whole_pixels() -> DataConfig:
    return DataConfig(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])


@dataclass(kw_only=True)
class TokenizerRun(TrainingRun):
    """One tokenizer's training. It sees pixels in [0, 1]."""

    method: Any = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=_whole_pixels)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("mean", 0.0), ("std", 1.0)):
            expected, given = [value] * self.method.channels, getattr(self.data, name)
            rule = f"{expected}, one for each of method.channels={self.method.channels}: a tokenizer sees pixels"
            require(given == expected, f"data.{name}", given, rule)
        rule = "given where data.path is a remote stream: a tokenizer is judged on images that can be read again"
        require(not self.data.remote or bool(self.data.test_path), "data.test_path", self.data.test_path, rule)

    @property
    def patches(self) -> PatchGrid:
        """The training image and its patches."""
        return self.method


@dataclass(kw_only=True)
class KMeansRun(TokenizerRun):
    """k-means over patches; its trainer.* and optim.* settings have no effect."""

    method: KMeansConfig = field(default_factory=KMeansConfig)


@dataclass(kw_only=True)
class DVAERun(TokenizerRun):
    """Discrete VAE: Adam's betas .9 .999, decay of the learning rate to a hundredth."""

    method: DVAEConfig = field(default_factory=DVAEConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(base_lr=5e-4, min_lr=5e-6, warmup_epochs=1, weight_decay=0.0, clip_grad=1.0)
    )
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=100))


@dataclass(kw_only=True)
class VQKDRun(TokenizerRun):
    """VQ-KD with the paper's defaults: betas .9 .99, weight decay 1e-4, lr 5e-5 per 128 images, 100 epochs."""

    method: VQKDConfig = field(default_factory=VQKDConfig)
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            base_lr=1e-4, min_lr=1e-5, warmup_epochs=10, weight_decay=1e-4, betas=(0.9, 0.99)
        )
    )
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_epochs=100))


TOKENIZERS: dict[str, type[TokenizerRun]] = {"kmeans": KMeansRun, "dvae": DVAERun, "vqkd": VQKDRun}
"""Tokenizers by their name on the command line."""
