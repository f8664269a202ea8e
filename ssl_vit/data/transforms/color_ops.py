"""Color operations on batches: torchvision's, with a factor of its own for each image.

Images are floats in 0 .. 255 and stay there. Nothing waits for a device. The result is a new tensor, or `out`, which
may be the images themselves: that is faster, for they stay in the cache. With one channel, what concerns color changes
nothing, as in torchvision.

Letters: B images, C channels, H W pixels.
"""

import torch
from jaxtyping import Float32
from torch import Tensor
from torch.nn.functional import pad, threshold

Images = Float32[Tensor, "B C H W"]
Factor = Float32[Tensor, " B"]
Band = Float32[Tensor, "B block span"]
Mix = Float32[Tensor, "B 3 3"]
HueMix = Float32[Tensor, "B 3 4"]
LUMA = (0.2989, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601 in torchvision's digits
_LUMA = torch.tensor(LUMA)
BLOCK = 16  # rows or columns that the blur makes at a time; measured fastest of 8 to 224 on a CPU


def adjust_brightness(images: Images, factor: Factor, out: Images | None = None) -> Images:
    """Images times factor; 0 is black, 1 the image."""
    return torch.mul(images, _each(factor), out=out).clamp_(0, 255)


def adjust_contrast(images: Images, factor: Factor, out: Images | None = None) -> Images:
    """Between the mean gray of the image (factor 0) and the image (1), or beyond. One or three channels."""
    mean = images.mean((2, 3))
    gray = mean @ _LUMA.to(images.device, non_blocking=True) if images.shape[1] == 3 else mean[:, 0]
    return torch.mul(images, _each(factor), out=out).add_(_each((1 - factor) * gray)).clamp_(0, 255)


def saturation_mix(factor: Factor) -> Mix:
    """Between the gray image (factor 0) and the image (1), or beyond; each channel (row) of red, green and blue."""
    luma = _LUMA.to(factor.device, non_blocking=True)
    own = torch.eye(3, device=factor.device)
    return torch.lerp(luma.expand(3, 3), own, factor[:, None, None])


def mix(images: Images, matrix: Mix, out: Images | None = None) -> Images:
    """Each channel as its image's matrix mixes it from red, green and blue, cut off at 0 and 255."""
    if images.shape[1] == 1:
        return images
    return torch.clamp(torch.bmm(matrix, images.flatten(2)).view(images.shape), 0, 255, out=out)


def hue_mix(shift: Factor) -> HueMix:
    """What each channel becomes (row) of red, green, blue, and of the sum of brightest and darkest, in turn_hue.

    shift: around the color circle, in -0.5 .. 0.5 of it; value and saturation (HSV) stay.

    Let low and high be the darkest and brightest channel of a pixel. Around the circle a channel stays at high for two
    sixths, falls for one, stays at low for two, rises for one, each in a straight line. So a turn by t in 0 .. 1 sixths
    makes red - green + (2 t - 1) blue + (1 - t) (high + low) of red, cut off at low and high: read it off in each
    sixth. Green and blue follow in a circle, a turn back swaps the two other channels, and a third of the circle moves
    each channel on by one. That is the result of going to HSV and back, without division or branches.
    """
    sixths = 6 * shift
    thirds = torch.round(sixths / 2)
    rest = sixths - 2 * thirds  # in -1 .. 1
    # of the channel itself, of the next one in the order red, green, blue, and of the one before
    parts = torch.stack([torch.ones_like(rest), 2 * (-rest).relu() - 1, 2 * rest.relu() - 1], dim=1)
    channel = torch.arange(3, device=shift.device)
    offset = (channel - channel[:, None] + thirds.long()[:, None, None]).remainder(3)
    matrix = parts[:, None].expand(-1, 3, -1).gather(2, offset)
    return torch.cat([matrix, (1 - rest.abs())[:, None, None].expand(-1, 3, 1)], dim=2)


def turn_hue(images: Images, matrix: HueMix, out: Images | None = None) -> Images:
    """Each channel as hue_mix says."""
    if images.shape[1] == 1:
        return images
    high, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    turned = torch.bmm(matrix[:, :, :3], images.flatten(2)).view(images.shape)
    return torch.clamp(turned.addcmul_(high + low, matrix[:, :1, 3:, None]), low, high, out=out)


def to_gray(images: Images, out: Images | None = None) -> Images:
    """Every channel the luma of the image. One or three channels."""
    if images.shape[1] == 1:
        return images
    return (torch.empty_like(images) if out is None else out).copy_(_gray(images))


def solarize(images: Images, out: Images | None = None) -> Images:
    """Values from 128 up are inverted: 255 - value.

    On whole numbers that is min(value, 255 - value). Between 127 and 128 the two differ, by less than 1, and the
    minimum has no jump.
    """
    return torch.minimum(images, 255 - images, out=out)


def gaussian_band(sigma: Factor, radius: int) -> Band:
    """A Gaussian blur of std sigma pixels, cut off at radius, as a matrix that makes BLOCK pixels from span = BLOCK +
    2 radius: row i holds the kernel from column i on.

    torchvision's kernel has its points sqrt(2) times closer than pixels are: the 2 of a Gaussian's exponent.
    """
    limit = radius / 2**0.5
    points = torch.linspace(-limit, limit, 2 * radius + 1, device=sigma.device)
    kernel = torch.softmax(-(points / sigma[:, None]).square(), dim=1)
    kernel = threshold(kernel, 1e-12, 0.0)  # a CPU takes several times longer for denormal numbers
    # Each row is the one above moved by one: a period one longer than a row does that.
    span = BLOCK + 2 * radius
    return pad(kernel, (0, BLOCK)).repeat(1, BLOCK)[:, : BLOCK * span].view(-1, BLOCK, span)


def convolve(images: Images, band: Band, out: Images | None = None) -> Images:
    """Blurred, edges reflected: rows, then columns, as products of overlapping windows with the image's band matrix.

    H and W must be above the radius. Faster than a grouped convolution with a kernel per image, on CPUs and GPUs.
    """
    span = band.shape[2]
    radius = (span - BLOCK) // 2
    height, width = images.shape[2:]
    below, right = -height % BLOCK, -width % BLOCK  # to whole blocks; cut off again
    padded = pad(images, (radius, radius, radius, radius), mode="reflect")
    if below or right:
        padded = pad(padded, (0, right, 0, below))
    size = (*images.shape[:2], height + below, width + right)
    whole = images.new_empty(size) if out is None or below or right else out
    rows = (band[:, None, None] @ padded.unfold(2, span, BLOCK).mT).flatten(2, 3)
    columns = rows.unfold(3, span, BLOCK).reshape(len(images), -1, span)
    torch.bmm(columns, band.mT, out=whole.view(len(images), -1, BLOCK))
    blurred = whole[:, :, :height, :width]
    return blurred if out is None or whole is out else out.copy_(blurred)


def _each(factor: Tensor) -> Float32[Tensor, "B 1 1 1"]:
    return factor.view(-1, 1, 1, 1)


def _gray(images: Images) -> Float32[Tensor, "B 1 H W"]:
    """Luma of three channels."""
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
