"""Transformer blocks on packed sequences: attention, MLP, their residual branches (arXiv:2010.11929, section 3.1).

Parameter names are timm's. Letters: B sequences of S tokens in a batch, T tokens of all sequences together, D width,
d channels of a head; R tokens that are attended to, where they are not the sequence's own.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Layout = list[tuple[int, int]]  # of sequences packed one behind another: (B, S) of each batch of them
Biases = Sequence[Tensor | None]  # what is added to the attention scores of each batch, [heads, S, S] of its S


def attend(
    q: Float[Tensor, "B heads S d"],
    k: Float[Tensor, "B heads R d"],
    v: Float[Tensor, "B heads R d"],
    bias: Float[Tensor, "heads S R"] | None = None,
) -> Float[Tensor, "B heads S d"]:
    """softmax(q k^T / sqrt(d) + bias) v: by PyTorch's fused kernel, or by products where they are faster; often R = S.

    They are on CPUs, for a bias (at 197 tokens in float32 1.2 times, in bf16 2.6) and in bf16 with a backward pass (2.1
    to 5 times at 37 to 197 tokens; the fused kernel's forward pass alone is 1.2 to 1.6 times as fast). One thread.
    """
    if bias is not None:
        bias = bias.to(q.dtype)
    learns = torch.is_grad_enabled() and q.requires_grad
    if q.device.type == "cpu" and (bias is not None or (q.dtype == torch.bfloat16 and learns)):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (scores if bias is None else scores + bias).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, bias)


class Attention(nn.Module):
    """Multi-head self-attention; relations: rows of its own table of relative positions, zero at first; 0: none."""

    def __init__(self, width: int, heads: int, relations: int = 0) -> None:
        super().__init__()
        self.heads = heads
        if relations:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(relations, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split_heads(self, qkv: Float[Tensor, "B S _"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, heads, S, D / heads]."""
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Float[Tensor, "T D"], layout: Layout, biases: Biases) -> Float[Tensor, "T D"]:
        mixed = []
        for packed, shape, bias in zip(self.qkv(x).split([B * S for B, S in layout]), layout, biases, strict=True):
            q, k, v = self.split_heads(packed.unflatten(0, shape))
            mixed.append(attend(q, k, v, bias).transpose(1, 2).flatten(2).flatten(0, 1))
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
        init_values: float | None = None,
        drop_path: float = 0.0,
        relations: int = 0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, relations)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(width, init_values)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.ls2 = nn.Identity() if init_values is None else LayerScale(width, init_values)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Float[Tensor, "T D"], layout: Layout, biases: Biases) -> Float[Tensor, "T D"]:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), layout, biases)), layout)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))), layout)


def run_blocks(
    blocks: Iterable[nn.Module],
    sequences: Sequence[Float[Tensor, "_ _ D"]],
    biases: Sequence[Biases] | None = None,
    checkpointed: bool = False,
) -> list[Float[Tensor, "_ _ D"]]:
    """Batches of sequences, each [B, S, D] with its own B and S, through blocks; biases of the scores block by block.

    Every linear map runs once over all tokens; only attention is split by batch. Nothing is padded.
    """
    layout = [(len(tokens), tokens.shape[1]) for tokens in sequences]
    flat, blocks = [tokens.flatten(0, 1) for tokens in sequences], list(blocks)
    x = flat[0] if len(flat) == 1 else torch.cat(flat)
    for block, own in zip(blocks, biases or [[None] * len(layout)] * len(blocks), strict=True):
        x = checkpoint(block, x, layout, own, use_reentrant=False) if checkpointed else block(x, layout, own)
    return [packed.unflatten(0, shape) for packed, shape in zip(x.split([*map(len, flat)]), layout, strict=True)]


def compile_blocks(network: nn.Module) -> None:
    """torch.compile every transformer block in a network: encoder, decoder, teacher."""
    for module in network.modules():
        if isinstance(module, Block):
            module.compile()


trunc_normal = partial(nn.init.trunc_normal_, std=0.02)  # cut at +-2, which is never met (DINO, timm)
narrow_normal = partial(nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02)  # its std is .0108 (BEiT's authors)
SCHEMES = {"xavier": nn.init.xavier_uniform_, "trunc_normal": trunc_normal, "beit": narrow_normal}


def init_linear(module: nn.Module, scheme: str) -> None:
    """Initialize every linear map under `module` by `scheme`, biases 0.

    xavier: uniform, a fused qkv counted as one matrix (MAE). trunc_normal: DINO's. beit: BEiT's, without its rescale.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            SCHEMES[scheme](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def shrink_residuals(blocks: nn.ModuleList, first: int = 1) -> None:
    """Divide the last weights of each residual branch by sqrt(2 * its number), from `first` (BEiT's authors)."""
    for number, block in enumerate(blocks, start=first):
        block.attn.proj.weight.data.div_((2 * number) ** 0.5)  # pyright: ignore
        block.mlp.fc2.weight.data.div_((2 * number) ** 0.5)  # pyright: ignore
