"""OpenAI's discrete VAE, which is BEiT's visual tokenizer: images to tokens, and tokens back to images.

Ramesh et al. 2021, arXiv:2102.12092, appendix A; architecture and names of weights as in openai/DALL-E
(dall_e/encoder.py, decoder.py, utils.py); as BEiT's targets in Bao et al. 2021, arXiv:2106.08254, section 2.1. The
authors' code runs all convolutions but the encoder's last and the decoder's first in float16 on CUDA; here all are
float32 everywhere, so tokens can differ from theirs where two logits nearly tie. Whether float32 convolutions on CUDA
may use TF32 is left to torch.backends.

Letters: B images, C = 3 channels, H W pixels, h w grid of 8 x 8 pixel patches, N = h * w tokens, row by row.
"""

import json
import re
import shlex
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_vit.models.weights import State, require_fit

EPSILON = 0.1
"""Pixels are squeezed into [0.1, 0.9]: logit_laplace_eps of dall_e/utils.py; the paper's appendix A.3 tells why."""

GROUPS = 4
DECODER_START = 128
"""Channels of the decoder's first convolution: n_init of dall_e/decoder.py."""


def map_pixels(images: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Pixels in [0, 1] to [0.1, 0.9], as the networks want them (dall_e/utils.py)."""
    return (1 - 2 * EPSILON) * images + EPSILON


def unmap_pixels(mapped: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The inverse of map_pixels, clamped to [0, 1] (dall_e/utils.py)."""
    return ((mapped - EPSILON) / (1 - 2 * EPSILON)).clamp(0, 1)


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


class Block(nn.Module):
    """x + gain * four convolutions with a ReLU before each; a 1 x 1 convolution on x where the width changes."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...], gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = Conv(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        widths = [inputs, *[outputs // 4] * (len(kernels) - 1), outputs]
        self.res_path = nn.Sequential()
        for i, kernel in enumerate(kernels):
            self.res_path.add_module(f"conv_{i + 1}", Conv(widths[i], widths[i + 1], kernel))

    def forward(self, x: Float[Tensor, "B inputs H W"]) -> Float[Tensor, "B outputs H W"]:
        residual = x
        for conv in self.res_path:
            residual = conv(F.relu(residual))
        return torch.add(self.id_path(x), residual, alpha=self.gain)


class Coder(nn.Module):
    """What encoder and decoder have in common: a convolution, four groups of blocks, ReLU and a 1 x 1 convolution.

    Args:
        widths: of each group. outputs: channels that come out. kernels: of a block's convolutions, in pixels.
        resize: follows every group but the last; it has no weights.
    """

    def __init__(
        self, first: Conv, widths: list[int], outputs: int, *, blocks: int, kernels: tuple[int, ...], resize: nn.Module
    ) -> None:
        super().__init__()
        gain = 1 / (len(widths) * blocks) ** 2  # post_gain of the authors: 1 / n_layers^2
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", first)
        width = first.w.shape[0]
        for g, wider in enumerate(widths, start=1):
            group = nn.Sequential()
            for b in range(1, blocks + 1):
                group.add_module(f"block_{b}", Block(width, wider, kernels, gain))
                width = wider
            if g < len(widths):
                group.add_module("resize", resize)
            self.blocks.add_module(f"group_{g}", group)
        output = nn.Sequential(nn.ReLU())
        output.add_module("conv", Conv(width, outputs, 1))
        self.blocks.add_module("output", output)

    def forward(self, x: Float[Tensor, "B inputs _ _"]) -> Float[Tensor, "B outputs _ _"]:
        return self.blocks(x)


class DallE(nn.Module):
    """The tokenizer, with frozen weights: images [B, 3, H, W] in [0, 1] -> tokens [B, N], one per 8 x 8 pixels.

    Weights start at random; load_dalle gives those of a file. It runs in float32, under autocast too.

    Args:
        group_width: channels of the encoder's first group, doubled in each further one; a multiple of 4.
        vocab: tokens to choose from. blocks_per_group: residual blocks in each of the four groups.
        decoder: also build the network from tokens back to images.

    Raises:
        ValueError: group_width is no multiple of 4.
    """

    patch_size = 8
    channels = 3

    def __init__(
        self, *, group_width: int = 256, vocab: int = 8192, blocks_per_group: int = 2, decoder: bool = False
    ) -> None:
        super().__init__()
        if group_width < 4 or group_width % 4:
            raise ValueError(f"group_width={group_width} must be a positive multiple of 4")
        self.vocab_size = vocab
        widths = [group_width * 2**i for i in range(GROUPS)]
        self.encoder = Coder(
            Conv(self.channels, group_width, 7),
            widths,
            vocab,
            blocks=blocks_per_group,
            kernels=(3, 3, 3, 1),
            resize=nn.MaxPool2d(2),
        )
        self.decoder = None
        if decoder:
            self.decoder = Coder(
                Conv(vocab, DECODER_START, 1),
                widths[::-1],
                2 * self.channels,  # mean and log-scale of the logit-Laplace distribution of each pixel
                blocks=blocks_per_group,
                kernels=(1, 3, 3, 3),
                resize=nn.Upsample(scale_factor=2, mode="nearest"),
            )
        self.requires_grad_(False)

    @property
    def decodes(self) -> bool:
        """Whether the decoder's weights are there."""
        return self.decoder is not None

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        """The most likely token of each patch, row by row; arguments and errors as of logits."""
        return self.logits(images).argmax(1).flatten(1)

    def logits(self, images: Float[Tensor, "B C H W"]) -> Float32[Tensor, "B vocabulary h w"]:
        """Unnormalized log-probabilities of the tokens at each place of the grid h = H / 8, w = W / 8.

        Args:
            images: RGB in [0, 1] and not normalized further (map_pixels is applied here); the range is not checked.

        Raises:
            ValueError: images are no floats, have no 3 channels, or a side that is no multiple of 8.
        """
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; the tokenizer needs floats in [0, 1]")
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images are {list(images.shape)}; the tokenizer needs [B, {self.channels}, H, W]")
        if images.shape[2] % self.patch_size or images.shape[3] % self.patch_size:
            sides = f"{images.shape[2]} x {images.shape[3]}"
            raise ValueError(f"images are {sides} pixels; the tokenizer needs sides that are multiples of 8")
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder(map_pixels(images.float()))

    @torch.no_grad()
    def decode(self, tokens: Int64[Tensor, "B N"], grid: tuple[int, int]) -> Float32[Tensor, "B C H W"]:
        """The decoder's mean image of tokens, in [0, 1]: H = 8 h, W = 8 w.

        Args:
            tokens: row by row, in [0, vocab_size). grid: (h, w).

        Raises:
            ValueError: there is no decoder, or the grid has another number of places than there are tokens.
            IndexError: a token is not in the vocabulary (CPU only; on CUDA it is a device-side assertion).
        """
        if self.decoder is None:
            raise ValueError(
                "decode needs the weights of OpenAI's decoder (cdn.openai.com/dall-e/decoder.pkl, as a plain state "
                "dict): load_dalle(encoder, decoder=...)"
            )
        if tokens.shape[1] != grid[0] * grid[1]:
            raise ValueError(f"{tokens.shape[1]} tokens do not fill the grid={grid[0]} x {grid[1]}")
        weight, bias = (self.decoder.get_parameter(f"blocks.input.{name}") for name in "wb")
        columns = weight[:, :, 0, 0][:, tokens]  # a 1 x 1 convolution of one-hot tokens: [128, B, N]
        x = columns.transpose(0, 1).unflatten(2, grid) + bias[:, None, None]
        with torch.autocast(x.device.type, enabled=False):
            statistics = self.decoder.blocks[1:](x)
        return unmap_pixels(statistics[:, : self.channels].sigmoid())


def load_dalle(encoder: str | Path, decoder: str | Path | None = None) -> DallE:
    """The tokenizer in eval mode, on the CPU, in float32, from plain state dicts; its widths are read off their shapes.

    Args:
        encoder: .safetensors, or .pt, .pth or .pkl of torch.save, with the authors' names (blocks.input.w ...).
        decoder: the same of the decoder, for decode; None leaves it out.

    Raises:
        FileNotFoundError: there is nothing at encoder or decoder.
        ValueError: a file is no state dict (OpenAI's own are pickled modules: the error says how to convert them), or
            weights are missing, unknown or misshapen.
    """
    files = {"encoder": Path(encoder)} | ({"decoder": Path(decoder)} if decoder is not None else {})
    states = {part: _read(path, part) for part, path in files.items()}
    with torch.device("meta"):
        tokenizer = DallE(**_sizes(states["encoder"]), decoder=decoder is not None)
    for part, state in states.items():
        network = tokenizer.get_submodule(part)
        require_fit(network.state_dict(), state, files[part])
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return tokenizer.eval()


def _sizes(encoder: State) -> dict[str, int]:
    """Keyword arguments of DallE; the authors' where their weights are absent, for require_fit to say so."""
    sizes = {}
    for size, name in (("group_width", "blocks.input.w"), ("vocab", "blocks.output.conv.w")):
        if name in encoder and encoder[name].ndim == 4:
            sizes[size] = encoder[name].shape[0]
    blocks = {name.split(".")[2] for name in encoder if name.startswith("blocks.group_1.block_")}
    return sizes | ({"blocks_per_group": len(blocks)} if blocks else {})


def _read(path: Path, part: str) -> State:
    """A state dict on the CPU; `part` is the argument that named it."""
    if not path.is_file():
        raise FileNotFoundError(f"{part}={path}: there is no such file")
    if path.suffix not in (".safetensors", ".pt", ".pth", ".pkl"):
        raise ValueError(f"{part}={path}: a state dict in .safetensors, .pt, .pth or .pkl is needed")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(_why_unread(path, part, str(error) or type(error).__name__)) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{part}={path} holds something else than a plain state dict of tensors")
    return dict(state)


def _why_unread(path: Path, part: str, problem: str) -> str:
    """One line; for a pickled module with the command that makes a state dict of it."""
    pickled = re.search(r"Unsupported global: GLOBAL (\S+)", problem)
    if pickled is None:
        return f"{part}={path} cannot be read as weights alone ({problem.splitlines()[0]}); nothing else is unpickled"
    source, target = (json.dumps(str(file), ensure_ascii=False) for file in (path, path.with_suffix(".weights.pt")))
    code = f'torch.load({source}, map_location="cpu", weights_only=False).state_dict()'
    command = f"python -c {shlex.quote(f'import torch; torch.save({code}, {target})')}"
    return (
        f"{part}={path} holds a pickled {pickled[1]} instead of a plain state dict, and code is never unpickled here; "
        f"to convert the module that OpenAI published, run where the dall_e package is installed: {command}"
    )
