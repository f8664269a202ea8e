"""The one place that speaks to other processes."""

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

_broadcasts = itertools.count()


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
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


def all_gather(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
    """The rows of all processes, equally many of each: every process's first, then every second; alone the tensor."""
    if not is_distributed():
        return rows
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes of a run; in a single process the tensor itself.

    Gradients flow back as through sum_over_ranks.
    """
    return sum_over_ranks(tensor) / world_size() if is_distributed() else tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes of a run; in a single process the tensor itself.

    The gradient is that of the sum of all processes' losses: each process gets the sum of what the others send back.
    """
    if not is_distributed():
        return tensor
    from torch.distributed.nn.functional import all_reduce  # here, because a single process needs none

    return all_reduce(tensor)


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor: its share of one that is spread over processes (a DTensor), else all."""
    return [tensor.to_local() if is_spread(tensor) else tensor for tensor in tensors]  # pyright: ignore


def is_spread(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, told without importing them, which takes seconds."""
    return hasattr(tensor, "full_tensor")


def norms(tensors: list[Tensor]) -> Float[Tensor, " n"]:
    """2-norm of each tensor; of tensors that are spread over processes, of all of each."""
    parts = torch.stack(torch._foreach_norm(local_parts(tensors)))  # pyright: ignore[reportPrivateImportUsage]
    if not any(is_spread(tensor) for tensor in tensors):
        return parts
    return sum_over_ranks(parts.square()).sqrt()


def broadcast_object(text: str) -> str:
    """The first process's text, on all of those that torchrun started."""
    store, rank, _ = next(rendezvous("env://"))  # torchrun's own, which stands before any process group
    key = f"ssl_vit/{next(_broadcasts)}"
    if rank == 0:
        store.set(key, text)
    return store.get(key).decode()


def any_of_ranks(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether a flag is set in any process of a run; in a single process the flag itself."""
    if not is_distributed():
        return flag
    known = flag.to(torch.uint8)
    dist.all_reduce(known, dist.ReduceOp.MAX)
    return known.bool()


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first process's tensor on all of them; in a single process the tensor itself."""
    if not is_distributed():
        return tensor
    shared = tensor.clone()
    dist.broadcast(shared, 0)
    return shared


def world_size() -> int:
    """How many processes a run has."""
    return dist.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    """Whether a run has more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class MaxOverRanks:
    """Tells every process of a run the largest number that any of them asked for, one call later and without waiting.

    Each process calls `ask` equally often. Alone it answers at once. The numbers travel between the CPUs (gloo), so no
    device is waited for; a process waits only for one that is a whole call behind.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if is_distributed() else None
        self._asked: tuple[Tensor, Any] | None = None

    def ask(self, number: int) -> int:
        """The largest number of the call before, the same on all processes; 0 at the first. Alone: the number."""
        if self._group is None:
            return number
        largest = torch.tensor(number)
        work = dist.all_reduce(largest, dist.ReduceOp.MAX, self._group, async_op=True)  # pyright: ignore
        before, self._asked = self._asked, (largest, work)
        if before is None:
            return 0
        broadcast_object, work = before
        work.wait()
        return int(broadcast_object)
