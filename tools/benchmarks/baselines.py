"""What all steps have in common: machine, precision, size, and what comes after the loss; ours and the baselines'."""

import importlib.util
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_vit.config.schema import SIZES
from ssl_vit.methods.base import Method
from ssl_vit.models.blocks import compile_blocks
from ssl_vit.optim.param_groups import decay_groups

Step = Callable[[Any], Tensor]
"""Batch to the loss, after everything a step does."""
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class StepSetting:
    """Where a step runs, how precisely, and on how large an encoder."""

    device: torch.device
    size: str
    """A name of config.schema.SIZES."""
    bf16: bool = True
    """Autocast, as trainers do it; else float32."""
    compiled: bool = False
    """torch.compile each transformer block."""

    def noise(self, *shape: int) -> Tensor:
        """What stands for normalized images."""
        return torch.randn(*shape, device=self.device)

    def compile(self, blocks: Iterable[nn.Module]) -> None:
        """torch.compile each of a peer's blocks, where ours are compiled."""
        for block in blocks if self.compiled else ():
            block.compile()


def require_peers(*names: str) -> None:
    """ImportError, in one line, unless these libraries are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"suite=step compares with {' and '.join(missing)}: pip install {' '.join(missing)}")


def stepping(
    setting: StepSetting,
    loss: Callable[[Any], Tensor],
    parameters: Iterable[Any],
    clip: Callable[[], object] = lambda: None,
    after: Callable[[], object] = lambda: None,
) -> Step:
    """A step of AdamW: loss, backward pass, clipping, the weights' move, and what a method does after it.

    Args:
        parameters: or groups of them.
    """
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def step(batch: Any) -> Tensor:
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=setting.bf16):
            value = loss(batch)
        value.backward()
        clip()
        optimizer.step()
        optimizer.zero_grad()
        after()
        return value.detach()

    return step


def ours(
    setting: StepSetting,
    method: Method,
    losses: Callable[[Any], dict[str, Tensor]],
    clip: Callable[[], object] = lambda: None,
) -> Step:
    """The step of a method as it does it in a trainer."""
    if setting.compiled:
        compile_blocks(method)
    groups = decay_groups(method.named_parameters(), method.optim_config.weight_decay, method.decays)

    def loss(batch: Any) -> Tensor:
        (value,) = losses(batch).values()
        return value

    return stepping(setting, loss, groups, clip, method.after_step)


def timed(step: Step, batch: Any, device: torch.device) -> float:
    """Seconds of one step, the device's work included."""
    start = time.perf_counter()
    step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def transformers_shape(size: str, image_size: int, patch_size: int) -> dict[str, Any]:
    """The keyword arguments by which transformers' configurations name an encoder's shape; sizes in pixels."""
    width, depth, heads = SIZES[size]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shape = dict(zip(names, (width, depth, heads, 4 * width), strict=True))
    return shape | {"image_size": image_size, "patch_size": patch_size}
