"""Heads on an encoder in training: DINO's projection head (arXiv:2104.14294, appendix C).

Letters: n vectors, D encoder width, d bottleneck width, K prototypes.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.models.blocks import init_linear
from ssl_vit.parallel.distributed import is_distributed, mean_over_ranks, world_size


class ScaledProduct(torch.autograd.Function):
    """x v^T with each row of v brought to length g, in float32: F.linear(x, g * v / |v|).

    With K = 65,536 the prototypes are the largest tensor of all, and a step is spent on making copies of it: of the
    unit vectors, of those in bf16, of both gradients. Here lengths are divided out of the outputs, and the gradient of
    v is one buffer.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Float[Tensor, "n d"], g: Float[Tensor, "K 1"], v: Float[Tensor, "K d"]
    ) -> Float[Tensor, "n K"]:
        length = torch.linalg.vector_norm(v, dim=1)  # [K]
        product = x @ v.T
        ctx.save_for_backward(x, g, v, length, product)
        return product * (g[:, 0] / length)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:  # pyright: ignore
        x, g, v, length, product = ctx.saved_tensors
        (grad,) = grads
        along = (grad * product).sum(0) / length  # [K]: how the loss moves with each row's length
        grad = grad * (g[:, 0] / length)
        grad_v = grad.T @ x
        grad_v.addcmul_(v, (along * g[:, 0] / length.square())[:, None], value=-1.0)
        return grad @ v, along[:, None] if ctx.needs_input_grad[1] else None, grad_v


class Prototypes(nn.Module):
    """Linear map without bias whose rows have a direction and a length; parameters named as the authors'."""

    def __init__(self, width: int, prototypes: int, learned_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=learned_length)
        self.weight_v = nn.Parameter(nn.Linear(width, prototypes, bias=False).weight.detach())

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n K"]:
        with torch.autocast(x.device.type, enabled=False):
            return ScaledProduct.apply(x.to(self.weight_v.dtype), self.weight_g, self.weight_v)  # pyright: ignore


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm over the vectors of all ranks, equally many of each; in a single process PyTorch's own.

    PyTorch's SyncBatchNorm does the same on GPUs alone.
    """

    def forward(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:  # pyright: ignore
        if not (self.training and is_distributed()):
            return super().forward(x)
        mean = mean_over_ranks(x.float().mean(0))
        centered = x.float() - mean
        variance = mean_over_ranks(centered.square().mean(0))
        self._update_running(mean.detach(), variance.detach(), len(x) * world_size())
        normed = centered * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias, normed, self.weight).to(x.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Float[Tensor, " D"], variance: Float[Tensor, " D"], count: int) -> None:
        """Move the running mean and the running unbiased variance, as PyTorch does."""
        assert self.momentum is not None  # torch's default, .1
        self.running_mean.lerp_(mean, self.momentum)  # pyright: ignore[reportOptionalMemberAccess]
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)  # pyright: ignore
        self.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]


class ProjectionHead(nn.Module):
    """Three linear maps, unit length, prototypes.

    Args:
        hidden, bottleneck: widths. norm: BatchNorm in the hidden layers. learned_length: of the prototypes, else 1.
    """

    def __init__(
        self, width: int, prototypes: int, *, hidden: int, bottleneck: int, norm: bool, learned_length: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers.append(nn.Linear(inputs, hidden))
            layers += [BatchNorm(hidden)] if norm else []
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        init_linear(self.mlp, "trunc_normal")
        self.last_layer = Prototypes(bottleneck, prototypes, learned_length)

    def forward(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))
