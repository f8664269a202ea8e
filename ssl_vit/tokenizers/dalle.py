"""The encoder of OpenAI's discrete VAE, BEiT's visual tokenizer (Ramesh et al. 2021, arXiv:2102.12092, appendix A).

Architecture and names of weights as in openai/DALL-E (dall_e/encoder.py, utils.py). The authors' code runs all
convolutions but the last in float16 on CUDA; here all are float32, so tokens can differ where two logits nearly tie.
Letters: B images, C = 3 channels, H W pixels, h w grid of 8 x 8 pixel patches, N = h * w tokens, row by row.
"""

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from ssl_vit.models.weights import State, load_strictly


class Conv(nn.Module):
    """A convolution that keeps H and W, its weight and bias named w and b; starts as the authors', normal by fan-in."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        if not self.w.is_meta:  # random numbers on the meta device would import torch._dynamo, four seconds
            nn.init.normal_(self.w, std=(inputs * kernel**2) ** -0.5)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Float[Tensor, "B inputs H W"]) -> Float[Tensor, "B outputs H W"]:
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class ResidualBlock(nn.Module):
    """x + four convolutions / 64, with a ReLU before each; a 1 x 1 convolution on x where the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.id_path = Conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        hidden = outputs // 4
        convs = ((inputs, hidden, 3), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, outputs, 1))
        self.res_path = nn.Sequential(OrderedDict({f"conv_{i}": Conv(*conv) for i, conv in enumerate(convs, start=1)}))

    def forward(self, x: Float[Tensor, "B inputs H W"]) -> Float[Tensor, "B outputs H W"]:
        residual = x
        for conv in self.res_path:
            residual = conv(F.relu(residual))
        return torch.add(self.id_path(x), residual, alpha=1 / 64)  # the authors' 1 / (number of blocks)^2


class DallE(nn.Module):
    """The tokenizer, with frozen weights: images [B, 3, H, W] in [0, 1] -> tokens [B, N], one per 8 x 8 pixels.

    Four groups of two blocks with max pooling between them; the first has group_width channels, a multiple of 4, each
    further one twice as many. Weights start at random. It runs in float32, under autocast too.
    """

    kind = "dalle"
    patch_size = 8
    channels = 3
    decodes = False

    def __init__(self, *, group_width: int = 256, vocab_size: int = 8192) -> None:
        super().__init__()
        self.vocab_size, self.config = vocab_size, {"group_width": group_width, "vocab_size": vocab_size}
        widths = [group_width, *(group_width << level for level in range(4))]  # entering a group, then leaving it
        layers: dict[str, nn.Module] = {"input": Conv(self.channels, group_width, 7)}
        for group in range(4):
            inputs, outputs = widths[group : group + 2]
            blocks = {"block_1": ResidualBlock(inputs, outputs), "block_2": ResidualBlock(outputs, outputs)}
            pool = {"pool": nn.MaxPool2d(2)} if group < 3 else {}
            layers[f"group_{group + 1}"] = nn.Sequential(OrderedDict(blocks | pool))
        output = {"relu": nn.ReLU(), "conv": Conv(widths[-1], vocab_size, 1)}
        self.blocks = nn.Sequential(OrderedDict(layers | {"output": nn.Sequential(OrderedDict(output))}))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        """The most likely token of each patch, row by row; arguments and errors as of logits."""
        return self.logits(images).argmax(1).flatten(1)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float32[Tensor, "B vocabulary h w"]:
        """Unnormalized log-probabilities of the tokens at each patch of RGB images in [0, 1]; else ValueError."""
        _, C, H, W = images.shape
        if self.channels != C or H % self.patch_size or W % self.patch_size:
            line = f"images are {list(images.shape)}"
            raise ValueError(f"{line}; the tokenizer needs [B, 3, H, W] with sides that are multiples of 8")
        with torch.autocast(images.device.type, enabled=False):
            return self.blocks(0.8 * images.float() + 0.1)  # map_pixels of dall_e/utils.py; the paper's appendix A.3


def load_dalle(state: State, path: Path) -> DallE:
    """The tokenizer in eval mode, in float32, from a state dict with the authors' names; ValueError as require_fit."""
    names = {"group_width": "blocks.input.w", "vocab_size": "blocks.output.conv.w"}
    with torch.device("meta"):  # with the authors' sizes where these weights are absent, for require_fit to name them
        tokenizer = DallE(**{size: state[name].shape[0] for size, name in names.items() if name in state})
    state = {name: tensor.float() if isinstance(tensor, Tensor) else tensor for name, tensor in state.items()}
    load_strictly(tokenizer, state, path, assign=True)
    return tokenizer.requires_grad_(False).eval()
