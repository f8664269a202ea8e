"""Skips optimizer steps whose loss or gradient is not finite, on all ranks together."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ssl_vit.parallel.distributed import any_of_ranks

ADVICE = "Lower optim.base_lr, set optim.clip_grad=1, or train with trainer.precision=32-true"


class DivergenceError(FloatingPointError):
    """Too many steps whose loss or gradient was not finite."""


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

    def __init__(self, taken: int = 0) -> None:
        self.taken = taken
        """Steps that were not skipped, of the whole run."""
        self.skipped = False
        """Whether the last step was skipped."""
        self.in_a_row = 0
        """Steps skipped since the last sound one."""
        self.found: list[SkippedStep] = []
        """Skipped steps that SkippedSteps has not written yet."""
        self._losses: list[Bool[Tensor, ""]] = []
        self._index: list[Tensor] = []

    @property
    def batches(self) -> int:
        """Batches of the step at hand."""
        return len(self._losses)

    def watch(self, loss: Float[Tensor, ""], batch: Any) -> None:
        """Remember whether a batch's loss is finite, and which images it was of."""
        self._losses.append(loss.detach().isfinite())
        if isinstance(batch, dict) and "index" in batch:
            self._index.append(batch["index"])

    def require_fewer(self, most: int, step: int) -> None:
        """DivergenceError where so many steps in a row were skipped. step: optimizer steps before the one to come."""
        if self.in_a_row >= most:
            line = f"loss or gradient was not finite in {self.in_a_row} steps in a row before step {step}"
            raise DivergenceError(f"{line}; the weights have not moved since. {ADVICE}")

    def check(self, grad_norm: Float[Tensor, ""] | None, step: int, epoch: int) -> bool:
        """Whether the step may be taken. grad_norm: of all gradients together; None under a loss scale."""
        sound = torch.stack(self._losses).all()
        finite = sound if grad_norm is None else sound & grad_norm.isfinite()
        self.skipped = bool(any_of_ranks(~finite))  # waits for the device; the one flag that travels from it in a step
        self.in_a_row = self.in_a_row + 1 if self.skipped else 0
        self.taken += not self.skipped
        if self.skipped:
            why = "another process" if finite else "gradient" if sound else "loss"
            self.found.append(SkippedStep(step, epoch, why, [int(i) for batch in self._index for i in batch]))
        self._losses, self._index = [], []
        return not self.skipped
