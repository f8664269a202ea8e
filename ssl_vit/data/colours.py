"""Colour operations on batches: torchvision's, with a factor of its own for each image.

Images are floats in 0 .. 255 and stay there. Nothing waits for a device. The result is a new tensor, or `out`, which may
be the images themselves: that is faster, for they stay in the cache. With one channel, what concerns colour changes
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
BLOCK = 16  # rows or columns that the blur makes at a time; measured fastest of 8 to 224 on a CPU


def adjust_brightness(images: Images, factor: Factor, out: Images | None = None) -> Images:
    """Images times factor; 0 is black, 1 the image."""
    return torch.mul(images, _each(factor), out=out).clamp_(0, 255)


def adjust_contrast(images: Images, factor: Factor, out: Images | None = None) -> Images:
    """Between the mean grey of the image (factor 0) and the image (1), or beyond. One or three channels."""
    mean = _grey(images.mean((2, 3), keepdim=True))
    return torch.mul(images, _each(factor), out=out).add_(mean * (1 - _each(factor))).clamp_(0, 255)


def adjust_saturation(images: Images, factor: Factor, out: Images | None = None) -> Images:
    """Between the grey image (factor 0) and the image (1), or beyond. One or three channels."""
    if images.shape[1] == 1:
        return images
    return torch.lerp(_grey(images), images, _each(factor), out=out).clamp_(0, 255)


def adjust_hue(images: Images, shift: Factor, out: Images | None = None) -> Images:
    """Turned around the colour circle by shift in -0.5 .. 0.5 of it; value and saturation (HSV) stay.

    A channel of a pixel is low + chroma * clamp(2 - |angle|, 0, 1), where low is its darkest channel, chroma the
    distance to its brightest, and angle in -3 .. 3 sixths of the circle the distance of its hue from the channel's own.
    Red's angle is 1 - (red - green - blue + low) / chroma, with the sign of green - blue. All is kept times chroma, so
    there is no division, and grey pixels are no special case.
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    angle = (chroma - low).sub_(red).add_(green).add_(blue).copysign_(green - blue)
    own = torch.tensor([0.0, -2.0, 2.0]).to(images.device, non_blocking=True)  # red, green, blue on the circle
    turn = torch.remainder(6 * shift[:, None] + own + 3, 6) - 3
    # 2 - |angle| once angle, by now in -6 .. 6, is brought back to -3 .. 3: ||angle| - 3| - 1
    ramp = torch.addcmul(angle, chroma, turn[:, :, None, None], out=out).abs_().sub_(chroma, alpha=3).abs_()
    return ramp.add_(low - chroma).clamp_(low, high)


def to_grey(images: Images) -> Images:
    """Every channel the luma of the image. One or three channels."""
    return images if images.shape[1] == 1 else _grey(images).expand_as(images).contiguous()


def solarize(images: Images) -> Images:
    """Values from 128 up are inverted: 255 - value.

    For whole numbers that is min(value, 255 - value), which unlike it does not jump for those between 127 and 128.
    """
    return torch.minimum(images, 255 - images)


def gaussian_blur(images: Images, sigma: Factor, radius: int) -> Images:
    """Convolved with a Gaussian of standard deviation sigma pixels, of 2 radius + 1 pixels, edges reflected.

    H and W must be above radius.
    """
    return convolve(images, gaussian_band(sigma, radius))


def gaussian_band(sigma: Factor, radius: int) -> Band:
    """A blur as a matrix that makes BLOCK pixels from span = BLOCK + 2 radius: row i holds the kernel from column i on.

    torchvision's kernel has its points sqrt(2) times closer than pixels are: the 2 of a Gaussian's exponent.
    """
    limit = radius / 2**0.5
    points = torch.linspace(-limit, limit, 2 * radius + 1, device=sigma.device)
    kernel = torch.softmax(-(points / sigma[:, None]).square(), dim=1)
    kernel = threshold(kernel, 1e-12, 0.0)  # a CPU takes several times longer for denormal numbers
    # Each row is the one above moved by one: a period one longer than a row does that.
    span = BLOCK + 2 * radius
    return pad(kernel, (0, BLOCK)).repeat(1, BLOCK)[:, : BLOCK * span].view(-1, BLOCK, span)


def convolve(images: Images, band: Band) -> Images:
    """Rows, then columns, each as products of overlapping windows of span pixels with the image's band matrix.

    That is faster than a grouped convolution with a kernel per image, on CPUs and GPUs.
    """
    height, width = images.shape[2:]
    span = band.shape[2]
    radius = (span - BLOCK) // 2
    padded = pad(images, (radius, radius, radius, radius), mode="reflect")
    below, right = -height % BLOCK, -width % BLOCK
    if below or right:
        padded = pad(padded, (0, right, 0, below))  # to whole blocks; cut off again
    rows = (band[:, None, None] @ padded.unfold(2, span, BLOCK).mT).flatten(2, 3)
    columns = torch.bmm(rows.unfold(3, span, BLOCK).reshape(len(images), -1, span), band.mT)
    return columns.view(*images.shape[:2], height + below, width + right)[:, :, :height, :width]


def _each(factor: Tensor) -> Float32[Tensor, "B 1 1 1"]:
    return factor[:, None, None, None]


def _grey(images: Images) -> Float32[Tensor, "B 1 H W"]:
    """Luma of ITU-R BT.601, in torchvision's digits."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images[:, 0:1], images[:, 1:2], images[:, 2:3]
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)
