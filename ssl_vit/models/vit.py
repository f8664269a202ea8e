"""The one Vision Transformer that every method trains (Dosovitskiy et al., 2021, arXiv:2010.11929).

Parameter names are timm's, so weights move between the two without a key map. Letters: B images, C channels, H W
pixels, h x w patch grid, N = h * w patches, n <= N patches that reach the blocks, R registers, D width, S = 1 + n
tokens (class token first).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ssl_vit.config.checks import one_of
from ssl_vit.config.schema import POOLS, EncoderConfig
from ssl_vit.models.blocks import SCHEMES, Biases, Block, init_linear, run_blocks, shrink_residuals
from ssl_vit.models.pos_embed import Grid, RelativePositionBias, relations, resample, sincos_2d
from ssl_vit.models.stem import PatchEmbed, patchify

Images = Float[Tensor, "B C H W"]


def pooled(layers: Sequence[Float[Tensor, "B S D"]], pool: str, prefix: int = 1) -> Float[Tensor, "B _"]:
    """One vector per image: of each layer the class token, and or the mean of the tokens after the prefix."""
    vectors = []
    for tokens in layers:
        vectors += [tokens[:, 0]] if pool != "mean" else []
        vectors += [tokens[:, prefix:].mean(1)] if pool != "cls" else []
    return torch.cat(vectors, dim=1)


class VisionTransformer(nn.Module):
    """Images to tokens in three steps that a method may call apart: patchify, add_pos_embed, encode.

    MAE takes the first two for the visible patches only; BEiT swaps patches for its mask token between them; DINO and
    every evaluation call all three. The encoder knows no method and no mask.

    config: the whole architecture; or give its fields as keywords, `VisionTransformer(size="small")`.
    """

    pos_embed: Tensor
    """[1, 1 + N, D], class token first, with registers [1, N, D]; a parameter if learned, a buffer if fixed; absent for
    relative positions, whose tables are in rel_pos_bias or in each block's attn."""

    def __init__(self, config: EncoderConfig | None = None, **options: Any) -> None:
        super().__init__()
        if config is not None and options:
            raise ValueError(f"VisionTransformer takes a config or keywords, not both; got {sorted(options)} too")
        self.config = config = config or EncoderConfig(**options)
        self.metadata: dict[str, Any] = {}  # of its training: mean, std, method, data
        self.embed_dim, self.depth, self.num_heads = config.shape
        self.patch_size, self.grid = config.patch_size, config.grid
        self.patch_embed = PatchEmbed(config.channels, config.patch_size, self.embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        if config.num_registers:
            self.reg_token = nn.Parameter(torch.zeros(1, config.num_registers, self.embed_dim))
        # As in timm's models: with registers the table is the patches' alone.
        self.class_rows = 0 if config.num_registers or config.relative else 1
        kind, (h, w) = config.pos_embed, self.grid
        if config.relative:
            self.rel_pos_bias = RelativePositionBias(self.grid, self.num_heads if kind == "relative" else 0)
        elif kind == "learned":
            self.pos_embed = nn.Parameter(torch.zeros(1, self.class_rows + h * w, self.embed_dim))
        else:  # a buffer: a frozen parameter would stop plain DDP
            self.register_buffer("pos_embed", F.pad(sincos_2d(h, w, self.embed_dim), (0, 0, self.class_rows, 0)))
        rates = [config.drop_path * i / max(1, self.depth - 1) for i in range(self.depth)]
        rows = relations(self.grid) if config.pos_embed == "relative_per_block" else 0
        self.blocks = nn.ModuleList(
            Block(self.embed_dim, self.num_heads, config.mlp_ratio, config.init_values, rate, rows) for rate in rates
        )
        self.norm = nn.LayerNorm(self.embed_dim, eps=1e-6)
        if not self.cls_token.is_meta:  # shapes alone: no values, and random ones would import torch._dynamo
            self._init_weights()

    def _init_weights(self) -> None:
        scheme = self.config.init
        init_linear(self.blocks, scheme)
        if scheme == "beit":
            shrink_residuals(self.blocks)
            nn.init.zeros_(self.patch_embed.proj.bias)  # pyright: ignore[reportArgumentType]
        if scheme in ("xavier", "beit"):
            SCHEMES[scheme](self.patch_embed.proj.weight.data.flatten(1))  # as a linear map of a flat patch
        for token in [self.cls_token, *([self.reg_token] if self.config.num_registers else [])]:
            SCHEMES["beit"](token) if scheme == "beit" else nn.init.normal_(token, std=0.02)
        if self.config.pos_embed == "learned":
            SCHEMES["beit" if scheme == "beit" else "trunc_normal"](self.pos_embed)

    def grid_of(self, images: Images) -> Grid:
        """Patch grid (h, w) of images; ValueError unless channels and sides fit."""
        C, H, W = images.shape[-3:]
        if self.config.channels != C:
            raise ValueError(f"images have {C} channels, but encoder.channels={self.config.channels}")
        if H % self.patch_size or W % self.patch_size:
            line = f"images are {H} x {W} pixels"
            raise ValueError(f"{line}; both sides must be multiples of encoder.patch_size={self.patch_size}")
        return H // self.patch_size, W // self.patch_size

    def patchify(self, images: Images, index: Int[Tensor, "B n"] | None = None) -> Float[Tensor, "B _ D"]:
        """Project pixels to patch tokens, row-major; with an index only those patches, in that order."""
        self.grid_of(images)
        return self.patch_embed(patchify(images, self.patch_size, index))

    def add_pos_embed(
        self, patches: Float[Tensor, "B n D"], h: int, w: int, index: Int[Tensor, "B n"] | None = None
    ) -> Float[Tensor, "B n D"]:
        """Add the positions of an h x w grid, of its patches at `index` (None: all); relative ones are encode's."""
        if self.config.relative:
            return patches
        table = resample(self.pos_embed[:, self.class_rows :], self.grid, (h, w), self.config.resample)
        return patches + (table if index is None else table[0][index])

    def encode(self, patches: Float[Tensor, "B n D"], grid: Grid | None = None) -> Float[Tensor, "B S D"]:
        """Patches with positions, any subset in any order, to normed tokens: class token first, then the patches.

        Relative positions need all patches of a grid in their order, by default that of the training image; ValueError
        where they are not as many.
        """
        return self.encode_many([patches], None if grid is None else [grid])[0]

    def encode_many(
        self, groups: Sequence[Float[Tensor, "_ _ D"]], grids: Sequence[Grid] | None = None
    ) -> list[Float[Tensor, "_ _ D"]]:
        """As encode, for batches that differ in length and number; linear maps run once over all of them."""
        (sequences,) = self._run(groups, grids, [self.depth])
        return [self.norm(self.without_registers(x)) for x in sequences]

    def hidden_states(
        self, patches: Float[Tensor, "B n D"], layers: Sequence[int], grid: Grid | None = None
    ) -> list[Float[Tensor, "B S D"]]:
        """As encode, but the tokens after each of the chosen blocks, before the final norm; negative: from the last."""
        ends = [range(self.depth)[layer] + 1 for layer in layers]
        return [self.without_registers(x) for (x,) in self._run([patches], grid and [grid], ends)]

    def _run(self, groups: Sequence[Tensor], grids: Sequence[Grid] | None, ends: Sequence[int]) -> list[list[Tensor]]:
        """For each of `ends` the tokens of all groups, registers too, after that many blocks."""
        grids = grids or [self.grid] * len(groups)
        for patches, (h, w) in zip(groups, grids, strict=True):
            if self.config.relative and patches.shape[1] != h * w:
                raise ValueError(
                    f"encoder.pos_embed={self.config.pos_embed} needs all {h} x {w} patches of a grid, not "
                    f"{patches.shape[1]}: give encode(patches, grid=(h, w)), or choose learned or sincos positions"
                )
        checkpointed = self.config.grad_checkpointing and self.training and torch.is_grad_enabled()
        biases, outputs, done = self.biases(grids), dict[int, list[Tensor]](), 0
        sequences = [self.with_class_token(patches) for patches in groups]
        for end in sorted(set(ends)):
            sequences = run_blocks(self.blocks[done:end], sequences, biases and biases[done:end], checkpointed)
            outputs[end], done = sequences, end
        return [outputs[end] for end in ends]

    def biases(self, grids: Sequence[Grid]) -> Sequence[Biases] | None:
        """Relative positions of batches of whole grids, for each block; None with other positions."""
        if not self.config.relative:
            return None
        way = self.config.resample
        if self.config.pos_embed == "relative":  # computed once for all blocks
            shared = {grid: self.rel_pos_bias(grid, None, way) for grid in dict.fromkeys(grids)}
            return [[shared[grid] for grid in grids]] * self.depth
        tables = [block.attn.relative_position_bias_table for block in self.blocks]  # pyright: ignore
        return [[self.rel_pos_bias(grid, table, way) for grid in grids] for table in tables]

    def with_class_token(self, patches: Float[Tensor, "B n D"]) -> Float[Tensor, "B _ D"]:
        """Class token, registers, patches: what the first block sees."""
        class_token = self.cls_token + self.pos_embed[:, :1] if self.class_rows else self.cls_token
        tokens = [class_token, self.reg_token] if self.config.num_registers else [class_token]
        return torch.cat([*(token.expand(len(patches), -1, -1) for token in tokens), patches], dim=1)

    def embed(self, images: Images) -> Float[Tensor, "B N D"]:
        """All patches of whole images with their positions: what encode takes."""
        return self.add_pos_embed(self.patchify(images), *self.grid_of(images))

    def without_registers(self, x: Float[Tensor, "B _ D"]) -> Float[Tensor, "B S D"]:
        R = self.config.num_registers
        return torch.cat([x[:, :1], x[:, 1 + R :]], dim=1) if R else x

    def forward(self, images: Images) -> Float[Tensor, "B S D"]:
        """Tokens after the final norm [B, 1 + N, D], class token first, without registers."""
        return self.encode(self.embed(images), self.grid_of(images))

    def layer_tokens(self, images: Images, layers: Sequence[int] = (-1,)) -> list[Float[Tensor, "B S D"]]:
        """Tokens after the chosen blocks, each through the final norm; negative layers count from the last."""
        return [self.norm(x) for x in self.hidden_states(self.embed(images), layers, self.grid_of(images))]

    @property
    def transform(self) -> Any:
        """A Preprocess of this encoder, for a Dataset: image -> normalized [C, H, W]."""
        from ssl_vit.models.preprocess import Preprocess

        return Preprocess(self)

    def preprocess(self, image: Any) -> Float[Tensor, "C H W"]:
        """A path, a PIL image of any mode or an array, as this encoder's evaluation takes it; see Preprocess."""
        return self.transform(image)

    def features(self, images: Images, layers: Sequence[int] = (-1,), pool: str = "cls") -> Float[Tensor, "B _"]:
        """One vector per image, by layer: class token ("cls"), mean of the patches ("mean"), or "both" in turn."""
        one_of("pool", pool, POOLS)
        return pooled(self.layer_tokens(images, layers), pool)

    def feature_maps(self, images: Images, layers: Sequence[int] = (-1,)) -> list[Float[Tensor, "B D h w"]]:
        """Patch features as maps for dense tasks, one for each layer."""
        grid = self.grid_of(images)
        return [tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for tokens in self.layer_tokens(images, layers)]

    def attention_maps(self, images: Images, layer: int = -1) -> Float[Tensor, "B heads N"]:
        """How much the class token attends to each patch in one block; the rest went to itself and the registers."""
        grid, wanted = self.grid_of(images), range(self.depth)[layer]
        ((x,),) = self._run([self.embed(images)], [grid], [wanted])
        block, biases = self.blocks[wanted], self.biases([grid])
        assert isinstance(block, Block)
        q, k, _ = block.attn.split_heads(block.attn.qkv(block.norm1(x)))
        scores = q[:, :, :1] @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # [B, heads, 1, S + R]
        if biases:
            scores = scores + biases[wanted][0][:, :1]  # pyright: ignore[reportOptionalSubscript]
        return scores.softmax(-1)[:, :, 0, 1 + self.config.num_registers :]
