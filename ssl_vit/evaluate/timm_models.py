"""Models of timm by name, judged as our own encoders are: `encoder=timm:vit_small_patch16_224`.

Transformers give tokens of every block; any other model its one pooled feature.

Letters: B images, C channels, H x W pixels, S tokens, D width.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssl_vit.config.checks import nearest
from ssl_vit.config.evaluation_schema import TIMM
from ssl_vit.config.schema import POOLS
from ssl_vit.evaluate.backbones import WHOLE, Backbone


def load_timm(name: str, pretrained: bool = True, seed: int = 0) -> "TimmTransformer | TimmPooled":
    """A model of timm by name; pretrained weights are downloaded on first use, without them the seed draws some.

    Raises:
        ImportError, ValueError, OSError: as timm_model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm_model(f"encoder={TIMM}{name}", name, pretrained=pretrained, num_classes=0)
    return (TimmTransformer if _has_tokens(model) else TimmPooled)(name, model.eval())


def timm_model(key: str, name: str, **options: Any) -> Any:
    """timm.create_model.

    Args:
        key: begins every message: the setting that names the model.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model.
        OSError: its weights could not be had.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{key} needs timm: uv sync --extra timm, or pip install 'ssl_vit[timm]'") from error
    if not timm.is_model(name):
        raise ValueError(f"{key}: timm has no model of this name{nearest(name, timm.list_models())}")
    try:
        return timm.create_model(name, **options)
    except Exception as error:  # what downloads raises errors of its own kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        advice = "they are downloaded on first use, and kept"
        raise OSError(f"{key}: its weights could not be had ({reason}); {advice}") from error


def _has_tokens(model: Any) -> bool:
    reads = getattr(model, "forward_intermediates", None)
    prefixed = reads is not None and "return_prefix_tokens" in inspect.signature(reads).parameters
    return prefixed and hasattr(model, "num_prefix_tokens") and hasattr(model, "blocks")


def _metadata(model: Any) -> dict[str, Any]:
    """What every subject knows: size, channels, statistics; from timm's own description of the weights."""
    known = model.pretrained_cfg
    channels, height, width = known["input_size"]
    return {
        "height_width": (height, width),
        "channels": channels,
        "metadata": {"mean": list(known["mean"]), "std": list(known["std"])},
    }


class TimmTransformer(Backbone):
    """A Vision Transformer of timm, or a model that gives its tokens in the same way."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self.has_class_token = bool(model.num_prefix_tokens)
        super().__init__(
            module=model,
            depth=len(model.blocks),
            width=model.num_features,
            patch_size=model.patch_embed.patch_size[0],
            pools=POOLS if self.has_class_token else ("mean",),
            **_metadata(model),
        )

    def tokens(self, images: Tensor, layers: Sequence[int], normed: bool = True) -> list[Tensor]:
        wanted = [range(self.depth)[layer] for layer in layers]
        read = sorted(set(wanted))
        given = self.model.forward_intermediates(
            images,
            indices=read,
            return_prefix_tokens=True,
            norm=normed,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if self.has_class_token:
            given = [torch.cat([prefix[:, :1], patches], dim=1) for patches, prefix in given]
        return [given[read.index(layer)] for layer in wanted]

    def random(self, seed: int) -> Backbone:
        return load_timm(self.name, pretrained=False, seed=seed)


class TimmPooled(Backbone):
    """A model of timm whose images have one feature: what its own head would read."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        width = getattr(model, "head_hidden_size", model.num_features)
        super().__init__(module=model, depth=1, width=width, patch_size=1, pools=(WHOLE,), **_metadata(model))

    def tokens(self, images: Tensor, layers: Sequence[int], normed: bool = True) -> list[Tensor]:
        raise ValueError(f"encoder={TIMM}{self.name} has no tokens: choose another protocol= than attentive")

    def features(self, images: Tensor, layers: Sequence[int], pool: str, normed: bool = True) -> Tensor:
        return self.model(images)

    def random(self, seed: int) -> Backbone:
        return load_timm(self.name, pretrained=False, seed=seed)
