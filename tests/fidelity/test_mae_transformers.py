"""MAE against transformers.ViTMAEForPreTraining: same weights, same noise, same loss and gradients."""

import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from ssl_vit.methods.mae import MAE

ENCODER = {"embed_dim": 48, "depth": 3, "num_heads": 4, "patch_size": 8, "image_size": 48}


def reference_model(norm_pix: bool, mask_ratio: float) -> ViTMAEForPreTraining:
    torch.manual_seed(3)
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=192,
            image_size=48,
            patch_size=8,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=4,
            decoder_intermediate_size=128,
            layer_norm_eps=1e-6,
            norm_pix_loss=norm_pix,
            mask_ratio=mask_ratio,
        )
    )
    for parameter in model.parameters():  # biases away from 0, so that a swapped one shows
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def ours_from(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our names from theirs, for weights and for gradients alike; queries, keys and values are joined."""
    named = {
        "encoder.cls_token": tensors["vit.embeddings.cls_token"],
        "encoder.patch_embed.proj.weight": tensors["vit.embeddings.patch_embeddings.projection.weight"],
        "encoder.patch_embed.proj.bias": tensors["vit.embeddings.patch_embeddings.projection.bias"],
        "decoder.mask_token": tensors["decoder.mask_token"],
    }
    for ours, theirs in {
        "encoder.norm": "vit.layernorm",
        "decoder.embed": "decoder.decoder_embed",
        "decoder.norm": "decoder.decoder_norm",
        "decoder.pred": "decoder.decoder_pred",
    }.items():
        named |= {f"{ours}.{part}": tensors[f"{theirs}.{part}"] for part in ("weight", "bias")}
    for ours, theirs, depth in (("encoder.blocks", "vit.layers", 3), ("decoder.blocks", "decoder.decoder_layers", 2)):
        for i in range(depth):
            for part in ("weight", "bias"):
                for mine, other in BLOCK.items():
                    named[f"{ours}.{i}.{mine}.{part}"] = tensors[f"{theirs}.{i}.{other}.{part}"]
                qkv = [tensors[f"{theirs}.{i}.attention.{letter}_proj.{part}"] for letter in "qkv"]
                named[f"{ours}.{i}.attn.qkv.{part}"] = torch.cat(qkv)
    return named


def test_position_tables_agree():
    embeddings = reference_model(True, 0.75).vit.embeddings
    embeddings.patch_embeddings.projection._is_hf_initialized = False  # transformers 5 skips its own table otherwise
    embeddings.initialize_weights()
    table = MAE(ENCODER).encoder.pos_embed
    torch.testing.assert_close(table, embeddings.position_embeddings.data, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.4])
def test_loss_and_gradients_agree(norm_pix, mask_ratio):
    reference = reference_model(norm_pix, mask_ratio)
    method = MAE(
        ENCODER, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4, norm_pix=norm_pix, mask_ratio=mask_ratio
    )
    missing, unexpected = method.load_state_dict(ours_from(reference.state_dict()), strict=False)
    assert set(missing) == {"encoder.pos_embed", "decoder.pos_embed"}  # fixed tables
    assert not unexpected
    reference.vit.embeddings.position_embeddings.data.copy_(method.encoder.pos_embed)
    reference.decoder.decoder_pos_embed.data.copy_(method.decoder.pos_embed)
    images, noise = torch.randn(4, 3, 48, 48), torch.rand(4, 36)
    expected = reference(images, noise=noise).loss
    loss = method.losses(images, noise)["reconstruction"]
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    expected.backward()
    loss.backward()
    wanted = ours_from({name: p.grad for name, p in reference.named_parameters() if p.requires_grad})
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(
            parameter.grad, wanted[name], atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
