"""The one place that speaks to other processes."""

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes of a run; in a single process the tensor itself."""
    return sum_over_ranks(tensor) / dist.get_world_size() if _several() else tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes of a run; in a single process the tensor itself."""
    if not _several():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first process's tensor on all of them; in a single process the tensor itself."""
    if not _several():
        return tensor
    shared = tensor.clone()
    dist.broadcast(shared, 0)
    return shared


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
