"""Parameter groups, the learning-rate rule, clipping, and a guard before each step."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.distributed import local_parts, norms


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


def layer_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    decays: Callable[[str, Tensor], bool],
    layer_of: Callable[[str], int],
    layers: int,
    decay: float,
) -> list[dict[str, Any]]:
    """Groups for AdamW by layer and by what decays, lowest layer first; frozen parameters in none.

    `scale` of a group is what its learning rate is multiplied by: decay ** (layers - layer), so 1 for the top layer
    (ELECTRA, arXiv:2003.10555; as MAE's and BEiT's authors have it).

    Args:
        layer_of: name of a parameter -> its layer, in 0 .. layers.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            groups.setdefault((layer_of(name), decays(name, parameter)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay * decayed, "scale": decay ** (layers - layer)}
        for (layer, decayed), parameters in sorted(groups.items())
    ]


def clip_each(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale each parameter's own gradient down to the norm `largest`, if it is above (as DINO's authors clip)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    scales = (largest / (norms(grads) + 1e-6)).clamp_max(1.0)
    torch._foreach_mul_(local_parts(grads), list(scales.unbind()))  # pyright: ignore[reportPrivateImportUsage]


class Finite:
    """Stops a run whose loss is no number before it reaches the weights.

    On a GPU the answer travels to the CPU beside the backward pass: nothing waits for the device.
    """

    def __init__(self) -> None:
        self._verdicts: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def watch(self, loss: Float[Tensor, ""]) -> None:
        """Remember whether a batch's loss is finite."""
        finite = loss.detach().isfinite()
        if not finite.is_cuda:
            self._verdicts.append((finite, None))
            return
        answer = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._verdicts.append((answer, event))

    def check(self, step: int) -> None:
        """Before the optimiser steps. FloatingPointError where a loss since the last check was not finite."""
        verdicts, self._verdicts = self._verdicts, []
        for answer, event in verdicts:
            if event is not None:
                event.synchronize()
            if not answer:
                raise FloatingPointError(
                    f"the loss is not finite at step {step}; the weights have not moved. Lower optim.base_lr, set "
                    "optim.clip_grad=1, or train with trainer.precision=32-true"
                )
