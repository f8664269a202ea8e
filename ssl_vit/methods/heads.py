"""DINO's projection head (arXiv:2104.14294, appendix C). Letters: n vectors, D, d widths in and out, K prototypes."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.config.pretrain_schema import DINOConfig
from ssl_vit.models.blocks import init_linear
from ssl_vit.parallel.distributed import is_distributed, mean_over_ranks, world_size


class ScaledProduct(torch.autograd.Function):
    """x v^T with each row of v brought to length g, in float32: F.linear(x, g * v / |v|).

    With K = 65,536 v is the largest tensor of all, and a step is spent on copies of it: unit vectors, those in bf16,
    both gradients. Here lengths are divided out of the outputs, and the gradient of v is one buffer.
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
        along = (grads[0] * product).sum(0) / length  # [K]: how the loss moves with each row's length
        grad = grads[0] * (g[:, 0] / length)
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
    """BatchNorm over the vectors of all ranks, equally many of each. PyTorch's SyncBatchNorm is for GPUs alone."""

    def forward(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n D"]:  # pyright: ignore
        if not (self.training and is_distributed()):
            return super().forward(x)
        mean = mean_over_ranks(x.float().mean(0))
        centered = x.float() - mean
        variance = mean_over_ranks(centered.square().mean(0))
        count = len(x) * world_size()
        self.running_mean.lerp_(mean.detach(), self.momentum)  # pyright: ignore
        self.running_var.lerp_(variance.detach() * (count / (count - 1)), self.momentum)  # pyright: ignore
        self.num_batches_tracked.add_(1)  # pyright: ignore[reportOptionalMemberAccess]
        return torch.addcmul(self.bias, centered * (variance + self.eps).rsqrt(), self.weight).to(x.dtype)


class ProjectionHead(nn.Module):
    """Three linear maps, unit length, prototypes."""

    def __init__(self, width: int, cfg: DINOConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, cfg.head_hidden):
            norm = [BatchNorm(cfg.head_hidden)] if cfg.head_norm else []
            layers += [nn.Linear(inputs, cfg.head_hidden), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(cfg.head_hidden, cfg.head_bottleneck))
        init_linear(self.mlp, "trunc_normal")
        self.last_layer = Prototypes(cfg.head_bottleneck, cfg.prototypes, learned_length=not cfg.norm_last_layer)

    def forward(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n K"]:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))
