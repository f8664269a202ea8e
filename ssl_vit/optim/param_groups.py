"""Parameter groups, the learning-rate rule, norms of gradients and clipping by each."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ssl_vit.parallel.distributed import is_sharded, local_shards, norms

Named = Iterable[tuple[str, nn.Parameter]]
Decays = Callable[[str, Tensor], bool]


def scaled_lr(base_lr: float, global_batch: int) -> float:
    """Learning rate for a global batch, linear in it: base_lr is per 256 images (arXiv:1706.02677)."""
    return base_lr * global_batch / 256


def decay_groups(named: Named, weight_decay: float, decays: Decays) -> list[dict[str, Any]]:
    """Two groups for AdamW: what `decays(name, parameter)` decays, then the rest; frozen parameters in neither."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        if parameter.requires_grad:
            groups[decays(name, parameter)].append(parameter)
    return [{"params": groups[decayed], "weight_decay": weight_decay * decayed} for decayed in groups]


def layer_groups(
    named: Named, weight_decay: float, decays: Decays, layer_of: Callable[[str], int], layers: int, decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW by layer, in 0 .. layers, and by what decays, lowest layer first; frozen parameters in none.

    `scale` of a group is what its learning rate is multiplied by: decay ** (layers - layer), so 1 for the top layer
    (ELECTRA, arXiv:2003.10555; as MAE's and BEiT's authors have it).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            groups.setdefault((layer_of(name), decays(name, parameter)), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay * decayed, "scale": decay ** (layers - layer)}
        for (layer, decayed), parameters in sorted(groups.items())
    ]


def adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW on groups; a resumed checkpoint brings moments, while betas and weight decay stay those given."""
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    given = [{name: group[name] for name in ("betas", "weight_decay")} for group in optimizer.param_groups]

    def keep(loaded: torch.optim.Optimizer) -> None:
        for group, own in zip(loaded.param_groups, given, strict=True):
            group |= own

    optimizer.register_load_state_dict_post_hook(keep)
    return optimizer


def average_gradients(parameters: Iterable[nn.Parameter], batches: int, accumulate: int) -> None:
    """Make gradients the mean over a step's batches: Lightning has divided by `accumulate`, also at an epoch's end."""
    if batches < accumulate and (grads := [p.grad for p in parameters if p.grad is not None]):
        torch._foreach_mul_(local_shards(grads), accumulate / batches)  # pyright: ignore[reportPrivateImportUsage]


def clip_each(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """Scale each parameter's own gradient down to the norm `largest`, if it is above (as DINO's authors clip)."""
    grads = [p.grad for p in parameters if p.grad is not None]
    scales = (largest / (norms(grads) + 1e-6)).clamp_max(1.0)
    torch._foreach_mul_(local_shards(grads), list(scales.unbind()))  # pyright: ignore[reportPrivateImportUsage]


def grad_norm(parameters: Iterable[nn.Parameter]) -> Float[Tensor, ""]:
    """2-norm of all gradients together, whole ones where they are sharded."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if is_sharded(norm) else norm  # pyright: ignore[reportAttributeAccessIssue]
