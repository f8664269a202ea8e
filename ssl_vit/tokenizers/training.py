"""Objectives of the tokenizers that are learned by gradient."""

from pathlib import Path
from typing import Any

from ssl_vit.config.recipes import load_class
from ssl_vit.config.tokenizer_schema import TOKENIZERS, TokenizerConfig
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.methods.base import Objective
from ssl_vit.tokenizers.base import save_tokenizer


def crop_of(config: TokenizerConfig) -> RandomCrop:
    """The augmentation that every tokenizer is trained on."""
    return RandomCrop(config.height_width, config.crop_scale, flip=config.flip)


class TokenizerTraining(Objective):
    """An objective whose result is a tokenizer. Images are in [0, 1]."""

    tokenizer: Any
    """A Tokenizer, of the kind that its training is for."""

    def transform(self) -> RandomCrop:
        return crop_of(self.config)

    def export(self, folder: Path, **metadata: Any) -> Path:
        """Write the tokenizer."""
        return save_tokenizer(self.tokenizer, folder, **metadata)


def training_named(kind: str) -> type[TokenizerTraining]:
    """The objective of a kind of tokenizer."""
    return load_class(TOKENIZERS[kind].training)
