"""Parameter groups and the learning-rate rule."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


def scaled_lr(base_lr: float, global_batch: int) -> float:
    """Learning rate for a global batch, linear in it: base_lr is per 256 pictures (arXiv:1706.02677)."""
    return base_lr * global_batch / 256


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decays: Callable[[str, Tensor], bool]
) -> list[dict[str, Any]]:
    """Two groups for AdamW: what `decays(name, parameter)` decays, then the rest; frozen parameters in neither."""
    named = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    return [
        {"params": [p for name, p in named if decays(name, p)], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays(name, p)], "weight_decay": 0.0},
    ]
