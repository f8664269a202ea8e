"""Vector-quantized knowledge distillation: tokens from which a teacher's patch features are predicted (BEiT v2: Peng et
al., 2022, arXiv:2208.06366, section 2.1): a Vision Transformer makes a unit vector of each patch, its code; the nearest
of a codebook of unit vectors is its token. The codebook is a moving average (arXiv:1711.00937, appendix A.1).

Letters: B images, C channels, H W pixels, h x w patch grid, N = h * w patches, n = B * N patches of a batch, K vectors,
d code width, E width of the teacher.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ssl_vit.config.checks import given_as
from ssl_vit.config.schema import PatchGrid
from ssl_vit.config.tokenizer_schema import VQKDConfig, VQKDRun
from ssl_vit.models.blocks import init_linear
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder, statistics_of
from ssl_vit.optim.progress import is_logged
from ssl_vit.parallel.distributed import all_gather, from_first_rank, sum_over_ranks
from ssl_vit.run.launch import typed
from ssl_vit.tokenizers.base import Tokenizer, TokenizerTraining, vocabulary_use


def projection(width: int, outputs: int) -> nn.Sequential:
    """Linear, tanh, linear, as the authors' task layers."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))


def transformer(config: VQKDConfig, depth: int) -> VisionTransformer:
    """A Vision Transformer on the tokenizer's images with learned positions."""
    image = {field.name: getattr(config, field.name) for field in fields(PatchGrid)}
    return VisionTransformer(embed_dim=config.width, depth=depth, num_heads=config.heads, **image)


class VQKD(Tokenizer):
    """The nearest codebook vector of each patch's code."""

    kind = "vqkd"
    codebook: Tensor

    def __init__(self, config: VQKDConfig) -> None:
        super().__init__(config)
        self.encoder = transformer(config, config.depth)
        self.to_code = projection(config.width, config.code_dim)
        init_linear(self.to_code, "trunc_normal")
        self.register_buffer("codebook", F.normalize(torch.randn(config.vocab_size, config.code_dim), dim=1))

    def codes(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N d"]:
        """Unit vectors, one a patch, in float32, of images in [0, 1]."""
        tokens = self.encoder(images * 2 - 1)[:, 1:]
        with torch.autocast(images.device.type, enabled=False):
            return F.normalize(self.to_code(tokens.float()), dim=-1)

    def nearest(self, codes: Float[Tensor, "*n d"]) -> Int64[Tensor, "*n"]:
        """The token of each code."""
        return (codes @ self.codebook.T).argmax(-1)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        with torch.autocast(images.device.type, enabled=False):
            return self.nearest(self.codes(images.float()))


def spherical_kmeans(codes: Float[Tensor, "n d"], centers: Float[Tensor, "K d"]) -> Float[Tensor, "K d"]:
    """Unit vectors that stand for unit vectors, by cosine, in ten rounds; one that stands for none stays as it was."""
    for _ in range(10):
        centers = moved(centers, *totals((codes @ centers.T).argmax(1), codes, len(centers)), momentum=0.0)
    return centers


def totals(
    tokens: Int64[Tensor, " n"], codes: Float[Tensor, "n d"], vocab_size: int
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K d"]]:
    """How many codes each token stands for, and their sum."""
    counts = codes.new_zeros(vocab_size).index_add_(0, tokens, codes.new_ones(len(tokens)))
    return counts, codes.new_zeros(vocab_size, codes.shape[1]).index_add_(0, tokens, codes)


def moved(
    codebook: Float[Tensor, "K d"], counts: Float[Tensor, " K"], sums: Float[Tensor, "K d"], momentum: float
) -> Float[Tensor, "K d"]:
    """The codebook a step nearer to the directions of its codes."""
    target = torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), codebook)
    return F.normalize(torch.lerp(target, codebook, momentum), dim=1)


class VQKDTraining(TokenizerTraining):
    """One minus the cosine between predicted and true features, and the commitment of codes to their vectors."""

    Config = VQKDRun
    config: VQKDConfig
    normalization: Tensor
    started: Tensor
    fraction: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cfg = self.config
        if not cfg.teacher:
            line = "tokenizer.teacher= is missing: the encoder whose features are predicted; make one with"
            raise ValueError(f"{line} `{typed('pretrain')} method=dino` and give tokenizer.teacher=RUN")
        with given_as("tokenizer.teacher", cfg.teacher):
            self.teacher = load_encoder(cfg.teacher).requires_grad_(False)
        if self.teacher.config.channels != cfg.channels:
            line = f"tokenizer.teacher={cfg.teacher} reads {self.teacher.config.channels} channels"
            raise ValueError(f"{line}, tokenizer.channels={cfg.channels}")
        self.tokenizer = VQKD(cfg)
        self.decoder = transformer(cfg, cfg.decoder_depth)
        del self.decoder.patch_embed  # its patches are vectors
        self.from_code = nn.Linear(cfg.code_dim, cfg.width)
        self.to_features = projection(cfg.width, self.teacher.embed_dim)
        for layer in (self.from_code, self.to_features):
            init_linear(layer, "trunc_normal")
        self._started = False
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))  # whether the codebook fits the first batch
        # Of the patches, recently, that had each token.
        self.register_buffer("fraction", torch.full((cfg.vocab_size,), 1 / cfg.vocab_size))
        normalization = torch.tensor(statistics_of(self.teacher.metadata, f"tokenizer.teacher={cfg.teacher}"))
        self.register_buffer("normalization", normalization[..., None, None], persistent=False)
        self._codes: list[tuple[Tensor, Tensor]] = []  # of the batches since the last step, with their tokens

    def train(self, mode: bool = True) -> "VQKDTraining":
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def teacher_features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N E"]:
        """The teacher's features of each patch of images in [0, 1], in float32.

        It sees the images at the size that it was trained on; another grid's features are resized to ours.
        """
        mean, std = self.normalization
        seen = (images - mean) / std
        size, grid = self.teacher.config.height_width, self.config.grid
        if seen.shape[-2:] != size:
            seen = F.interpolate(seen, size, mode="bicubic", antialias=True)
        (features,) = self.teacher.feature_maps(seen)  # [B, E, h, w]
        if features.shape[-2:] != grid:
            features = F.interpolate(features.float(), grid, mode="bilinear")
        return features.float().flatten(2).transpose(1, 2)

    def losses(self, images: Float[Tensor, "B C H W"]) -> dict[str, Float[Tensor, ""]]:
        """{"distillation": 1 - cosine, "commitment": weighted squared distance of codes from their vectors}."""
        cfg, codes = self.config, self.tokenizer.codes(images)
        if self.training:
            self.start_codebook(codes.detach())
        tokens = self.tokenizer.nearest(codes.detach())
        vectors = self.tokenizer.codebook[tokens]
        embedded = self.from_code(codes + (vectors - codes).detach())  # straight through
        predicted = self.to_features(self.decoder.encode(self.decoder.add_pos_embed(embedded, *cfg.grid))[:, 1:])
        distillation = 1 - F.cosine_similarity(predicted.float(), self.teacher_features(images), dim=-1).mean()
        commitment = cfg.commitment * F.mse_loss(codes, vectors)
        if self.training:
            self._codes.append((codes.detach().flatten(0, 1), tokens.flatten()))
        if is_logged(self._trainer):
            self.extra_metrics = vocabulary_use(tokens, cfg.vocab_size)
        return {"distillation": distillation, "commitment": commitment}

    @torch.no_grad()
    def start_codebook(self, batch: Float[Tensor, "B N d"]) -> None:
        """Once, start the codebook by k-means on the first batch, that of all ranks."""
        if not (self._started or bool(self.started)):  # the first so that steps do not wait for the device's flag
            codes = all_gather(batch).flatten(0, 1)
            start = codes[self.random_index(len(codes))]
            self.tokenizer.codebook.copy_(from_first_rank(spherical_kmeans(codes, start)))
            self.started.fill_(True)
        self._started = True

    def random_index(self, count: int) -> Int64[Tensor, " K"]:
        """One of `count` patches for each token, without repetition where they are enough."""
        K, device = self.config.vocab_size, self.device
        return torch.rand(max(count, K), device=device, generator=self.generator(device)).argsort()[:K] % count

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the codebook; a vector that is hardly used any more becomes a code of the last batch."""
        cfg, tokenizer = self.config, self.tokenizer
        codes, tokens = (torch.cat(batches) for batches in zip(*self._codes, strict=True))
        self._codes = []
        counts, sums = (sum_over_ranks(total) for total in totals(tokens, codes, cfg.vocab_size))
        codebook = moved(tokenizer.codebook, counts, sums, cfg.codebook_momentum)
        self.fraction.lerp_(counts / counts.sum(), 1 - cfg.codebook_momentum)
        unused = self.fraction < cfg.revive_below / cfg.vocab_size
        fresh = from_first_rank(codes[self.random_index(len(codes))])
        tokenizer.codebook.copy_(torch.where(unused[:, None], fresh, codebook))
        self.fraction.masked_fill_(unused, 1 / cfg.vocab_size)

    def on_skipped_step(self) -> None:
        self._codes = []
