"""Pretraining methods, found by name: a key of HOMES, or package.module:Class for one that lives elsewhere."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl_vit.methods.base import Method

HOMES = {"mae": "ssl_vit.methods.mae:MAE", "dino": "ssl_vit.methods.dino:DINO", "beit": "ssl_vit.methods.beit:BEiT"}


def method_named(name: str) -> "type[Method]":
    """The class of `method=name`; the configuration has checked that it exists."""
    module, _, cls = HOMES.get(name, name).partition(":")
    return getattr(importlib.import_module(module), cls)
