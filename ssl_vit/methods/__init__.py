"""Pretraining methods, found by name: a key of METHODS, or package.module:Class for one that lives elsewhere."""

from typing import Any

from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.recipes import load_class


def method_named(name: str) -> Any:
    """The Method class of `method=name`; the configuration has checked that it exists."""
    return load_class(METHODS[name].home if name in METHODS else name)
