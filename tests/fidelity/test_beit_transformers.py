"""BEiT against transformers.BeitForMaskedImageModeling: same weights, same mask, same scores, loss and gradients."""

import pytest
import torch
from transformers import BeitConfig, BeitForMaskedImageModeling
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from ssl_vit.methods.beit import BEiT
from ssl_vit.models.pos_embed import relation_index

VOCABULARY = 64


class FirstPixel(torch.nn.Module):
    """Tokens by the first pixel of each 8 x 8 patch."""

    vocab_size = VOCABULARY

    def forward(self, images):
        return (images[:, 0, ::8, ::8] * (VOCABULARY - 1)).long().flatten(1)


def reference_model(relative: bool) -> BeitForMaskedImageModeling:
    torch.manual_seed(3)
    model = BeitForMaskedImageModeling(
        BeitConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            image_size=48,
            patch_size=8,
            vocab_size=VOCABULARY,
            use_mask_token=True,
            use_shared_relative_position_bias=relative,
            use_absolute_position_embeddings=not relative,
            layer_norm_eps=1e-6,
        )
    )
    for parameter in model.parameters():  # biases and tables away from 0, so that a swapped one shows
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def ours_from(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names from theirs; queries, keys and values are joined, and keys get a bias of 0."""
    embeddings = "beit.embeddings."
    named = {
        "encoder.cls_token": theirs[embeddings + "cls_token"],
        "mask_token": theirs[embeddings + "mask_token"],
        "encoder.patch_embed.proj.weight": theirs[embeddings + "patch_embeddings.projection.weight"],
        "encoder.patch_embed.proj.bias": theirs[embeddings + "patch_embeddings.projection.bias"],
    }
    if "beit.shared_position_bias.relative_position_bias_table" in theirs:
        table = theirs["beit.shared_position_bias.relative_position_bias_table"]
        named["encoder.rel_pos_bias.relative_position_bias_table"] = table
    else:
        named["encoder.pos_embed"] = theirs[embeddings + "position_embeddings"]
    for ours, other in {"encoder.norm": "layernorm", "head": "lm_head"}.items():
        named |= {f"{ours}.{part}": theirs[f"{other}.{part}"] for part in ("weight", "bias")}
    for i in range(3):
        ours, other = f"encoder.blocks.{i}", f"beit.layers.{i}"
        named |= {f"{ours}.ls{j}.gamma": theirs[f"{other}.lambda_{j}"] for j in (1, 2)}
        for part, name in BLOCK.items():
            named |= {f"{ours}.{part}.{kind}": theirs[f"{other}.{name}.{kind}"] for kind in ("weight", "bias")}
        weights = [theirs[f"{other}.attention.{which}_proj.weight"] for which in "qkv"]
        q, v = (theirs[f"{other}.attention.{which}_proj.bias"] for which in "qv")
        named[f"{ours}.attn.qkv.weight"] = torch.cat(weights)
        named[f"{ours}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return named


def method(relative: bool) -> BEiT:
    encoder = {"embed_dim": 48, "depth": 3, "num_heads": 4, "patch_size": 8, "image_size": 48, "drop_path": 0.0}
    positions = "relative" if relative else "learned"
    return BEiT(encoder | {"pos_embed": positions, "init_values": 0.1, "init": "beit"}, tokenizer=FirstPixel())


@pytest.mark.parametrize("relative", [True, False])
def test_scores_loss_and_gradients_are_those_of_transformers(relative):
    reference, ours = reference_model(relative), method(relative)
    ours.load_state_dict(ours_from(reference.state_dict()))
    images, pixels = torch.randn(3, 3, 48, 48), torch.rand(3, 3, 48, 48)
    mask = ours.random_masks(3)
    expected = reference(images, bool_masked_pos=mask).logits[mask]
    hidden = mask.flatten().nonzero()[:, 0]
    torch.testing.assert_close(ours.predict(images, mask, hidden)["token"], expected, atol=1e-5, rtol=1e-5)

    tokens = FirstPixel()(pixels)[mask]
    loss = torch.nn.functional.cross_entropy(expected, tokens)
    loss.backward()
    own = ours.losses([images, pixels], mask)["token"]
    own.backward()
    torch.testing.assert_close(own, loss, atol=1e-5, rtol=1e-5)
    gradients = {
        name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in reference.named_parameters()
    }
    expected_gradients = ours_from(gradients)
    for name, parameter in ours.named_parameters():
        gradient = parameter.grad
        if name.endswith("qkv.bias"):  # keys have a bias here, which changes nothing: its gradient is 0
            gradient = gradient.clone()
            torch.testing.assert_close(gradient[48:96], torch.zeros(48), atol=1e-6, rtol=0)
            gradient[48:96] = 0
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grid", [(14, 14), (3, 5)])
def test_relations_are_numbered_as_the_authors_number_them(grid):
    index = relation_index(*grid)
    config = BeitConfig(image_size=(grid[0] * 16, grid[1] * 16), patch_size=16)
    reference = BeitRelativePositionBias(config)
    expected = reference.generate_relative_position_index(grid)
    assert torch.equal(index, expected)


def test_relations_of_the_base_model():
    index = relation_index(14, 14)
    assert index.max() == 731
    assert index[0, 0] == 731
    assert (index[0, 1:] == 729).all()
    assert (index[1:, 0] == 730).all()
