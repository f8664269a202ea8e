"""The control that shows whether BEiT's tokens matter: the tokens of each image, shuffled over its patches.

PYTHONPATH=. python tools/pretrain.py method=tests.methods.shuffled:ShuffledBEiT recipe=configs/beit/digits.yaml
"""

import torch

from ssl_vit.methods.beit import BEiT


class ShuffledBEiT(BEiT):
    """BEiT, but the target at a patch is that of a random patch of the same image, drawn anew each step."""

    def tokens_of(self, pixels):
        tokens = super().tokens_of(pixels)
        order = torch.rand(tokens.shape, device=tokens.device).argsort(1)
        return tokens.gather(1, order)
