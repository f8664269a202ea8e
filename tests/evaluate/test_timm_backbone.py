"""timm's models, evaluated as ours are: the same weights give the same features."""

import pytest
import timm
import torch

from ssl_vit.evaluate.backbones import Feature, TimmBackbone, load_timm
from ssl_vit.models.vit import VisionTransformer

IMAGES = torch.randn(2, 3, 32, 32)


def small_timm(name: str = "vit_tiny_patch16_224", **options) -> TimmBackbone:
    options = {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 24, "num_heads": 2} | options
    return TimmBackbone(name, timm.create_model(name, num_classes=0, **options).eval())


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("pool", ["cls", "mean", "both"])
def test_a_transformer_gives_what_ours_gives_with_its_weights(registers, pool):
    options = {"reg_tokens": registers, "no_embed_class": bool(registers)}
    theirs = small_timm(**options)
    ours = VisionTransformer(
        embed_dim=24, depth=3, num_heads=2, patch_size=8, image_size=32, num_registers=registers
    ).eval()
    ours.load_state_dict(theirs.module.state_dict())
    with torch.no_grad():
        for layers in ([2], [0, 1, 2], [0, 2]):
            expected = ours.features(IMAGES, layers, pool)
            torch.testing.assert_close(theirs.features(IMAGES, layers, pool), expected, atol=1e-5, rtol=1e-4)
        (hidden,) = theirs.tokens(IMAGES, [1], normed=False)
        expected = ours.hidden_states(ours.embed(IMAGES), [1])[0]
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-4)
    assert (theirs.depth, theirs.width, theirs.patch_size) == (3, 24, 8)


def test_a_transformer_without_class_token_has_the_mean_alone():
    theirs = small_timm(class_token=False, global_pool="avg")
    assert theirs.pools == ("mean",)
    (tokens,) = theirs.tokens(IMAGES, [2])
    assert tokens.shape == (2, 16, 24)
    torch.testing.assert_close(theirs.features(IMAGES, [2], "mean"), tokens.mean(1))
    with pytest.raises(ValueError, match="pool=cls must be one of mean"):
        theirs.feature("cls", "last", 1)


def test_a_convolutional_network_has_its_one_pooled_feature():
    network = load_timm("resnet10t", pretrained=False)
    assert network.feature("mean", "last", 4) == Feature((0,), "whole")
    with torch.no_grad():
        assert network.features(IMAGES, [0], "whole").shape == (2, network.width)
    with pytest.raises(ValueError, match="encoder=timm:resnet10t has no tokens"):
        network.tokens(IMAGES, [0])


def test_what_it_was_trained_on_comes_from_timm():
    network = load_timm("vit_tiny_patch16_224", pretrained=False)
    assert (network.height_width, network.channels, network.patch_size) == ((224, 224), 3, 16)
    assert set(network.metadata) == {"mean", "std"}


def test_the_random_control_is_the_seeds():
    network = load_timm("resnet10t", pretrained=False, seed=4)
    again, other = network.random(4), network.random(5)
    states = [model.module.state_dict() for model in (network, again, other)]
    torch.testing.assert_close(states[0], states[1], atol=0, rtol=0)
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"encoder=timm:resnet18x: timm has no model .* \(did you mean resnet18d?\?\)"):
        load_timm("resnet18x")


def test_without_network_it_is_one_line(monkeypatch):
    def offline(*given, **options):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        OSError, match=r"encoder=timm:resnet18: its weights could not be had \(no route to host and much more\)"
    ) as e:
        load_timm("resnet18")
    assert "\n" not in str(e.value)
