"""The processes of a run, by the environment that torchrun, SLURM or Lightning started them with. Needs no torch."""

import os

from ssl_vit.config.checks import require
from ssl_vit.config.schema import TrainerConfig

STARTED = "LOCAL_WORLD_SIZE"
"""What torchrun sets to the number of processes that it starts on a machine."""


def require_started(trainer: TrainerConfig) -> None:
    """ValueError unless the processes that torchrun started are those of the settings: else each would train alone."""
    here, everywhere = int(os.environ.get(STARTED, 0)), int(os.environ.get("WORLD_SIZE", 0))
    if here:
        rule = f"auto, or {here}, the processes that torchrun started on this machine"
        require(trainer.devices in ("auto", here), "trainer.devices", trainer.devices, rule)
        machines = everywhere // here
        rule = f"{machines}, the machines that torchrun started processes on"
        require(trainer.num_nodes == machines, "trainer.num_nodes", trainer.num_nodes, rule)


def is_first_process() -> bool:
    """Whether this process of the run writes and prints; known before there is a process group.

    torchrun gives each its RANK, SLURM its SLURM_PROCID, and Lightning's launcher its LOCAL_RANK on its machine.
    """
    given = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return int(given[0] if given else 0) == int(machine) == 0
