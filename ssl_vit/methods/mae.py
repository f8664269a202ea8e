"""Masked autoencoder: reconstruct hidden patches from a few visible ones (He et al., 2022, arXiv:2111.06377).

The encoder sees visible patches only; a light decoder sees all, with a mask token at the hidden ones. Attention ignores
order: the decoder has visible patches first and hidden ones last, each with its position, and nothing is shuffled back.

Letters: B images, C channels, H x W pixels, P patch side, h x w patch grid, N = h * w patches, n visible, M hidden,
D encoder width, E decoder width, S = 1 + n tokens, F = P * P * C pixel values of a patch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vit.config.pretrain_schema import MAEConfig, MAERun
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.methods.base import Method
from ssl_vit.methods.masking import num_keep, random_masking
from ssl_vit.models.blocks import Block, init_linear, run_blocks
from ssl_vit.models.pos_embed import resample, sincos_2d
from ssl_vit.models.stem import patchify, unpatchify
from ssl_vit.optim.progress import is_logged

Images = Float[Tensor, "B C H W"]
Index = Int[Tensor, "B M"]
Patches = Float[Tensor, "B M F"]


def target_pixels(images: Images, patch_size: int, index: Index) -> Patches:
    """Pixels of the chosen patches in float32, inside a patch row, column, channel (the authors' order)."""
    pixels = patchify(images, patch_size, index).float()
    return pixels.unflatten(2, (images.shape[1], -1)).transpose(2, 3).flatten(2)


def in_channels(pixels: Patches, patch_size: int) -> Patches:
    """The inverse order: inside a patch channel, row, column, as the encoder has them."""
    return pixels.unflatten(2, (patch_size**2, -1)).transpose(2, 3).flatten(2)


def patch_statistics(pixels: Patches) -> tuple[Float[Tensor, "B M 1"], Float[Tensor, "B M 1"]]:
    """Mean and sqrt(variance + 1e-6) of each patch, all channels jointly, unbiased (section 3)."""
    return pixels.mean(-1, keepdim=True), (pixels.var(-1, keepdim=True) + 1e-6).sqrt()


def reconstruction_loss(prediction: Patches, pixels: Patches, norm_pix: bool) -> Float[Tensor, ""]:
    """Mean squared error over the hidden patches, against their pixels or their normalized pixels; in float32."""
    if norm_pix:
        mean, std = patch_statistics(pixels)
        pixels = (pixels - mean) / std
    return F.mse_loss(prediction.float(), pixels)


def mean_patch_loss(pixels: Patches, norm_pix: bool) -> Float[Tensor, ""]:
    """The loss of predicting each hidden patch's own mean: its variance, 1 where it is normalized and not flat."""
    mean = torch.zeros_like(pixels) if norm_pix else pixels.mean(-1, keepdim=True).expand_as(pixels)
    return reconstruction_loss(mean, pixels, norm_pix)


class Decoder(nn.Module):
    """Narrow transformer from visible tokens to the pixels of hidden patches (section 3, 'MAE decoder')."""

    pos_embed: Tensor

    def __init__(self, encoder_width: int, grid: tuple[int, int], pixels: int, cfg: MAEConfig) -> None:
        super().__init__()
        E = cfg.decoder_embed_dim
        self.grid = grid
        self.embed = nn.Linear(encoder_width, E)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, E))
        self.register_buffer("pos_embed", F.pad(sincos_2d(*grid, E), (0, 0, 1, 0)))  # the class token's row is zeros
        self.blocks = nn.ModuleList(Block(E, cfg.decoder_num_heads) for _ in range(cfg.decoder_depth))
        self.norm = nn.LayerNorm(E, eps=1e-6)
        self.pred = nn.Linear(E, pixels)
        init_linear(self, "xavier")
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self, tokens: Float[Tensor, "B S D"], visible: Int[Tensor, "B n"], hidden: Index, grid: tuple[int, int]
    ) -> Patches:
        """Pixels of the hidden patches, in the order of their index, from tokens of the visible ones."""
        positions = resample(self.pos_embed[:, 1:], self.grid, grid)[0]  # [N, E]
        x = self.embed(tokens)
        class_token = x[:, :1] + self.pos_embed[:, :1]
        masked = (self.mask_token + positions[hidden]).to(x.dtype)
        x = torch.cat([class_token, x[:, 1:] + positions[visible], masked], dim=1)  # [B, 1 + N, E]
        (x,) = run_blocks(self.blocks, [x])
        return self.pred(self.norm(x[:, -hidden.shape[1] :]))


class MAE(Method):
    """Masked autoencoder; options: MAEConfig."""

    Config = MAERun
    config: MAEConfig
    baseline, learned = "the mean of each hidden patch", "reconstructs {gain:.0%} of the variance of hidden patches"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        pixels = self.encoder.patch_size**2 * self.encoder_config.channels
        self.decoder = Decoder(self.encoder.embed_dim, self.encoder.grid, pixels, self.config)

    def transform(self) -> RandomCrop:
        cfg = self.config
        return RandomCrop(self.encoder_config.height_width, cfg.crop_scale, cfg.crop_ratio, cfg.flip)

    def losses(self, images: Images, noise: Float[Tensor, "B N"] | None = None) -> dict[str, Float[Tensor, ""]]:
        """{"reconstruction": loss}. `noise` orders the patches (lowest stay visible); by default it is random."""
        prediction, hidden_index = self.reconstruct(images, noise)
        pixels = target_pixels(images, self.encoder.patch_size, hidden_index)
        if is_logged(self._trainer):
            self.extra_metrics = {"baseline": mean_patch_loss(pixels, self.config.norm_pix)}
        return {"reconstruction": reconstruction_loss(prediction, pixels, self.config.norm_pix)}

    def reconstruct(self, images: Images, noise: Float[Tensor, "B N"] | None = None) -> tuple[Patches, Index]:
        """Predictions for the hidden patches, and which they are."""
        encoder, (h, w) = self.encoder, self.encoder.grid_of(images)
        if noise is None:
            noise = torch.rand(len(images), h * w, device=images.device, generator=self.generator(images.device))
        visible_index, hidden_index = random_masking(noise, num_keep(h * w, self.config.mask_ratio))
        patches = encoder.add_pos_embed(encoder.patchify(images, visible_index), h, w, visible_index)
        return self.decoder(encoder.encode(patches), visible_index, hidden_index, (h, w)), hidden_index

    @torch.no_grad()
    def visualize(self, images: Images, pixels: Images) -> dict[str, Images]:
        """The visible patches; with the hidden ones reconstructed, brightness and contrast from the true patch; all."""
        P, (h, w) = self.encoder.patch_size, self.encoder.grid_of(images)
        prediction, hidden_index = self.reconstruct(images)
        prediction = prediction.float()
        if self.config.norm_pix:
            mean, std = patch_statistics(target_pixels(images, P, hidden_index))
            prediction = prediction * std + mean
        patches, index = patchify(images, P).float(), hidden_index[..., None].expand_as(prediction)
        painted = {"masked": torch.zeros_like(prediction), "reconstruction": in_channels(prediction, P)}
        columns = {name: unpatchify(patches.scatter(1, index, new), P, h, w) for name, new in painted.items()}
        return columns | {"original": images}
