"""Skips optimizer steps whose loss or gradient is not finite, on all ranks together."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_vit.parallel.distributed import any_of_ranks


class DivergenceError(FloatingPointError):
    """Too many steps in a row whose loss or gradient was not finite."""


@dataclass(frozen=True)
class SkippedStep:
    """A step that was skipped."""

    step: int
    """Optimizer steps before it."""
    epoch: int
    why: str
    """loss or gradient, where this rank found it; else another process."""
    images: list[int]
    """Indices of this rank's images, of all its batches; empty where batches have none."""


class Guard:
    """Checks each optimizer step before it is taken; a step is skipped on all ranks or on none."""

    def __init__(self) -> None:
        self.skipped = False
        """Whether the last step was skipped."""
        self.in_a_row = 0
        """Steps skipped since the last sound one."""
        self.found: list[SkippedStep] = []
        """Skipped steps that SkippedSteps has not written yet."""
        self._losses: list[Bool[Tensor, ""]] = []
        self._index: list[Tensor] = []

    def watch(self, loss: Float[Tensor, ""], batch: Any) -> None:
        """Remember whether a batch's loss is finite, and which images it was of."""
        self._losses.append(loss.detach().isfinite())
        if isinstance(batch, dict) and "index" in batch:
            self._index.append(batch["index"])

    def check(self, grad_norm: Float[Tensor, ""] | None, step: int, epoch: int) -> bool:
        """Whether the step may be taken. grad_norm: of all gradients together; None under a loss scale."""
        sound = torch.stack(self._losses).all()
        finite = sound if grad_norm is None else sound & grad_norm.isfinite()
        self.skipped = bool(any_of_ranks(~finite))  # waits for the device; the one flag that travels from it in a step
        self.in_a_row = self.in_a_row + 1 if self.skipped else 0
        if self.skipped:
            why = "another process" if finite else "gradient" if sound else "loss"
            self.found.append(SkippedStep(step, epoch, why, [int(i) for batch in self._index for i in batch]))
        self._losses, self._index = [], []
        return not self.skipped
