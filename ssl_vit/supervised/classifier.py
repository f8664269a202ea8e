"""A Vision Transformer with a head. Letters: B images, C channels, H x W pixels, D width, N patches, K classes."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.config.checks import one_of, require
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.schema import EncoderConfig
from ssl_vit.config.values import described
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import (
    built,
    known_metadata,
    load_encoder,
    load_strictly,
    read_weights,
    reading,
    require_finite,
    save_encoder,
    transfer,
    write_weights,
)
from ssl_vit.run.files import MODEL
from ssl_vit.run.launch import typed


class Classifier(nn.Module):
    """Images to class scores.

    Args:
        encoder: not copied; with pool=mean its final norm is removed.
        classes: names, in the order of the scores.
        pool: what the head reads: mean (of patches, through a norm of its own, as MAE's) or cls (after the encoder's).
        distilled: add a token and a head that learn from a teacher (DeiT, arXiv:2012.12877, section 4); not with
            relative positions. head_std: std of a head's initial weights; biases are 0.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        classes: list[str],
        pool: str = "mean",
        distilled: bool = False,
        head_std: float = 2e-5,
    ) -> None:
        super().__init__()
        one_of("finetune.pool", pool, ("mean", "cls"))
        if distilled and encoder.config.relative:
            raise ValueError(
                f"distill.teacher= adds a token, which has no place with encoder.pos_embed={encoder.config.pos_embed}: "
                "fine-tune an encoder with learned or sincos positions"
            )
        self.encoder, self.classes, self.pool, self.distilled = encoder, list(classes), pool, distilled
        self.metadata: dict[str, Any] = {}  # of a saved classifier: mean, std, method, data
        if pool == "mean":
            encoder.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
            self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=1e-6)
        self.head = _head(encoder.embed_dim, len(classes), head_std)
        if distilled:
            self.dist_token = nn.Parameter(torch.empty(1, 1, encoder.embed_dim))
            nn.init.trunc_normal_(self.dist_token, std=0.02)
            self.head_dist = _head(encoder.embed_dim, len(classes), head_std)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Scores before the softmax; of two heads the mean."""
        by_labels, by_teacher = self.both(images)
        return by_labels if by_teacher is None else (by_labels + by_teacher) / 2

    def both(self, images: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"] | None]:
        """Scores of the head that learns from labels, and of the one that learns from a teacher, where there is one."""
        patches = self.encoder.embed(images)
        N = patches.shape[1]
        if self.distilled:
            patches = torch.cat([patches, self.dist_token.to(patches.dtype).expand(len(patches), -1, -1)], dim=1)
        (x,) = self.encoder.hidden_states(patches, [-1], self.encoder.grid_of(images))  # [B, 1 + N (+ 1), D]
        norm, pooled = (self.fc_norm, x[:, 1 : 1 + N].mean(1)) if self.pool == "mean" else (self.encoder.norm, x[:, 0])
        return self.head(norm(pooled)), self.head_dist(norm(x[:, -1])) if self.distilled else None

    def export_encoder(self) -> VisionTransformer:
        """A copy of the encoder; with pool=mean its final norm is the one that the mean went through."""
        state = self.encoder.state_dict()
        if self.pool == "mean":
            state |= {f"norm.{name}": tensor for name, tensor in self.fc_norm.state_dict().items()}
        encoder = VisionTransformer(self.encoder.config)
        load_strictly(encoder, state, "the classifier's encoder")
        return encoder.eval()


def _head(embed_dim: int, classes: int, std: float) -> nn.Linear:
    head = nn.Linear(embed_dim, classes)
    nn.init.trunc_normal_(head.weight, std=std)
    nn.init.zeros_(head.bias)
    return head


def tuned_config(
    config: EncoderConfig, image_size: Any = None, drop_path: float = 0.0, rel_pos_per_block: bool = True
) -> EncoderConfig:
    """The architecture of an encoder to be fine-tuned, its positions as MAE's and BEiT's authors have them.

    ValueError where image_size, in pixels (None: as pretrained), is no multiple of the patch.
    """
    tuned = {"sincos": "learned"} | ({"relative": "relative_per_block"} if rel_pos_per_block else {})
    size, patch = config.image_size if image_size is None else image_size, config.patch_size
    fits = all(side % patch == 0 for side in (size if isinstance(size, list | tuple) else [size]))
    require(fits, "image_size", size, f"a multiple of {patch}, the encoder's patch")
    pos_embed = tuned.get(config.pos_embed, config.pos_embed)
    return replace(config, image_size=size, drop_path=drop_path, pos_embed=pos_embed)


def tunable(start: VisionTransformer, *changes: Any, **more: Any) -> VisionTransformer:
    """A copy of an encoder with the architecture that tuned_config makes of its own, and all of its weights."""
    encoder = VisionTransformer(tuned_config(start.config, *changes, **more))
    transfer(start, encoder, "the encoder to fine-tune")
    encoder.metadata = start.metadata
    return encoder


def start_of(config: FinetuneRun) -> tuple[VisionTransformer, EncoderConfig]:
    """(encoder a run starts from, architecture it is fine-tuned in); raises as load_encoder and tuned_config."""
    start = load_encoder(config.encoder)
    if config.init == "scratch":
        fresh = VisionTransformer(start.config)
        fresh.metadata, start = start.metadata, fresh
    cfg = config.finetune
    return start, tuned_config(start.config, config.image_size, cfg.drop_path, cfg.rel_pos_per_block)


def save_classifier(model: Classifier, folder: str | Path, **metadata: Any) -> Path:
    """Write model.safetensors and its encoder's two files; metadata: JSON values: mean, std, method, data, step.

    FloatingPointError, before anything is written: a weight is not finite.
    """
    require_finite(model.state_dict(), Path(folder) / MODEL)
    head = {"classes": model.classes, "pool": model.pool, "distilled": model.distilled}
    save_encoder(model.export_encoder(), folder, **metadata)
    known = {"encoder": asdict(model.encoder.config), "classifier": head, **metadata}
    return write_weights(Path(folder) / MODEL, model.state_dict(), known)


def load_classifier(source: str | Path) -> Classifier:
    """A classifier in eval mode of a fine-tuned run or its model.safetensors. FileNotFoundError; ValueError: no fit."""
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"model={source}: there is no such file or run")
    if path.is_dir():
        path = path / MODEL
        if not path.exists():
            line = f"model={source} has no {MODEL}: make one with `{typed('finetune')} encoder={source}`"
            raise FileNotFoundError(f"{line}, or with resume={source} where it is a fine-tuning that was stopped")
    if path.suffix != ".safetensors":
        raise ValueError(f"model={source} must be a fine-tuned run or its {MODEL}")
    with reading(path):
        state, metadata = read_weights(path)
        if "classifier" not in metadata:
            raise ValueError(f"{path} holds no classifier: make one with `{typed('finetune')} encoder={source}`")
        config, head = described(EncoderConfig(), metadata.get("encoder"), path), metadata["classifier"]
        classes = head["classes"]
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ValueError(f"{path}: classes must be a list of names")
        model = built(lambda cfg: Classifier(VisionTransformer(cfg), **head), config, state, path)
        model.metadata = known_metadata(metadata, config, path)
    return model.eval()
