"""A frozen teacher: any timm model or fine-tuned classifier. Letters: B images, C channels, H x W pixels, K classes."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.config.evaluation_schema import TIMM
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig
from ssl_vit.evaluate.backbones import timm_model
from ssl_vit.models.weights import load_strictly
from ssl_vit.supervised.classifier import load_classifier

Statistics = tuple[list[float], list[float]]  # mean and std of each channel, of pixels in [0, 1]


class Renormalized(nn.Module):
    """A network that takes images normalized by `given` statistics, where it was trained with others."""

    gain: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, given: Statistics, trained: Statistics) -> None:
        super().__init__()
        self.network = network
        mean, std, its_mean, its_std = (torch.tensor(values).view(1, -1, 1, 1) for values in (*given, *trained))
        self.register_buffer("gain", std / its_std, persistent=False)
        self.register_buffer("shift", (mean - its_mean) / its_std, persistent=False)

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores."""
        return self.network(torch.addcmul(self.shift, images, self.gain))


def load_teacher(source: str, classes: list[str], image: EncoderConfig, given: Statistics) -> Renormalized:
    """A frozen teacher in eval mode, tried on one image.

    source: timm:NAME, timm:NAME:FILE (.safetensors or .pth), or what load_classifier reads. classes: the student's, in
    order. image, given: its images, and their mean and std. ValueError, OSError: no such model or file, or no fit.
    """
    key = f"distill.teacher={source}"
    if source.startswith(TIMM):
        network, trained = _from_timm(key, source, len(classes), image.channels)
    else:
        try:
            network = load_classifier(source)
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"{key}: {error}") from error
        if network.classes != classes:
            theirs, ours = ", ".join(network.classes[:5]), ", ".join(classes[:5])
            raise ValueError(f"{key} knows the classes {theirs} ..., the images are of {ours} ...: they must be alike")
        trained = (network.metadata.get("mean", IMAGENET_MEAN), network.metadata.get("std", IMAGENET_STD))
    teacher, (height, width) = Renormalized(network, given, trained).requires_grad_(False).eval(), image.height_width
    try:
        with torch.no_grad():
            scores = teacher(torch.zeros(1, image.channels, height, width))
    except Exception as error:  # each network has its own error for a wrong size
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key} does not take images of {height} x {width} pixels: {reason}") from error
    if scores.shape != (1, len(classes)):
        raise ValueError(f"{key} has {scores.shape[-1]} classes, the images {len(classes)}: they must be alike")
    return teacher


def _from_timm(key: str, source: str, classes: int, channels: int) -> tuple[nn.Module, Statistics]:
    name, _, file = source.removeprefix(TIMM).partition(":")
    if file:
        network = timm_model(key, name, num_classes=classes, in_chans=channels)
        if not Path(file).exists():
            raise FileNotFoundError(f"{key}: there is no file {file}")
        from timm.models import load_state_dict

        load_strictly(network, load_state_dict(file, use_ema=False, weights_only=True), key)
    else:
        try:
            network = timm_model(key, name, pretrained=True)
        except OSError as error:
            raise OSError(f"{error}: or give a file of yours, {TIMM}{name}:FILE") from error
    mean, std = (network.pretrained_cfg.get(statistic, ()) for statistic in ("mean", "std"))
    return network, (list(mean), list(std)) if len(mean) == channels else (IMAGENET_MEAN, IMAGENET_STD)
