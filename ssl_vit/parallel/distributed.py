"""Tensors exchanged between the processes of a run; in a single process every function here does nothing."""

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


def is_distributed() -> bool:
    """Whether a run has more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """How many processes a run has."""
    return dist.get_world_size() if is_distributed() else 1


@contextmanager
def process_group() -> Iterator[tuple[int, int]]:
    """(rank, world_size) of the processes that torchrun started, in one group inside (gloo); (0, 1) in a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield 0, 1
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def all_gather(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
    """The rows of all ranks, equally many of each, interleaved: the first of every rank, then the second of every."""
    if not is_distributed():
        return rows
    by_rank = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(by_rank, rows.contiguous())
    return torch.stack(by_rank, dim=1).flatten(0, 1)


class _Sum(torch.autograd.Function):
    """PyTorch's own of this kind is deprecated, and says so in every process."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore
        return sum_over_ranks(grads[0])


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks; its gradient is that of the sum of all ranks' losses."""
    return _Sum.apply(tensor) if is_distributed() else tensor  # pyright: ignore


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all ranks. Gradients flow back as through sum_over_ranks."""
    return sum_over_ranks(tensor) / world_size() if is_distributed() else tensor


def any_of_ranks(flag: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether a flag is set on any rank."""
    if is_distributed():
        flag = flag.to(torch.uint8)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return flag.bool()


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first rank's tensor, on all ranks."""
    if is_distributed():
        tensor = tensor.clone()
        dist.broadcast(tensor, 0)
    return tensor


def broadcast_object(text: str) -> str:
    """The first rank's text, on all ranks that torchrun started; needs no process group."""
    store, rank, _ = next(rendezvous("env://"))  # torchrun's own, which stands before any process group
    key = f"ssl_vit/{next(_broadcasts)}"
    if rank == 0:
        store.set(key, text)
    return store.get(key).decode()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor; found without importing them, which takes seconds."""
    return hasattr(tensor, "full_tensor")


def local_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this rank holds of each tensor: its shard of a DTensor, all of any other."""
    return [tensor.to_local() if is_sharded(tensor) else tensor for tensor in tensors]  # pyright: ignore


def norms(tensors: list[Tensor]) -> Float[Tensor, " n"]:
    """2-norm of each tensor; of a DTensor that of the whole."""
    local = torch.stack(torch._foreach_norm(local_shards(tensors)))  # pyright: ignore[reportPrivateImportUsage]
    return sum_over_ranks(local.square()).sqrt() if any(map(is_sharded, tensors)) else local


class MaxOverRanks:
    """The largest of all ranks' numbers, one call later, between CPUs (gloo): no device is waited for.

    Each rank calls `reduce` equally often, and waits only for one that is a whole call behind.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if is_distributed() else None
        self._pending: tuple[Any, Tensor] | None = None

    def reduce(self, number: int) -> int:
        """The largest number of the call before, 0 at the first; in a single process the number at once."""
        if self._group is None:
            return number
        largest, before = torch.tensor(number), self._pending
        self._pending = dist.all_reduce(largest, dist.ReduceOp.MAX, self._group, async_op=True), largest  # pyright: ignore
        if before is None:
            return 0
        before[0].wait()
        return int(before[1])
