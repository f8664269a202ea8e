"""The teacher of a distillation: any timm model or fine-tuned classifier, frozen, on the student's own images.

Letters: B images, C channels, H x W pixels, K classes.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import TIMM
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig
from ssl_vit.evaluate.timm_models import timm_model
from ssl_vit.supervised.classifier import load_classifier

Statistics = tuple[list[float], list[float]]
"""Mean and deviation of each channel, of pixels in [0, 1]."""


class Renormalized(nn.Module):
    """A network that sees images normalized by other statistics than they come with."""

    def __init__(self, network: nn.Module, come: Statistics, seen: Statistics) -> None:
        super().__init__()
        self.network = network
        (mean, std), (its_mean, its_std) = (torch.tensor(values) for values in (come, seen))
        self.gain: Tensor
        self.shift: Tensor
        self.register_buffer("gain", (std / its_std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", ((mean - its_mean) / its_std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores."""
        return self.network(torch.addcmul(self.shift, images, self.gain))


def load_teacher(source: str, classes: list[str], image: EncoderConfig, come: Statistics) -> Renormalized:
    """A frozen teacher in eval mode, tried on one image.

    Args:
        source: timm:NAME (its published weights, which timm downloads), timm:NAME:FILE (your own weights, .safetensors
            or .pth), or what load_classifier reads.
        classes: of the student; a timm teacher's must be in the same order.
        image: size and channels of the student's images.
        come: mean and deviation that those are normalized by.

    Raises:
        ValueError: no such model, other classes, or one that does not take such images.
        OSError: no such file, or weights that could not be downloaded.
        ImportError: timm is not installed.
    """
    key = f"distill.teacher={source}"
    if source.startswith(TIMM):
        network, seen = _from_timm(source, len(classes), image.channels)
    else:
        try:
            network = load_classifier(source)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{key}: {error}") from error
        if network.classes != classes:
            theirs, ours = ", ".join(network.classes[:5]), ", ".join(classes[:5])
            raise ValueError(f"{key} knows the classes {theirs} ..., the images are of {ours} ...: they must be alike")
        seen = (network.metadata["mean"], network.metadata["std"])
    teacher = Renormalized(network, come, seen).requires_grad_(False).eval()
    height, width = image.height_width
    try:
        with torch.no_grad():
            scores = teacher(torch.zeros(1, image.channels, height, width))
    except Exception as error:  # what a network says of a wrong size differs by its kind
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key} does not take images of {height} x {width} pixels: {reason}") from error
    if scores.shape != (1, len(classes)):
        raise ValueError(f"{key} has {scores.shape[-1]} classes, the images {len(classes)}: they must be alike")
    return teacher


def _from_timm(source: str, classes: int, channels: int) -> tuple[nn.Module, Statistics]:
    key = f"distill.teacher={source}"
    name, _, file = source.removeprefix(TIMM).partition(":")
    if file:
        network = timm_model(key, name, num_classes=classes, in_chans=channels)
        if not Path(file).exists():
            raise FileNotFoundError(f"{key}: there is no file {file}")
        _load(network, Path(file), source)
    else:
        try:
            network = timm_model(key, name, pretrained=True)
        except OSError as error:
            raise OSError(f"{error}: or give a file of yours, {TIMM}{name}:FILE") from error
    known: dict[str, Any] = getattr(network, "pretrained_cfg", {})
    fits = channels == len(known.get("mean", ()))
    mean, std = (
        list(known[key]) if fits else default for key, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD))
    )
    return network, (mean, std)


def _load(network: nn.Module, file: Path, source: str) -> None:
    """Every weight of a network from a file, strictly."""
    from ssl_vit.models.weights import require_fit

    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
        for key in ("model", "state_dict"):
            state = state.get(key, state)
    require_fit(network.state_dict(), state, f"distill.teacher={source}")
    network.load_state_dict(state)
