"""The encoder of OpenAI's discrete VAE, which is BEiT's visual tokenizer: images to tokens.

Ramesh et al. 2021, arXiv:2102.12092, appendix A; architecture and names of weights as in openai/DALL-E
(dall_e/encoder.py, utils.py); as BEiT's targets in Bao et al. 2021, arXiv:2106.08254, section 2.1. The authors' code
runs all convolutions but the last in float16 on CUDA; here all are float32 everywhere, so tokens can differ from theirs
where two logits nearly tie. Whether float32 convolutions on CUDA may use TF32 is left to torch.backends.

Letters: B images, C = 3 channels, H W pixels, h w grid of 8 x 8 pixel patches, N = h * w tokens, row by row.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from ssl_vit.models.official import State, unpickle
from ssl_vit.models.weights import read_weights, require_fit

EPSILON = 0.1
"""Pixels are squeezed into [0.1, 0.9]: logit_laplace_eps of dall_e/utils.py; the paper's appendix A.3 says why."""
GROUPS = 4


def map_pixels(images: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Pixels in [0, 1] to [0.1, 0.9], as the network wants them (dall_e/utils.py)."""
    return (1 - 2 * EPSILON) * images + EPSILON


class Conv(nn.Module):
    """A convolution that keeps H and W, its weight and bias named w and b; starts as the authors', normal by fan-in."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        if not self.w.is_meta:  # random numbers on the meta device would import torch._dynamo, four seconds
            nn.init.normal_(self.w, std=(inputs * kernel**2) ** -0.5)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "B inputs H W"]) -> Float[Tensor, "B outputs H W"]:
        return F.conv2d(x, self.w, self.b, padding=(self.w.shape[-1] - 1) // 2)


class ResidualBlock(nn.Module):
    """x + gain * four convolutions with a ReLU before each; a 1 x 1 convolution on x where the width changes."""

    def __init__(self, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = Conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        hidden = outputs // 4
        convs = ((inputs, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, outputs, 1))
        self.res_path = nn.Sequential()
        for i, sizes in enumerate(convs, start=1):
            self.res_path.add_module(f"conv_{i}", Conv(*sizes))

    def forward(self, x: Float[Tensor, "B inputs H W"]) -> Float[Tensor, "B outputs H W"]:
        residual = x
        for conv in self.res_path:
            residual = conv(F.relu(residual))
        return torch.add(self.id_path(x), residual, alpha=self.gain)


class DallE(nn.Module):
    """The tokenizer, with frozen weights: images [B, 3, H, W] in [0, 1] -> tokens [B, N], one per 8 x 8 pixels.

    A convolution, four groups of blocks with max pooling between them, ReLU and a 1 x 1 convolution. Weights start at
    random; load_dalle gives those of a file. It runs in float32, under autocast too.

    Args:
        group_width: channels of the first group, doubled in each further one; a multiple of 4.
        vocab_size: tokens to choose from. blocks_per_group: residual blocks in each of the four groups.

    Raises:
        ValueError: group_width is no multiple of 4.
    """

    patch_size = 8
    channels = 3
    decodes = False

    def __init__(self, *, group_width: int = 256, vocab_size: int = 8192, blocks_per_group: int = 2) -> None:
        super().__init__()
        if group_width < 4 or group_width % 4:
            raise ValueError(f"group_width={group_width} must be a positive multiple of 4")
        self.vocab_size = vocab_size
        gain = 1 / (GROUPS * blocks_per_group) ** 2  # post_gain of the authors: 1 / n_layers^2
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", Conv(self.channels, group_width, 7))
        width = group_width
        for g in range(GROUPS):
            group = nn.Sequential()
            for b in range(blocks_per_group):
                group.add_module(f"block_{b + 1}", ResidualBlock(width, group_width << g, gain))
                width = group_width << g
            if g < GROUPS - 1:
                group.add_module("pool", nn.MaxPool2d(2))
            self.blocks.add_module(f"group_{g + 1}", group)
        output = nn.Sequential(nn.ReLU())
        output.add_module("conv", Conv(width, vocab_size, 1))
        self.blocks.add_module("output", output)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        """The most likely token of each patch, row by row; arguments and errors as of logits."""
        return self.logits(images).argmax(1).flatten(1)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float32[Tensor, "B vocabulary h w"]:
        """Unnormalized log-probabilities of the tokens at each patch of the grid h = H / 8, w = W / 8.

        Args:
            images: RGB in [0, 1] and not normalized further (map_pixels is applied here); the range is not checked.

        Raises:
            ValueError: images are no floats, have no 3 channels, or a side that is no multiple of 8.
        """
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; the tokenizer needs floats in [0, 1]")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images are {list(images.shape)}; the tokenizer needs [B, {self.channels}, H, W]")
        height, width = images.shape[2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"images are {height} x {width} pixels; the tokenizer needs sides that are multiples of 8")
        with torch.autocast(images.device.type, enabled=False):
            return self.blocks(map_pixels(images.float()))


def load_dalle(path: Path) -> DallE:
    """The tokenizer in eval mode, on the CPU, in float32, from a plain state dict with the authors' names.

    Its widths are read off the shapes.

    Raises:
        ValueError: the file is no state dict (OpenAI's own are pickled modules: save their state_dict()), or weights
            are missing, unknown or misshapen.
    """
    state: State = read_weights(path)[0] if path.suffix == ".safetensors" else unpickle(path)
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} holds something else than a plain state dict of tensors")
    sizes = {}  # the authors' where their weights are absent, for require_fit to name these
    for size, name in (("group_width", "blocks.input.w"), ("vocab_size", "blocks.output.conv.w")):
        if name in state and state[name].ndim == 4:
            sizes[size] = state[name].shape[0]
    if blocks := {name.split(".")[2] for name in state if name.startswith("blocks.group_1.block_")}:
        sizes["blocks_per_group"] = len(blocks)
    with torch.device("meta"):
        tokenizer = DallE(**sizes)
    require_fit(tokenizer.state_dict(), state, path)
    tokenizer.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return tokenizer.requires_grad_(False).eval()
