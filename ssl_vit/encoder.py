"""The one Vision Transformer that every method trains (Dosovitskiy et al., 2021, arXiv:2010.11929).

Parameter names are timm's, so weights move between the two without a key map.

Letters: B images, C channels, H x W pixels, P patch side, h x w patch grid, N = h * w patches, n <= N patches that
reach the blocks, R registers, D width, S = 1 + n tokens (class token first), F = C * P * P pixel values of a patch,
T tokens of all sequences together.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_vit.config.schema import POOLS, EncoderConfig, one_of
from ssl_vit.positions import resample, sincos_2d

Layout = list[tuple[int, int]]
"""How sequences are packed into T tokens, one behind another: batches of B sequences of S tokens, (B, S) for each."""


def lengths(layout: Layout) -> list[int]:
    """Tokens of each batch."""
    return [B * S for B, S in layout]


def attend(
    q: Float[Tensor, "B heads S d"], k: Float[Tensor, "B heads S d"], v: Float[Tensor, "B heads S d"]
) -> Float[Tensor, "B heads S d"]:
    """softmax(q k^T / sqrt(d)) v.

    PyTorch's fused kernel, but for bf16 on CPUs: there plain batched products are 2 to 6 times faster forward and
    backward at 37 to 197 tokens.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


def pixels_per_patch(
    images: Float[Tensor, "B C H W"], patch_size: int, index: Int[Tensor, "B n"] | None = None
) -> Float[Tensor, "B _ F"]:
    """Cut images into flat patches, row-major over the grid; inside a patch channel, row, column.

    Args:
        index: which patches of each image, in which order; None means all. Only those are copied.
    """
    B, C, H, W = images.shape
    P, h, w = patch_size, H // patch_size, W // patch_size
    patches = images.view(B, C, h, P, w, P).permute(0, 2, 4, 1, 3, 5)  # [B, h, w, C, P, P]
    if index is not None:
        image = torch.arange(B, device=index.device)[:, None]
        return patches[image, index // w, index % w].flatten(2)
    return patches.reshape(B, h * w, C * P * P)


class PatchEmbed(nn.Module):
    """Pixels of a patch to a token, by one linear map; kept as a convolution's weight, as timm names and shapes it."""

    def __init__(self, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixels: Float[Tensor, "B n F"]) -> Float[Tensor, "B n D"]:
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split_heads(self, qkv: Float[Tensor, "B S _"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, heads, S, D / heads]."""
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Float[Tensor, "T D"], layout: Layout) -> Float[Tensor, "T D"]:
        mixed = []
        for part, (_, S) in zip(self.qkv(x).split(lengths(layout)), layout, strict=True):
            q, k, v = self.split_heads(part.unflatten(0, (-1, S)))
            mixed.append(attend(q, k, v).transpose(1, 2).flatten(2).flatten(0, 1))
        return self.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "*b D"]) -> Float[Tensor, "*b D"]:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned gain per channel (CaiT, arXiv:2103.17239, equation 2)."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x: Float[Tensor, "*b D"]) -> Float[Tensor, "*b D"]:
        return x * self.gamma


class DropPath(nn.Module):
    """Zero a residual branch for whole sequences (stochastic depth, arXiv:1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "T D"], layout: Layout) -> Float[Tensor, "T D"]:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        gains = [x.new_empty(B, 1).bernoulli_(keep).div_(keep).expand(B, S).flatten() for B, S in layout]
        return x * torch.cat(gains)[:, None]


class Block(nn.Module):
    """Pre-norm transformer block, on sequences packed one behind another."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "T D"], layout: Layout) -> Float[Tensor, "T D"]:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), layout)), layout)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), layout)


def run_blocks(
    blocks: Iterable[nn.Module], sequences: Sequence[Float[Tensor, "_ _ D"]], checkpointed: bool = False
) -> list[Float[Tensor, "_ _ D"]]:
    """Batches of sequences, each [B, S, D] with its own B and S, through blocks.

    Every linear map runs once over all tokens; only attention is split by batch. Nothing is padded.

    Args:
        checkpointed: recompute each block in the backward pass.
    """
    layout = [(len(tokens), tokens.shape[1]) for tokens in sequences]
    flat = [tokens.flatten(0, 1) for tokens in sequences]
    x = flat[0] if len(flat) == 1 else torch.cat(flat)
    for block in blocks:
        x = checkpoint(block, x, layout, use_reentrant=False) if checkpointed else block(x, layout)
    return [part.unflatten(0, shape) for part, shape in zip(x.split(lengths(layout)), layout, strict=True)]


def compile_blocks(network: nn.Module) -> None:
    """torch.compile every transformer block in a network: encoder, decoder, teacher."""
    for module in network.modules():
        if isinstance(module, Block):
            module.compile()


def init_linear(module: nn.Module, scheme: str) -> None:
    """Initialise every linear map under `module` by `scheme`, biases 0.

    xavier: uniform, a fused qkv counted as one matrix (MAE). trunc_normal: std .02, cut at +-2 (DINO, timm).
    """
    draw: Callable[[Tensor], Any] = nn.init.xavier_uniform_ if scheme == "xavier" else _trunc_normal
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _trunc_normal(weight: Tensor) -> Tensor:
    return nn.init.trunc_normal_(weight, std=0.02)


class VisionTransformer(nn.Module):
    """Images to tokens in three steps that a method may call apart: patchify, locate, encode.

    MAE patchifies and locates the visible patches only; BEiT swaps patches for its mask token between patchify and
    locate; DINO and every evaluation call all three through forward. The encoder knows no method and no mask.

    Args:
        config: the whole architecture; or give its fields as keywords, `VisionTransformer(size="small")`.
    """

    pos_embed: Tensor
    """Positions [1, 1 + N, D], class token first; with registers [1, N, D]. A parameter if learned, else a buffer."""

    def __init__(self, config: EncoderConfig | None = None, **options: Any) -> None:
        super().__init__()
        if config is not None and options:
            raise ValueError(f"VisionTransformer takes a config or keywords, not both; got {sorted(options)} too")
        self.config = config = config or EncoderConfig(**options)
        self.facts: dict[str, Any] = {}  # what a saved encoder knows of its training: mean, std, method, data
        self.width, self.depth, self.heads = config.shape
        self.patch_size, self.grid = config.patch_size, config.grid
        self.patch_embed = PatchEmbed(config.channels, config.patch_size, self.width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.width))
        if config.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.registers, self.width))
        self._make_positions()
        rates = [config.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]
        self.blocks = nn.ModuleList(
            Block(self.width, self.heads, config.mlp_ratio, config.layer_scale, rate) for rate in rates
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        if not self.cls_token.is_meta:  # shapes alone: nothing to draw, and drawing would import torch._dynamo
            self._init_weights()

    def _make_positions(self) -> None:
        # As in timm's models: without registers row 0 is the class token's, with them the table is the patches' alone.
        h, w = self.grid
        self.class_rows = 0 if self.config.registers else 1
        if self.config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.class_rows + h * w, self.width))
        else:  # a buffer: a frozen parameter would stop plain DDP
            table = F.pad(sincos_2d(h, w, self.width), (0, 0, self.class_rows, 0))
            self.register_buffer("pos_embed", table)

    def _init_weights(self) -> None:
        init_linear(self.blocks, self.config.init)
        if self.config.init == "xavier":
            nn.init.xavier_uniform_(self.patch_embed.proj.weight.data.flatten(1))  # as a linear map of a flat patch
        for token in (self.cls_token, getattr(self, "reg_token", None)):
            if token is not None:
                nn.init.normal_(token, std=0.02)
        if self.config.positions == "learned":
            _trunc_normal(self.pos_embed)

    def grid_of(self, images: Float[Tensor, "B C H W"]) -> tuple[int, int]:
        """Patch grid (h, w) of images; ValueError unless channels and sides fit."""
        C, H, W = images.shape[-3:]
        if self.config.channels != C:
            raise ValueError(f"images have {C} channels, but encoder.channels={self.config.channels}")
        if H % self.patch_size or W % self.patch_size:
            raise ValueError(
                f"images are {H} x {W} pixels; both sides must be multiples of encoder.patch_size={self.patch_size}"
            )
        return H // self.patch_size, W // self.patch_size

    def patchify(
        self, images: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"] | None = None
    ) -> Float[Tensor, "B _ D"]:
        """Project pixels to patch tokens, row-major; with an index only those patches, in that order."""
        self.grid_of(images)
        return self.patch_embed(pixels_per_patch(images, self.patch_size, index))

    def locate(
        self, patches: Float[Tensor, "B n D"], h: int, w: int, index: Int[Tensor, "B n"] | None = None
    ) -> Float[Tensor, "B n D"]:
        """Add the positions of an h x w grid; `index` says which patches of it these are (None: all)."""
        table = resample(self.pos_embed[:, self.class_rows :], self.grid, (h, w))
        return patches + (table if index is None else table[0][index])

    def encode(self, patches: Float[Tensor, "B n D"]) -> Float[Tensor, "B S D"]:
        """Located patches, any subset in any order, to normed tokens: class token first, then the patches."""
        return self.encode_many([patches])[0]

    def encode_many(self, groups: Sequence[Float[Tensor, "_ _ D"]]) -> list[Float[Tensor, "_ _ D"]]:
        """As encode, for batches that differ in length and number; linear maps run once over all of them."""
        sequences = self._run(self.blocks, [self.with_class_token(patches) for patches in groups])
        return [self.norm(self.without_registers(x)) for x in sequences]

    def with_class_token(self, patches: Float[Tensor, "B n D"]) -> Float[Tensor, "B _ D"]:
        """Class token, registers, patches: what the first block sees."""
        class_token = self.cls_token + self.pos_embed[:, :1] if self.class_rows else self.cls_token
        tokens = [class_token.expand(len(patches), -1, -1)]
        if self.config.registers:
            tokens.append(self.reg_token.expand(len(patches), -1, -1))
        return torch.cat([*tokens, patches], dim=1)

    def embed(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B _ D"]:
        """Whole images as the first block sees them."""
        return self.with_class_token(self.locate(self.patchify(images), *self.grid_of(images)))

    def without_registers(self, x: Float[Tensor, "B _ D"]) -> Float[Tensor, "B S D"]:
        R = self.config.registers
        return torch.cat([x[:, :1], x[:, 1 + R :]], dim=1) if R else x

    def _run(self, blocks: Iterable[nn.Module], sequences: list[Tensor]) -> list[Tensor]:
        checkpointed = self.config.checkpoint_blocks and self.training and torch.is_grad_enabled()
        return run_blocks(blocks, sequences, checkpointed)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B S D"]:
        """Tokens after the final norm [B, 1 + N, D], class token first; registers are left out."""
        return self.encode(self.locate(self.patchify(images), *self.grid_of(images)))

    def layer_tokens(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "B S D"]]:
        """Tokens after the chosen blocks, each through the final norm; negative layers count from the last."""
        wanted = [range(self.depth)[layer] for layer in layers]
        x = self.embed(images)
        outputs = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            (x,) = self._run([block], [x])
            if i in wanted:
                outputs[i] = self.norm(self.without_registers(x))
        return [outputs[layer] for layer in wanted]

    def features(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int] = (-1,), pool: str = "cls"
    ) -> Float[Tensor, "B _"]:
        """One vector per picture: [B, D] for each layer and pooling, side by side.

        Args:
            layers: blocks to read, such as [-1] or [-4, -3, -2, -1].
            pool: "cls" (class token), "mean" (of the patches), "both" (class token, then mean).
        """
        one_of("pool", pool, POOLS)
        parts = []
        for tokens in self.layer_tokens(images, layers):
            parts += [tokens[:, 0]] if pool != "mean" else []
            parts += [tokens[:, 1:].mean(1)] if pool != "cls" else []
        return torch.cat(parts, dim=1)

    def feature_maps(
        self, images: Float[Tensor, "B C H W"], layers: Sequence[int] = (-1,)
    ) -> list[Float[Tensor, "B D h w"]]:
        """Patch features as maps for dense tasks, one for each layer."""
        grid = self.grid_of(images)
        return [tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in self.layer_tokens(images, layers)]

    def attention_maps(self, images: Float[Tensor, "B C H W"], layer: int = -1) -> Float[Tensor, "B heads N"]:
        """How much the class token attends to each patch in one block; the rest went to itself and the registers."""
        wanted = range(self.depth)[layer]
        (x,) = self._run(self.blocks[:wanted], [self.embed(images)])
        block = self.blocks[wanted]
        assert isinstance(block, Block)
        q, k, _ = block.attn.split_heads(block.attn.qkv(block.norm1(x)))
        weights = (q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)  # [B, heads, 1, S + R]
        return weights[:, :, 0, 1 + self.config.registers :]

    def extra_repr(self) -> str:
        changed = {k: v for k, v in asdict(self.config).items() if v != getattr(EncoderConfig(), k)}
        return ", ".join(f"{key}={value}" for key, value in changed.items())
