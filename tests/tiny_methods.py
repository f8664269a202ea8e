"""MAE, DINO and BEiT as small as they go, on images of 16 pixels, for a Trainer of one's own."""

from typing import Any

from torch import nn

ENCODER = {"embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}
SMALL_HEAD = {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8}


class Brightness(nn.Module):
    """A tokenizer of a user's own: the brightness of each patch, in 8 steps."""

    vocab_size = 8

    def forward(self, images):
        return (nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4) * 8).long().clamp(0, 7).flatten(1)


OPTIONS: dict[str, dict[str, Any]] = {
    "MAE": {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
    "DINO": {"local_crops": 2, "local_size": 8, "blur_p": (0.0, 0.0, 0.0), **SMALL_HEAD},
    "BEiT": {"tokenizer": Brightness()},
}
