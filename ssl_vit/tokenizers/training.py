"""Tokenizers that are learnt by gradient: their objectives, by name."""

import importlib

from ssl_vit.objective import Objective
from ssl_vit.tokenizers.base import Tokenizer

TRAININGS = {"dvae": "ssl_vit.tokenizers.dvae:DVAETraining", "vqkd": "ssl_vit.tokenizers.vqkd:VQKDTraining"}


class TokenizerTraining(Objective):
    """An objective whose result is a tokenizer. Pictures are in [0, 1]."""

    tokenizer: Tokenizer


def training_named(kind: str) -> type[TokenizerTraining]:
    """The objective of a kind of tokenizer."""
    module, _, name = TRAININGS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
