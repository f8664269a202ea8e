"""Weights sharded over the ranks of a run (FSDP: Zhao et al., 2023, arXiv:2304.11277).

PyTorch's fully_shard does it, under Lightning's ModelParallelStrategy. A transformer block, of a student or a teacher,
is gathered for its own passes and freed after them; what stands outside the blocks is gathered for the step. Names of
parameters stay.
"""

import copy
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def mesh_of(trainer: pl.Trainer | None) -> Any:
    """The DeviceMesh that a trainer shards weights over; None where each rank has all, and outside a trainer.

    ValueError: the strategy is Lightning's FSDPStrategy, or splits single layers over ranks (tensor parallelism).
    """
    if trainer is not None and isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError(
            "strategy=fsdp is Lightning's FSDPStrategy, which hides the weights in flat shards: give Trainer(strategy="
            "ModelParallelStrategy(data_parallel_size=N, tensor_parallel_size=1, save_distributed_checkpoint=False))"
        )
    if trainer is None or not isinstance(trainer.strategy, ModelParallelStrategy):
        return None
    mesh = trainer.strategy.device_mesh
    if mesh["tensor_parallel"].size() > 1:
        line = "ModelParallelStrategy must have tensor_parallel_size=1 and data_parallel_size=<number of processes>"
        raise ValueError(f"{line}: weights are sharded by block, layers are not split")
    return mesh["data_parallel"]


def shard(network: nn.Module, mesh: Any, block_class: type[nn.Module]) -> None:
    """Shard every weight of a network whose step is `training_step`, its modules of a class one after the other.

    ValueError: blocks hold tables of relative positions, which are read before their block runs.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method  # slow to import

    blocks = [module for module in network.modules() if isinstance(module, block_class)]
    if any(hasattr(block.attn, "relative_position_bias_table") for block in blocks):
        raise ValueError(
            "trainer.strategy=fsdp cannot train encoder.pos_embed=relative_per_block: take strategy=ddp, or "
            "finetune.rel_pos_per_block=false where an encoder with relative positions is fine-tuned"
        )
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh)
    register_fsdp_forward_method(network, "training_step")


def plain_copy(network: Network) -> Network:
    """A copy of a network before it is sharded, which gather() fills; on the CPU."""
    mesh = getattr(network, "_device_mesh", None)  # Lightning puts it there; it cannot be copied
    return copy.deepcopy(network, {id(mesh): None}).cpu()


def gather(network: nn.Module, copied: Network | None) -> Network | None:
    """The copy, on the first rank, with all weights of a sharded network; None on ranks without one. All call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict  # slow to import

    state = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if copied is not None:
        copied.load_state_dict(state)
    return copied
