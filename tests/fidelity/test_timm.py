"""The encoder against timm: the same names, the same outputs."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmTransformer

from ssl_vit.config.schema import SIZES
from ssl_vit.models.vit import VisionTransformer


def timm_model(size: str, registers: int = 0, **options) -> TimmTransformer:
    embed_dim, depth, num_heads = SIZES[size]
    model = TimmTransformer(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        num_classes=0,
        reg_tokens=registers,
        no_embed_class=registers > 0,  # as timm's models with registers
        **options,
    ).eval()
    for parameter in model.parameters():  # timm leaves biases and registers at 0, where a mix-up would not show
        torch.nn.init.normal_(parameter, std=0.05) if parameter.ndim < 2 else None
    return model


def ours_with_its_weights(reference: TimmTransformer, **options) -> VisionTransformer:
    encoder = VisionTransformer(size="tiny", **options).eval()
    assert set(encoder.state_dict()) == set(reference.state_dict())
    encoder.load_state_dict(reference.state_dict())
    return encoder


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_timms_names_and_shapes(size):
    with torch.device("meta"):
        ours, theirs = VisionTransformer(size=size).state_dict(), timm_model(size).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: tensor.shape for n, tensor in theirs.items()}


@pytest.mark.parametrize("registers", [0, 4])
def test_same_outputs(registers):
    reference = timm_model("tiny", registers)
    encoder = ours_with_its_weights(reference, num_registers=registers)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        expected = reference.forward_features(images)
        expected = torch.cat([expected[:, :1], expected[:, 1 + registers :]], dim=1)
        # 1e-5 of values of order one: fp32 with another order of sums over twelve blocks
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_same_with_layer_scale_other_channels_and_a_wide_image():
    reference = timm_model("tiny", init_values=0.1, in_chans=5, img_size=(64, 96), patch_size=8)
    encoder = ours_with_its_weights(reference, init_values=0.1, channels=5, image_size=(64, 96), patch_size=8)
    images = torch.randn(2, 5, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images), reference.forward_features(images), atol=1e-5, rtol=1e-5)


def test_positions_are_resampled_as_timm_does():
    reference = timm_model("tiny", img_size=64, patch_size=8, dynamic_img_size=True)
    encoder = ours_with_its_weights(reference, image_size=64, patch_size=8)
    images = torch.randn(2, 3, 48, 96)
    with torch.no_grad():
        expected = reference.forward_features(images).flatten(1, -2)
        torch.testing.assert_close(encoder(images), expected, atol=1e-5, rtol=1e-5)


def test_intermediate_layers():
    reference = timm_model("tiny", img_size=64, patch_size=16)
    encoder = ours_with_its_weights(reference, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = reference.get_intermediate_layers(images, n=[3, 11], reshape=True, norm=True)
        for ours, theirs in zip(encoder.feature_maps(images, [3, 11]), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
