import pytest
import torch
from torchvision.transforms.v2 import functional as F

from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD
from ssl_vit.data.photometry import normalize


@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_is_torchvisions(channels):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, channels, 16, 16)
    mean, std = IMAGENET_MEAN[:channels], IMAGENET_STD[:channels]
    expected = F.normalize(images.float() / 255, mean, std)
    found = normalize(images, mean, std)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # values to 2.7, so two units in the last place


def test_normalize_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="zip"):
        normalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [0.5] * 3, [0.5] * 2)
