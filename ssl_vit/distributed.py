"""The one place that speaks to other processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from jaxtyping import Bool, Shaped
from torch import Tensor


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """(rank, processes) of the processes that torchrun started, joined inside; (0, 1) in a process started alone.

    They exchange tensors on the CPU (gloo).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def interleaved(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
    """The rows of all processes, equally many of each: every process's first, then every second; alone the tensor."""
    if not _several():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


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


def any_of_ranks(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether a flag is set in any process of a run; in a single process the flag itself."""
    if not _several():
        return flag
    known = flag.to(torch.uint8)
    dist.all_reduce(known, dist.ReduceOp.MAX)
    return known.bool()


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first process's tensor on all of them; in a single process the tensor itself."""
    if not _several():
        return tensor
    shared = tensor.clone()
    dist.broadcast(shared, 0)
    return shared


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
