"""Settings of the tokenizers: what turns the patches of an image into tokens, for BEiT; schema.py has all the rest."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from ssl_vit.config import checks
from ssl_vit.config.checks import CropScale, Fraction, NonNegativeFloat, PositiveInt, Rules, fresh
from ssl_vit.config.schema import DataConfig, Kind, OptimConfig, PatchGrid, TrainerConfig, TrainingRun


@dataclass(kw_only=True)
class TokenizerConfig(PatchGrid, section="tokenizer"):
    """What every tokenizer has: one token for each patch of an image."""

    vocab_size: Annotated[int, checks.at_least(2)] = 8192
    """Tokens there are."""
    crop_scale: CropScale = (0.2, 1.0)
    """Area of the random crops it is trained on, as a fraction of the image."""
    flip: bool = True
    """Mirror half of the crops left to right."""


@dataclass(kw_only=True)
class KMeansConfig(TokenizerConfig):
    """Each patch becomes the nearest of its pixels' k-means centers: seconds to fit, any number of channels."""

    patches: PositiveInt = 200_000
    """Patches that the centers are fitted to; at least tokenizer.vocab_size."""
    passes: PositiveInt = 20
    """Most passes of mini-batch k-means over them."""

    def rules(self) -> Rules:
        yield from super().rules()
        yield self.patches >= self.vocab_size, "patches", f"tokenizer.vocab_size={self.vocab_size} or more"


@dataclass(kw_only=True)
class DVAEConfig(TokenizerConfig):
    """Discrete variational autoencoder on the user's own images (arXiv:2102.12092, section 2.1 and appendix A)."""

    width: PositiveInt = 256
    """Channels of the convolutions on the patch grid; half as many at each resolution above."""
    residuals: checks.Depth = 2
    """Residual blocks at each resolution."""
    code_dim: PositiveInt = 128
    """Channels of a codebook vector."""
    start_temperature: checks.Temperature = 1.0
    """Temperature of the Gumbel-softmax at the start; falls by half a cosine."""
    end_temperature: checks.Temperature = 0.0625
    """Temperature of the Gumbel-softmax at the end."""
    kl: NonNegativeFloat = 1e-4
    """Weight of how far a patch's tokens are from all being equally likely, in nats, beside the squared error."""
    kl_warmup: Fraction = 0.1
    """Fraction of the run in which that weight grows from 0."""
    usage: NonNegativeFloat = 3e-3
    """Weight of how far the tokens of all patches of a batch together are from being used equally often, in nats."""

    def unread(self) -> checks.Unread:
        yield self.kl == 0, "kl_warmup", "kl", "tokenizer.kl=0: there is no such weight"


@dataclass(kw_only=True)
class VQKDConfig(TokenizerConfig):
    """Tokens that predict a frozen teacher's patch features: BEiT v2's (arXiv:2208.06366, section 2.1)."""

    teacher: str = ""
    """The encoder whose features are predicted: anything load_encoder reads, a DINO run for one."""
    width: PositiveInt = 384
    """Channels of the tokenizer's own Vision Transformer, encoder and decoder."""
    depth: checks.Depth = 12
    """Blocks of its encoder."""
    heads: PositiveInt = 6
    """Attention heads; must divide the width."""
    decoder_depth: checks.Depth = 1
    """Blocks of its decoder."""
    code_dim: PositiveInt = 32
    """Channels of a codebook vector."""
    codebook_momentum: Annotated[float, checks.inside("[0, 1)")] = 0.99
    """Fraction of the old codebook in the new one, at each step."""
    commitment: NonNegativeFloat = 1.0
    """Weight of the distance between a patch's code and its codebook vector."""
    revive_below: Annotated[float, checks.inside("[0, 1)")] = 0.01
    """A codebook vector used less often than this fraction of an even use is put on a patch of the batch; 0: never."""

    def rules(self) -> Rules:
        yield from super().rules()
        yield self.width % self.heads == 0, "width", f"a multiple of tokenizer.heads={self.heads}"
        yield self.width % 4 == 0, "width", "a multiple of 4"


@dataclass(kw_only=True)
class TokenizerRun(TrainingRun):
    """One tokenizer's training. It sees pixels in [0, 1]."""

    own_section: ClassVar[str] = "tokenizer"
    tokenizer: Any = fresh(TokenizerConfig)
    data: DataConfig = fresh(DataConfig, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])

    def rules(self) -> Rules:
        yield from super().rules()
        channels = self.tokenizer.channels
        for name, value in (("mean", 0.0), ("std", 1.0)):
            rule = f"{[value] * channels}, one for each of tokenizer.channels={channels}: a tokenizer sees pixels"
            yield getattr(self.data, name) == [value] * channels, f"data.{name}", rule
        rule = "given where data.path is a remote stream: a tokenizer is evaluated on images that can be read again"
        yield not self.data.remote or bool(self.data.test_path), "data.test_path", rule

    def unread(self) -> checks.Unread:
        yield from super().unread()
        yield True, "monitor.train_limit monitor.test_limit", "tokenizer", "a tokenizer has no features to evaluate"


@dataclass(kw_only=True)
class KMeansRun(TokenizerRun):
    """k-means over patches; its trainer.* and optim.* settings have no effect."""

    tokenizer: KMeansConfig = fresh(KMeansConfig)

    def unread(self) -> checks.Unread:
        yield from super().unread()
        yield True, "data.global_batch", "tokenizer", "k-means is fitted at once, without steps"
        for section in (self.optim, self.trainer):
            names = " ".join(map(section.key, vars(section)))
            yield True, names, "tokenizer", "k-means is fitted at once, without optimizer and trainer"


@dataclass(kw_only=True)
class DVAERun(TokenizerRun):
    """Discrete VAE: Adam's betas .9 .999, decay of the learning rate to a hundredth."""

    tokenizer: DVAEConfig = fresh(DVAEConfig)
    optim: OptimConfig = fresh(OptimConfig, base_lr=5e-4, min_lr=5e-6, warmup_epochs=1, weight_decay=0.0, clip_grad=1.0)
    trainer: TrainerConfig = fresh(TrainerConfig, max_epochs=100)


@dataclass(kw_only=True)
class VQKDRun(TokenizerRun):
    """VQ-KD with the paper's defaults: betas .9 .99, weight decay 1e-4, lr 5e-5 per 128 images, 100 epochs."""

    tokenizer: VQKDConfig = fresh(VQKDConfig)
    optim: OptimConfig = fresh(
        OptimConfig, base_lr=1e-4, min_lr=1e-5, warmup_epochs=10, weight_decay=1e-4, betas=(0.9, 0.99)
    )
    trainer: TrainerConfig = fresh(TrainerConfig, max_epochs=100)


TOKENIZERS = {
    "kmeans": Kind(KMeansRun, "ssl_vit.tokenizers.kmeans:KMeans"),
    "dvae": Kind(DVAERun, "ssl_vit.tokenizers.dvae:DVAE", "ssl_vit.tokenizers.dvae:DVAETraining"),
    "vqkd": Kind(VQKDRun, "ssl_vit.tokenizers.vqkd:VQKD", "ssl_vit.tokenizers.vqkd:VQKDTraining"),
}
