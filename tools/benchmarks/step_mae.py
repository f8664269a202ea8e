"""One step of MAE (He et al., 2022, arXiv:2111.06377): ours, lightly's parts, transformers' model.

All hide the same share of the patches by random numbers of their own, have the paper's decoder and normalized targets,
and draw the mask, predict the hidden patches, and move all weights by AdamW.

Letters: B images.
"""

import warnings

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from benchmarks import baselines
from benchmarks.baselines import Step, StepSetting, require_peers, stepping
from ssl_vit.config.schema import SIZES
from ssl_vit.methods.mae import MAE

IMAGE, PATCH, MASK_RATIO = 224, 16, 0.75
DECODER = {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16}


def batch_of(batch_size: int, setting: StepSetting) -> Float[Tensor, "B 3 H W"]:
    """Noise for images, on the device."""
    return setting.noise(batch_size, 3, IMAGE, IMAGE)


def ours(setting: StepSetting) -> Step:
    """The step as MAE does it in a trainer."""
    encoder = {"size": setting.size, "image_size": IMAGE, "patch_size": PATCH}
    method = MAE(encoder, mask_ratio=MASK_RATIO, **DECODER).to(setting.device).train()
    return baselines.ours(setting, method, method.losses)


class LightlyMAE(nn.Module):
    """MAE from lightly's masked timm transformer and decoder, put together as its documentation has it."""

    def __init__(self, size: str) -> None:
        super().__init__()
        from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
        from timm.models.vision_transformer import VisionTransformer

        width, depth, heads = SIZES[size]
        vit = VisionTransformer(
            IMAGE, PATCH, num_classes=0, global_pool="", embed_dim=width, depth=depth, num_heads=heads
        )
        self.backbone = MaskedVisionTransformerTIMM(vit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of a new name
            self.decoder = MAEDecoderTIMM(
                num_patches=vit.patch_embed.num_patches,
                patch_size=PATCH,
                embed_dim=width,
                decoder_embed_dim=DECODER["decoder_embed_dim"],
                decoder_depth=DECODER["decoder_depth"],
                decoder_num_heads=DECODER["decoder_num_heads"],
            )

    def masks(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        """Tokens that are kept and hidden, the class token, 0, kept."""
        from lightly.models.utils import random_token_mask

        size = (len(images), self.backbone.sequence_length)
        return random_token_mask(size, MASK_RATIO, device=images.device)

    def forward(
        self, images: Float[Tensor, "B 3 H W"], kept: Int[Tensor, "B _"], hidden: Int[Tensor, "B _"]
    ) -> Float[Tensor, ""]:
        """The loss."""
        from lightly.models.utils import get_at_index, patchify, repeat_token, set_at_index

        tokens = self.decoder.embed(self.backbone.encode(images, idx_keep=kept))
        every = repeat_token(self.decoder.mask_token, (len(images), self.backbone.sequence_length))
        decoded = self.decoder.decode(set_at_index(every, kept, tokens.type_as(every)))
        prediction = self.decoder.predict(get_at_index(decoded, hidden))
        pixels = get_at_index(patchify(images, PATCH), hidden - 1)
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
        return F.mse_loss(prediction.float(), (pixels - mean) / (variance + 1e-6).sqrt())


def lightly_parts(setting: StepSetting) -> Step:
    """The step of LightlyMAE."""
    require_peers("timm")
    model = LightlyMAE(setting.size).to(setting.device).train()
    setting.compile([*model.backbone.vit.blocks, *model.decoder.decoder_blocks])  # pyright: ignore
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return stepping(setting, lambda images: model(images, *model.masks(images)), trained)


def transformers_model(setting: StepSetting) -> Step:
    """The step of transformers' ViTMAEForPreTraining."""
    require_peers("transformers")
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        **baselines.transformers_shape(setting.size, IMAGE, PATCH),
        decoder_hidden_size=DECODER["decoder_embed_dim"],
        decoder_num_hidden_layers=DECODER["decoder_depth"],
        decoder_num_attention_heads=DECODER["decoder_num_heads"],
        decoder_intermediate_size=4 * DECODER["decoder_embed_dim"],
        layer_norm_eps=1e-6,
        norm_pix_loss=True,
        mask_ratio=MASK_RATIO,
    )
    model = ViTMAEForPreTraining(config).to(setting.device).train()  # pyright: ignore
    setting.compile([*model.vit.layers, *model.decoder.decoder_layers])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return stepping(setting, lambda images: model(images).loss, trained)


BASELINES = {"ours": ours, "lightly + timm": lightly_parts, "transformers": transformers_model}
