"""What is judged: an encoder, a random one of its shape, raw pixels; each says which features it has.

Letters: B images, C channels, H x W pixels, S tokens (class token first), D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.config.checks import require
from ssl_vit.config.schema import POOLS
from ssl_vit.models.vit import VisionTransformer, patchify

WHOLE = "whole"
"""The pooling of what has one feature an image: pixels, a convolutional network's pooled output."""


@dataclass(frozen=True)
class Feature:
    """Some blocks of a subject, pooled one way and put side by side."""

    blocks: tuple[int, ...]
    """From 0, in order."""
    pool: str
    """cls, mean, both, or whole."""

    @property
    def metadata(self) -> dict[str, Any]:
        """As people count: blocks from 1."""
        return {"blocks": [1 + block for block in self.blocks], "pool": self.pool}


@dataclass(kw_only=True)
class Backbone:
    """Something that describes images by tokens of its blocks. Its kinds say how."""

    module: nn.Module
    depth: int
    """Blocks that can be read."""
    width: int
    """Of a token; of the feature where there is only one."""
    patch_size: int
    """Pixels of a token's side; 1 where there are no tokens."""
    pools: tuple[str, ...] = POOLS
    """Poolings it has; `whole` alone where an image has one feature."""
    height_width: tuple[int, int]
    """Of the images it was made for, in pixels."""
    channels: int
    metadata: dict[str, Any] = field(default_factory=dict)
    """mean and std of its images, where it knows them."""

    def tokens(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int], normed: bool = True
    ) -> list[Float[Tensor, "B S D"]]:
        """Tokens after each of the blocks, through the final norm or before it; class token first, if it has one."""
        raise NotImplementedError

    def features(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int], pool: str, normed: bool = True
    ) -> Float[Tensor, "B _"]:
        """One vector per image: for each block the class token and, or, the mean of the patches, side by side."""
        patches = slice(1 if "cls" in self.pools else 0, None)
        parts = []
        for tokens in self.tokens(images, layers, normed):
            parts += [tokens[:, 0]] if pool != "mean" else []
            parts += [tokens[:, patches].mean(1)] if pool != "cls" else []
        return torch.cat(parts, dim=1)

    def random(self, seed: int) -> "Backbone":
        """The same architecture, untrained."""
        raise NotImplementedError

    def feature(self, pool: str, layer: Any, blocks: int) -> Feature:
        """The feature of `blocks` blocks up to `layer` (last, or a number from 1); for what has only one, that one.

        ValueError where there is no such block, or no such pooling.
        """
        if WHOLE in self.pools:
            return Feature((0,), WHOLE)
        require(pool in self.pools, "pool", pool, f"one of {', '.join(self.pools)}: this encoder has no class token")
        last = self.depth if layer == "last" else int(layer)
        require(last <= self.depth, "layer", layer, f"at most {self.depth}, the encoder's blocks")
        return Feature(tuple(range(max(0, last - blocks), last)), pool)


class EncoderBackbone(Backbone):
    """A VisionTransformer of this project."""

    def __init__(self, encoder: VisionTransformer) -> None:
        super().__init__(
            module=encoder,
            depth=encoder.depth,
            width=encoder.embed_dim,
            patch_size=encoder.patch_size,
            height_width=encoder.config.height_width,
            channels=encoder.config.channels,
            metadata=encoder.metadata,
        )
        self.encoder = encoder

    def tokens(self, images: Tensor, layers: Sequence[int], normed: bool = True) -> list[Tensor]:
        if normed:
            return self.encoder.layer_tokens(images, layers)
        return self.encoder.hidden_states(self.encoder.embed(images), layers, self.encoder.grid_of(images))

    def random(self, seed: int) -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return EncoderBackbone(VisionTransformer(self.encoder.config).eval())


class RawPixels(Backbone):
    """The normalized pixels themselves: the image as one feature, its patches as tokens."""

    def __init__(self, height_width: tuple[int, int], channels: int, patch_size: int) -> None:
        super().__init__(
            module=nn.Identity(),
            depth=1,
            width=channels * height_width[0] * height_width[1],
            patch_size=patch_size,
            pools=(WHOLE,),
            height_width=height_width,
            channels=channels,
        )

    def tokens(self, images: Tensor, layers: Sequence[int], normed: bool = True) -> list[Tensor]:
        return [patchify(images, self.patch_size) for _ in layers]

    def features(self, images: Tensor, layers: Sequence[int], pool: str, normed: bool = True) -> Tensor:
        return images.flatten(1)
