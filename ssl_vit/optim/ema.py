"""Teachers: a frozen copy of a network that follows it as an exponential moving average."""

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def frozen_copy(network: Network) -> Network:
    """A deep copy in eval mode whose parameters take no gradient; it shares no memory with the original."""
    return copy.deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameters alone (arXiv:2104.14294, section 3.1)."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)  # pyright: ignore[reportPrivateImportUsage]
