"""What is evaluated: an encoder, a random one of its shape, raw pixels, any model of timm; each names its features.

Letters: B images, C channels, H x W pixels, S tokens (class token first), D width.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.config.checks import nearest, require
from ssl_vit.config.evaluation_schema import TIMM
from ssl_vit.config.schema import POOLS
from ssl_vit.data.sources.base import one_line
from ssl_vit.models.vit import VisionTransformer, patchify, pooled

WHOLE = "whole"  # the pooling of a backbone with one feature an image: pixels, a convolutional network's pooled output


@dataclass(frozen=True)
class Feature:
    """Some blocks of a backbone, numbered from 0, pooled one way (cls, mean, both, whole) and put side by side."""

    blocks: tuple[int, ...]
    pool: str

    @property
    def vectors(self) -> list[tuple[int, str]]:
        """Block and pooling of each of the vectors that stand side by side."""
        pools = ("cls", "mean") if self.pool == "both" else (self.pool,)
        return [(block, pool) for block in self.blocks for pool in pools]

    @property
    def metadata(self) -> dict[str, Any]:
        """As people count: blocks from 1."""
        return {"blocks": [1 + block for block in self.blocks], "pool": self.pool}

    def select(self, values: Float[Tensor, "*n _"], feature: "Feature") -> Float[Tensor, "*n _"]:
        """Columns of another feature in values of this one; ValueError where it is not among them."""
        if feature == self:
            return values
        vectors = values.chunk(len(self.vectors), dim=-1)
        return torch.cat([vectors[self.vectors.index(vector)] for vector in feature.vectors], dim=-1)


class Backbone:
    """A network that turns images into the tokens of its blocks; each subclass in its own way."""

    module: Any  # the network, an nn.Module in eval mode
    depth: int  # blocks that can be read
    width: int  # of a token; of the feature where there is only one
    patch_size: int  # pixels of a token's side; 1 where there are no tokens
    pools: tuple[str, ...] = POOLS  # `whole` alone where an image has one feature
    height_width: tuple[int, int]  # of the images it was made for, in pixels
    channels: int
    metadata: dict[str, Any]  # mean and std of its images, where they are known

    def tokens(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int], normed: bool = True
    ) -> list[Float[Tensor, "B S D"]]:
        """Tokens after the blocks, in ascending order, through the final norm or before it; class token first."""
        raise NotImplementedError

    def features(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int], pool: str, normed: bool = True
    ) -> Float[Tensor, "B _"]:
        """One vector per image: for each block the class token and, or, the mean of the patches, side by side."""
        return pooled(self.tokens(images, layers, normed), pool, int("cls" in self.pools)).float()

    def extractor(self, feature: Feature, normed: bool = True) -> Callable[[Tensor], Tensor]:
        """The function from images [B, C, H, W] to a feature of them [B, D], in float32."""
        return partial(self.features, layers=feature.blocks, pool=feature.pool, normed=normed)

    def random(self, seed: int) -> "Backbone":
        """The same architecture, untrained."""
        raise NotImplementedError

    def feature(self, pool: str, layer: Any, blocks: int) -> Feature:
        """The feature of `blocks` blocks up to `layer` (last, or from 1), or the only one; ValueError without it."""
        if WHOLE in self.pools:
            return Feature((0,), WHOLE)
        require(pool in self.pools, "pool", pool, f"one of {', '.join(self.pools)}: this encoder has no class token")
        last = self.depth if layer == "last" else int(layer)
        require(last <= self.depth, "layer", layer, f"at most {self.depth}, the encoder's blocks")
        return Feature(tuple(range(max(0, last - blocks), last)), pool)


class EncoderBackbone(Backbone):
    """A VisionTransformer of this project."""

    def __init__(self, encoder: VisionTransformer) -> None:
        self.module = encoder
        self.depth, self.width, self.patch_size = encoder.depth, encoder.embed_dim, encoder.patch_size
        self.height_width, self.channels = encoder.config.height_width, encoder.config.channels
        self.metadata = encoder.metadata

    def tokens(self, images: Tensor, layers: Sequence[int], normed: bool = True) -> list[Tensor]:
        encoder = self.module
        states = encoder.hidden_states(encoder.embed(images), layers, encoder.grid_of(images))
        return [encoder.norm(tokens) for tokens in states] if normed else states

    def random(self, seed: int) -> Backbone:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return EncoderBackbone(VisionTransformer(self.module.config).eval())


class RawPixels(Backbone):
    """The normalized pixels themselves: the image as one feature, its patches as tokens."""

    def __init__(self, height_width: tuple[int, int], channels: int, patch_size: int) -> None:
        self.module, self.depth, self.pools, self.metadata = nn.Identity(), 1, (WHOLE,), {}
        self.width, self.patch_size = channels * math.prod(height_width), patch_size
        self.height_width, self.channels = height_width, channels

    def tokens(self, images: Tensor, layers: Sequence[int], normed: bool = True) -> list[Tensor]:
        return [patchify(images, self.patch_size) for _ in layers]

    def features(self, images: Tensor, layers: Sequence[int], pool: str, normed: bool = True) -> Tensor:
        return images.flatten(1)


class TimmBackbone(Backbone):
    """A model of timm, without a classifier: the tokens of every block of a transformer, else one pooled feature."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.module = name, model
        self.channels, height, width = model.pretrained_cfg["input_size"]
        self.height_width = (height, width)
        self.metadata = {key: list(model.pretrained_cfg[key]) for key in ("mean", "std")}
        reads = inspect.signature(getattr(model, "forward_intermediates", lambda: None)).parameters
        if "return_prefix_tokens" in reads and hasattr(model, "num_prefix_tokens") and hasattr(model, "blocks"):
            self.depth, self.width = len(model.blocks), model.num_features
            self.patch_size = model.patch_embed.patch_size[0]
            self.pools = POOLS if model.num_prefix_tokens else ("mean",)
        else:
            self.depth, self.width, self.patch_size = 1, getattr(model, "head_hidden_size", model.num_features), 1
            self.pools = (WHOLE,)

    def tokens(self, images: Tensor, layers: Sequence[int], normed: bool = True) -> list[Tensor]:
        if WHOLE in self.pools:
            raise ValueError(f"encoder={TIMM}{self.name} has no tokens: choose another protocol= than attentive")
        found = self.module.forward_intermediates(
            images, list(layers), return_prefix_tokens=True, norm=normed, output_fmt="NLC", intermediates_only=True
        )
        if "cls" not in self.pools:
            return found
        return [torch.cat([prefix[:, :1], patches], dim=1) for patches, prefix in found]

    def features(self, images: Tensor, layers: Sequence[int], pool: str, normed: bool = True) -> Tensor:
        return self.module(images).float() if WHOLE in self.pools else super().features(images, layers, pool, normed)

    def random(self, seed: int) -> Backbone:
        return load_timm(self.name, pretrained=False, seed=seed)


def load_timm(name: str, pretrained: bool = True, seed: int = 0) -> TimmBackbone:
    """A model of timm by name; pretrained weights are downloaded on first use, untrained ones are drawn by the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm_model(f"encoder={TIMM}{name}", name, pretrained=pretrained, num_classes=0)
    return TimmBackbone(name, model.eval())


def timm_model(key: str, name: str, **options: Any) -> Any:
    """timm.create_model; ValueError for an unknown name, OSError where weights cannot be had; key begins messages."""
    import timm

    require_timm(key, name)
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # each downloader raises errors of its own kinds
        advice = "they are downloaded on first use, and kept"
        raise OSError(f"{key}: its weights could not be had ({one_line(error)[:200]}); {advice}") from error


def require_timm(key: str, name: str) -> None:
    """ValueError, which key begins, unless timm has a model of the name."""
    import timm

    if not timm.is_model(name):
        raise ValueError(f"{key}: timm has no model of this name{nearest(name, timm.list_models())}")
