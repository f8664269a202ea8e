"""What a tokenizer is, tokenizers in files, and the objective of those that are learned by gradient.

A method that predicts tokens calls `tokenizer(images) -> tokens`, reads `tokenizer.vocab_size`, and where a tokenizer
has them patch_size, channels and grid; decode, where `decodes` is true, makes images to look at.
Letters: B images, C channels, H W pixels, h x w patch grid, N = h * w tokens.
"""

from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ssl_vit.config.recipes import load_class
from ssl_vit.config.schema import PatchGrid
from ssl_vit.config.tokenizer_schema import TOKENIZERS, TokenizerConfig
from ssl_vit.config.values import described
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.methods.base import Objective
from ssl_vit.models.weights import built, read_weights, reading, write_weights
from ssl_vit.run.files import write_json
from ssl_vit.run.launch import typed
from ssl_vit.tokenizers.dalle import DallE, load_dalle

WEIGHTS, ABOUT = "tokenizer.safetensors", "tokenizer.json"


class Tokenizer(nn.Module, ABC):
    """One token of a vocabulary for each patch of an image; its config is saved with it."""

    kind: str
    decodes = False
    """Whether there is a way back from tokens to images."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_size, self.patch_size = config.vocab_size, config.patch_size
        self.channels, self.grid = config.channels, config.grid

    @abstractmethod
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        """Tokens in [0, vocab_size), row by row over the grid, of images in [0, 1]; in float32, without gradient."""

    def decode(self, tokens: Int64[Tensor, "B N"], grid: tuple[int, int] | None = None) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] of tokens of a grid, by default the training one, where `decodes` is true."""
        raise NotImplementedError(f"a {self.kind} tokenizer has no way back to images")


class TokenizerTraining(Objective):
    """An objective whose result is a tokenizer. Images are in [0, 1]."""

    tokenizer: Any
    """A Tokenizer, of the kind that its training is for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_size, self.channels = self.config.height_width, self.config.channels
        self.mean, self.std = [0.0] * self.channels, [1.0] * self.channels

    def transform(self) -> RandomCrop:
        return crop_of(self.config)

    def export(self, folder: str | Path, **metadata: Any) -> Path:
        return save_tokenizer(self.tokenizer, Path(folder), **metadata)


def crop_of(config: TokenizerConfig) -> RandomCrop:
    """The augmentation that every tokenizer is trained on."""
    return RandomCrop(config.height_width, config.crop_scale, flip=config.flip)


def vocabulary_use(tokens: Int64[Tensor, "*shape"], vocab_size: int) -> dict[str, Tensor]:
    """Of a batch's tokens perplexity and the fraction of the vocabulary that occurs."""
    fraction = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return {"perplexity": torch.special.entr(fraction).sum().exp(), "codes_met": (fraction > 0).float().mean()}


def require_tokens(tokenizer: nn.Module, patches: PatchGrid, where: str) -> None:
    """ValueError in one line unless the tokenizer, named `where`, makes one token for each of the encoder's patches."""
    if (channels := getattr(tokenizer, "channels", patches.channels)) != patches.channels:
        line = f"tokenizer={where} reads images of {channels} channels"
        raise ValueError(f"{line}, but encoder.channels={patches.channels}")
    grid, own = getattr(tokenizer, "grid", None) or patches.grid, patches.grid
    if tuple(grid) != own:
        raise ValueError(
            f"tokenizer={where} makes {grid[0]} x {grid[1]} tokens of an image, but encoder.image_size="
            f"{patches.image_size} and encoder.patch_size={patches.patch_size} make {own[0]} x {own[1]} patches"
        )


def save_tokenizer(tokenizer: Tokenizer, folder: Path, **metadata: Any) -> Path:
    """Write tokenizer.safetensors (complete in itself) and tokenizer.json (its metadata, for people and tools)."""
    metadata = {**(rebuild_options(tokenizer) or {}), **metadata}
    write_weights(folder / WEIGHTS, tokenizer.state_dict(), metadata)
    write_json(folder / ABOUT, metadata)
    return folder / WEIGHTS


def load_tokenizer(source: str | Path) -> nn.Module:
    """A tokenizer in eval mode, frozen: of a run, its tokenizer.safetensors, or OpenAI's dVAE as a plain state dict.

    FileNotFoundError: there is nothing at source. ValueError: it holds no tokenizer, or weights do not fit.
    """
    path = Path(source)
    path = path / WEIGHTS if path.is_dir() else path
    if not path.exists():
        advice = f"make one with `{typed('train_tokenizer')}`, or leave tokenizer= empty and one is trained first"
        raise FileNotFoundError(f"tokenizer={source}: there is no {path}; {advice}")
    with reading(path):
        state, metadata = read_weights(path)
        if not metadata:
            return load_dalle(state, path)
        kind = metadata.get("kind")
        if not isinstance(kind, str) or kind not in TOKENIZERS:
            raise ValueError(f"tokenizer={source} holds no tokenizer, but {', '.join(metadata)[:200]}")
        config = described(type(TOKENIZERS[kind].config().own_config)(), metadata.get("config"), path)
        tokenizer = built(load_class(TOKENIZERS[kind].home), config, state, path)
    return tokenizer.requires_grad_(False).eval()


def as_tokenizer(given: Any) -> Any:
    """A tokenizer as it is; load_tokenizer's of a path; of what rebuild_options says one with random weights."""
    if isinstance(given, str | Path):
        return load_tokenizer(given)
    if not isinstance(given, dict):
        return given
    if given["kind"] == DallE.kind:
        return DallE(**given["config"])
    options = given["config"] | {"crop_scale": tuple(given["config"]["crop_scale"])}  # JSON has no tuples
    config = type(TOKENIZERS[given["kind"]].config().own_config)(**options)
    return load_class(TOKENIZERS[given["kind"]].home)(config)


def rebuild_options(tokenizer: Any) -> dict[str, Any] | None:
    """What a tokenizer can be made of again, without its weights, as plain values; None for one of your own."""
    if isinstance(tokenizer, DallE):
        return {"kind": tokenizer.kind, "config": tokenizer.config}
    return {"kind": tokenizer.kind, "config": asdict(tokenizer.config)} if isinstance(tokenizer, Tokenizer) else None
