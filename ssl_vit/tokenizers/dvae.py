"""Discrete variational autoencoder: tokens that reconstruct the image (Ramesh et al., 2021, arXiv:2102.12092,
section 2.1 and appendix A; van den Oord et al., 2017, arXiv:1711.00937 for the codebook).

Convolutions down to one position for each patch, a token there by Gumbel-softmax (Jang et al., 2017, arXiv:1611.01144),
convolutions up again. Differs from DALL-E's in size, in its squared error, and in a stride that is the patch's.
Letters: B images, C channels, H W pixels, h x w patch grid, N = h * w patches, K tokens, D code width.
"""

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ssl_vit.config.tokenizer_schema import DVAEConfig, DVAERun
from ssl_vit.optim.progress import fraction_done, is_logged
from ssl_vit.optim.schedules import cosine, linear
from ssl_vit.parallel.distributed import mean_over_ranks
from ssl_vit.tokenizers.base import Tokenizer, TokenizerTraining, vocabulary_use


def strides_of(patch_size: int) -> list[int]:
    """Factors by which the resolution falls, from the pixels down: 16 -> 2 2 2 2, 14 -> 2 7."""
    strides, rest = [], patch_size
    for factor in range(2, patch_size + 1):
        while rest % factor == 0:
            strides.append(factor)
            rest //= factor
    return strides


class Residual(nn.Module):
    """x + two convolutions, with a ReLU before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class DVAE(Tokenizer):
    """The likeliest token of each patch."""

    kind = "dvae"
    decodes = True

    def __init__(self, config: DVAEConfig) -> None:
        super().__init__(config)
        strides = strides_of(config.patch_size)
        widths = [max(16, config.width >> level) for level in range(len(strides), -1, -1)]  # from pixels to patches
        down: list[nn.Module] = [nn.Conv2d(config.channels, widths[0], 3, padding=1)]
        for stride, (narrow, wide) in zip(strides, pairwise(widths), strict=True):
            down += [Residual(narrow), nn.Conv2d(narrow, wide, stride, stride)]
        wide = widths[-1]
        down += [Residual(wide) for _ in range(config.residuals)]
        self.encoder = nn.Sequential(*down, nn.ReLU(), nn.Conv2d(wide, config.vocab_size, 1))
        self.codebook = nn.Parameter(torch.randn(config.vocab_size, config.code_dim))
        up: list[nn.Module] = [nn.Conv2d(config.code_dim, wide, 1)]
        up += [Residual(wide) for _ in range(config.residuals)]
        for stride, (narrow, wide) in reversed(list(zip(strides, pairwise(widths), strict=True))):
            up += [nn.ConvTranspose2d(wide, narrow, stride, stride), Residual(narrow)]
        self.decoder = nn.Sequential(*up, nn.ReLU(), nn.Conv2d(widths[0], config.channels, 3, padding=1))

    def scores(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K h w"]:
        """Unnormalized log-probabilities of the tokens at each patch, of images in [0, 1]."""
        return self.encoder(images * 2 - 1)

    def reconstruct(self, codes: Float[Tensor, "B D h w"]) -> Float[Tensor, "B C H W"]:
        """Images, around [0, 1], of codebook vectors or mixtures of them."""
        return (self.decoder(codes) + 1) / 2

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        with torch.autocast(images.device.type, enabled=False):
            return self.scores(images.float()).argmax(1).flatten(1)

    @torch.no_grad()
    def decode(self, tokens: Int64[Tensor, "B N"], grid: tuple[int, int] | None = None) -> Float[Tensor, "B C H W"]:
        codes = self.codebook[tokens].transpose(1, 2).unflatten(2, grid or self.grid)
        with torch.autocast(tokens.device.type, enabled=False):
            return self.reconstruct(codes).clamp(0, 1)


def divergence_from_uniform(scores: Float[Tensor, "B K h w"]) -> Float[Tensor, ""]:
    """Mean over patches of KL(tokens | uniform) = ln K - entropy, in nats; in float32."""
    logs = scores.float().log_softmax(1)
    return (logs.exp() * (logs + math.log(scores.shape[1]))).sum(1).mean()


def unevenness(scores: Float[Tensor, "B K h w"]) -> Float[Tensor, ""]:
    """KL(mean of the tokens' probabilities over all patches | uniform) in nats: ln K where only one token is used.

    Unlike the divergence of single patches it keeps tokens from dying out. Over the patches of all ranks, in float32.
    """
    fraction = mean_over_ranks(scores.float().softmax(1).mean((0, 2, 3)))
    return math.log(len(fraction)) - torch.special.entr(fraction).sum()


class DVAETraining(TokenizerTraining):
    """Squared error of the reconstruction, and how far tokens are from equally likely and equally often used."""

    Config = DVAERun
    config: DVAEConfig
    tokenizer: DVAE

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer = DVAE(self.config)

    def losses(
        self, images: Float[Tensor, "B C H W"], noise: Float[Tensor, "B K h w"] | None = None
    ) -> dict[str, Float[Tensor, ""]]:
        """{"reconstruction": mean squared error of pixels in [0, 1], "divergence", "unevenness": weighted, in nats}.

        noise: uniform in [0, 1), relaxes the choice of tokens; by default it is random.
        """
        cfg, fraction, tokenizer = self.config, fraction_done(self._trainer), self.tokenizer
        scores = tokenizer.scores(images)
        temperature = cosine(fraction, cfg.start_temperature, cfg.end_temperature)
        if noise is None:
            noise = torch.rand(scores.shape, device=images.device, generator=self.generator(images.device))
        gumbel = -(-noise.clamp_min(1e-20).log()).clamp_min(1e-20).log()
        tokens = ((scores.float() + gumbel) / temperature).softmax(1)  # [B, K, h, w]
        codes = torch.einsum("bkhw,kd->bdhw", tokens, tokenizer.codebook)
        error = F.mse_loss(tokenizer.reconstruct(codes).float(), images)
        weight = linear(fraction, cfg.kl_warmup, 0.0, cfg.kl)
        if is_logged(self._trainer):
            psnr = {"psnr": -10 * error.detach().log10()}  # in dB
            self.extra_metrics = psnr | vocabulary_use(scores.argmax(1), cfg.vocab_size) | {"temperature": temperature}
        return {
            "reconstruction": error,
            "divergence": weight * divergence_from_uniform(scores),
            "unevenness": cfg.usage * unevenness(scores),
        }

    def decays(self, name: str, parameter: Tensor) -> bool:
        return super().decays(name, parameter) and not name.endswith("codebook")

    @torch.no_grad()
    def visualize(self, images: Float[Tensor, "B C H W"], pixels: Float[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """The image beside its reconstruction from tokens."""
        return {"original": pixels, "reconstruction": self.tokenizer.decode(self.tokenizer(pixels))}
