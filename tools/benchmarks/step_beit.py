"""One step of BEiT (Bao et al., 2022, arXiv:2106.08254): ours, timm's parts, transformers' model.

All get the same images, masks and tokens, 8,192 of them, so neither masking nor tokenizer is timed; all have one table
of relative positions, LayerScale, drop path, clipping and AdamW.

Letters: B images, N patches, M hidden patches of the batch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.baselines import Step, StepSetting, require_peers, stepping
from ssl_vit.config.schema import SIZES
from ssl_vit.methods.beit import BEiT
from ssl_vit.methods.masking import block_masks, scaled_block

IMAGE, PATCH, VOCABULARY = 224, 16, 8192
MASK_RATIO, LAYER_SCALE, DROP_PATH, CLIP = 0.383, 0.1, 0.1, 3.0


class Masked(NamedTuple):
    """A batch, on the device but for `host_mask`."""

    images: Float[Tensor, "B 3 H W"]
    pixels: Float[Tensor, "B 3 h w"]
    """Tokens in the place of an image for ours, whose tokenizer reads them off."""
    host_mask: Bool[Tensor, "B N"]
    mask: Bool[Tensor, "B N"]
    tokens: Int64[Tensor, " M"]
    """Of the hidden patches."""


class GivenTokens(nn.Module):
    """A tokenizer for nothing: the image holds the tokens."""

    vocab_size = VOCABULARY

    def forward(self, pixels: Float[Tensor, "B 3 h w"]) -> Int64[Tensor, "B N"]:
        return pixels[:, 0].flatten(1).long()


def batch_of(batch_size: int, setting: StepSetting) -> Masked:
    """Noise for images, BEiT's blocks for masks, random tokens."""
    side = IMAGE // PATCH
    budget = max(1, int(side * side * MASK_RATIO))
    mask = block_masks(batch_size, (side, side), budget, smallest=scaled_block((side, side)))
    tokens = torch.randint(VOCABULARY, (batch_size, 1, side, side)).expand(-1, 3, -1, -1).float()
    hidden = GivenTokens()(tokens)[mask]
    pixels, on_device = tokens.to(setting.device), mask.to(setting.device)
    images = setting.noise(batch_size, 3, IMAGE, IMAGE)
    return Masked(images, pixels, mask, on_device, hidden.to(setting.device))


def ours(setting: StepSetting) -> Step:
    """The step as BEiT does it in a trainer, but for the figures that every tenth one leaves for the log."""
    encoder = {"size": setting.size, "image_size": IMAGE, "patch_size": PATCH}
    method = BEiT(encoder | {"drop_path": DROP_PATH, "init_values": LAYER_SCALE}, tokenizer=GivenTokens())
    method = method.to(setting.device).train()
    method.measure = lambda logits, tokens: None
    return baselines.ours(
        setting,
        method,
        lambda batch: method.losses([batch.images, batch.pixels], batch.host_mask),
        lambda: nn.utils.clip_grad_norm_(method.parameters(), CLIP),
    )


class TimmBEiT(nn.Module):
    """timm's BEiT with a mask token, and a head on the hidden patches alone."""

    def __init__(self, size: str) -> None:
        super().__init__()
        from timm.models.beit import Beit

        width, depth, heads = SIZES[size]
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.head = nn.Linear(width, VOCABULARY)
        self.body = Beit(
            IMAGE,
            PATCH,
            num_classes=0,
            global_pool="",
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            drop_path_rate=DROP_PATH,
            init_values=LAYER_SCALE,
            use_abs_pos_emb=False,
            use_shared_rel_pos_bias=True,
        )

    def forward(self, batch: Masked) -> Float[Tensor, ""]:
        """The loss."""
        body = self.body
        patches = body.patch_embed(batch.images)
        patches = torch.where(batch.mask[..., None], self.mask_token.to(patches.dtype), patches)
        x = torch.cat([body.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        bias = body.rel_pos_bias()  # pyright: ignore
        for block in body.blocks:
            x = block(x, shared_rel_pos_bias=bias)
        scores = self.head(body.norm(x)[:, 1:][batch.mask])
        return F.cross_entropy(scores.float(), batch.tokens)


def timm_parts(setting: StepSetting) -> Step:
    """The step of TimmBEiT."""
    require_peers("timm")
    model = TimmBEiT(setting.size).to(setting.device).train()
    setting.compile(model.body.blocks)
    return stepping(setting, model, model.parameters(), lambda: nn.utils.clip_grad_norm_(model.parameters(), CLIP))


def transformers_model(setting: StepSetting) -> Step:
    """The step of transformers' BeitForMaskedImageModeling, whose head scores every patch."""
    require_peers("transformers")
    from transformers import BeitConfig, BeitForMaskedImageModeling

    config = BeitConfig(
        **baselines.transformers_shape(setting.size, IMAGE, PATCH),
        vocab_size=VOCABULARY,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=LAYER_SCALE,
        drop_path_rate=DROP_PATH,
        layer_norm_eps=1e-6,
    )
    model = BeitForMaskedImageModeling(config).to(setting.device).train()  # pyright: ignore
    setting.compile(model.beit.layers)

    def loss(batch: Masked) -> Tensor:
        return model(batch.images, bool_masked_pos=batch.mask, labels=batch.tokens).loss

    return stepping(setting, loss, model.parameters(), lambda: nn.utils.clip_grad_norm_(model.parameters(), CLIP))


BASELINES = {"ours": ours, "timm": timm_parts, "transformers": transformers_model}
