"""Laws of the encoder."""

import pytest
import torch

from ssl_vit.config.schema import EncoderConfig
from ssl_vit.models.blocks import attend
from ssl_vit.models.vit import VisionTransformer, patchify

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 4, "image_size": 16}


def make(**options) -> VisionTransformer:
    return VisionTransformer(**{**SMALL, **options}).eval()


def test_forward_is_patchify_then_add_pos_embed_then_encode():
    encoder, images = make(), torch.randn(2, 3, 16, 16)
    located = encoder.add_pos_embed(encoder.patchify(images), 4, 4)
    assert encoder(images).shape == (2, 17, 32)
    assert torch.equal(encoder(images), encoder.encode(located))


@pytest.mark.parametrize("positions", ["learned", "sincos"])
@pytest.mark.parametrize("registers", [0, 3])
def test_chosen_patches_are_those_of_the_whole_image(positions, registers):
    encoder, images = make(pos_embed=positions, num_registers=registers), torch.randn(2, 3, 16, 16)
    index = torch.tensor([[5, 0, 15], [2, 2, 7]])
    whole = encoder.add_pos_embed(encoder.patchify(images), 4, 4)
    chosen = encoder.add_pos_embed(encoder.patchify(images, index), 4, 4, index)
    torch.testing.assert_close(chosen, torch.stack([whole[b, index[b]] for b in range(2)]))


def test_encode_does_not_care_for_the_order_of_patches():
    encoder, patches = make(), torch.randn(2, 16, 32)
    order = torch.randperm(16)
    torch.testing.assert_close(encoder.encode(patches)[:, 1:][:, order], encoder.encode(patches[:, order])[:, 1:])


def test_patches_are_row_major_and_hold_channel_row_column():
    images = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    pixels = patchify(images, 2)
    assert pixels.shape == (2, 6, 12)
    assert torch.equal(pixels[1, 4], images[1, :, 2:4, 2:4].flatten())  # second row of patches, second column


def test_patch_embedding_is_the_convolution_it_is_named_after():
    encoder, images = make(), torch.randn(2, 3, 16, 16)
    expected = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patchify(images), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (12, 20)])
def test_any_image_size_goes_through_a_resampled_grid(size):
    h, w = size[0] // 4, size[1] // 4
    for positions in ("learned", "sincos"):
        encoder = make(pos_embed=positions)
        images = torch.randn(1, 3, *size)
        assert encoder(images).shape == (1, 1 + h * w, 32)
        assert encoder.attention_maps(images).shape == (1, 4, h * w)
        assert [m.shape for m in encoder.feature_maps(images, [0, -1])] == [(1, 32, h, w)] * 2


def test_a_tall_training_image_and_many_channels():
    encoder = make(image_size=[16, 8], channels=5)
    assert encoder.grid == (4, 2)
    assert encoder(torch.randn(1, 5, 16, 8)).shape == (1, 9, 32)


def test_features_pool_class_token_and_mean_of_patches():
    encoder, images = make(), torch.randn(2, 3, 16, 16)
    tokens = encoder(images)
    assert torch.equal(encoder.features(images), tokens[:, 0])
    assert torch.equal(encoder.features(images, pool="mean"), tokens[:, 1:].mean(1))
    assert torch.equal(encoder.features(images, pool="both"), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert encoder.features(images, layers=[0, 1, -1]).shape == (2, 96)
    with pytest.raises(ValueError, match=r"pool=clss must be one of cls, mean, both \(did you mean cls\?\)"):
        encoder.features(images, pool="clss")


def test_attention_maps_are_the_weights_that_the_block_used():
    encoder, images = make(depth=1), torch.randn(2, 3, 16, 16)
    block = encoder.blocks[0]
    x = block.norm1(encoder.with_class_token(encoder.embed(images)))
    q, k, v = block.attn.split_heads(block.attn.qkv(x))
    weights = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1)
    torch.testing.assert_close(encoder.attention_maps(images), weights[:, :, 0, 1:])
    torch.testing.assert_close(attend(q, k, v), weights @ v, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "output", "gradient"), [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 0.02, 0.06)])
def test_attention_on_a_cpu_agrees_with_the_fused_kernel_gradients_included(biased, dtype, output, gradient):
    # bf16 keeps 8 bits: 2 ** -8 of values of order one, a few operations deep.
    tensors = [torch.randn(2, 3, 37, 16) for _ in range(3)] + [torch.randn(3, 37, 37)] * biased

    def passes(attention, dtype):
        q, k, v, *bias = leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        result = attention(*(tensor.to(dtype) for tensor in (q, k, v)), *bias).float()
        result.square().sum().backward()
        return result.detach(), [leaf.grad for leaf in leaves]

    expected = passes(torch.nn.functional.scaled_dot_product_attention, torch.float32)
    given = passes(attend, dtype)
    torch.testing.assert_close(given[0], expected[0], atol=output, rtol=output)
    torch.testing.assert_close(given[1], expected[1], atol=gradient, rtol=gradient)


@pytest.mark.parametrize(
    ("dtype", "biased", "learns", "fused"),
    [
        (torch.float32, False, True, True),
        (torch.float32, True, True, False),
        (torch.bfloat16, False, True, False),
        (torch.bfloat16, False, False, True),
        (torch.bfloat16, True, False, False),
    ],
)
def test_a_cpu_takes_the_faster_way_to_attend(monkeypatch, dtype, biased, learns, fused):
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", lambda *x: calls.append(1) or kernel(*x))
    q, k, v = torch.randn(3, 2, 3, 5, 16, dtype=dtype, requires_grad=learns)
    attend(q, k, v, torch.randn(3, 5, 5) if biased else None)
    assert bool(calls) == fused


def test_checkpointed_blocks_give_the_same_gradients():
    images, grads = torch.randn(2, 3, 16, 16), []
    plain = make()
    for grad_checkpointing in (False, True):
        encoder = make(grad_checkpointing=grad_checkpointing).train()
        encoder.load_state_dict(plain.state_dict())
        encoder(images).square().mean().backward()
        grads.append([parameter.grad for parameter in encoder.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_drop_path_drops_whole_images_in_training_only_and_keeps_the_mean():
    encoder = make(drop_path=0.5)
    assert [block.drop_path.rate for block in encoder.blocks] == [0.0, 0.25, 0.5]
    drop = encoder.blocks[-1].drop_path
    x, layout = torch.ones(8000, 3), [(1000, 2), (2000, 3)]
    assert torch.equal(drop(x, layout), x)
    dropped = drop.train()(x, layout)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    for sequences in (dropped[:2000].view(1000, 6), dropped[2000:].view(2000, 9)):
        assert torch.equal(sequences.amin(1), sequences.amax(1))
    assert abs(dropped.mean() - 1) < 0.08  # four standard errors of 3000 coin flips of 0 or 2


@pytest.mark.parametrize("options", [{}, {"num_registers": 2}, {"grad_checkpointing": True}, {"init_values": 0.1}])
def test_batches_packed_together_equal_each_alone_gradients_included(options):
    encoder = make(**options).train()
    large, small = torch.randn(3, 16, 32), torch.randn(5, 4, 32)
    alone = [encoder.encode(large), encoder.encode(small)]
    packed = encoder.encode_many([large, small])
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)
    weights = [torch.randn_like(tokens) for tokens in packed]
    grads = []
    for outputs in (alone, packed):
        total = sum((tokens * weight).sum() for tokens, weight in zip(outputs, weights, strict=True))
        grads.append(torch.autograd.grad(total, [p for n, p in encoder.named_parameters() if "blocks" in n]))
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-4)


def test_a_fixed_position_table_is_a_buffer():
    encoder = make(pos_embed="sincos")
    assert "pos_embed" in encoder.state_dict()
    assert "pos_embed" not in dict(encoder.named_parameters())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 18, 16), "images are 18 x 16 pixels; both sides must be multiples of encoder.patch_size=4"),
        (torch.zeros(1, 1, 16, 16), "images have 1 channels, but encoder.channels=3"),
    ],
)
def test_images_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        make()(images)


def test_a_config_and_keywords_together_are_refused():
    with pytest.raises(ValueError, match="a config or keywords, not both"):
        VisionTransformer(EncoderConfig(), size="tiny")
