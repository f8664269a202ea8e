"""How this process was started: by which command, and by torchrun, SLURM or Lightning as which one. Needs no torch."""

import os
import sys
from pathlib import Path

from ssl_vit.config.checks import ConfigError, require
from ssl_vit.config.schema import TrainerConfig

LAUNCHERS = ("MASTER_ADDR", "SLURM_", "LSB_", "OMPI_", "PMI_")
"""Environment variables that say how machines find one another begin with these."""


def typed(name: str) -> str:
    """A command in the form in which this process's was typed, of the three that there are; in other code ssl-vit."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py" and program.parent.name == "ssl_vit":
        return f"python -m ssl_vit {name}"
    tool = program.with_name(f"{name}.py")
    return f"python {tool}" if program.suffix == ".py" and tool.exists() else f"ssl-vit {name}"


def started_on_machine() -> int:
    """Processes that torchrun has started on this machine; 0 without torchrun."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 0))


def require_started(trainer: TrainerConfig) -> None:
    """ValueError unless the processes that torchrun started are those of the settings: else each would train alone."""
    if here := started_on_machine():
        rule = f"auto, or {here}, the processes that torchrun started on this machine"
        require(trainer.devices in ("auto", here), "trainer.devices", trainer.devices, rule, ConfigError)
        machines = int(os.environ.get("WORLD_SIZE", 0)) // here
        rule = f"{machines}, the machines that torchrun started processes on"
        require(trainer.num_nodes == machines, "trainer.num_nodes", trainer.num_nodes, rule, ConfigError)
        return
    rule = "1 unless torchrun or SLURM starts the run, or MASTER_ADDR and NODE_RANK are set on each machine"
    launched = any(name.startswith(LAUNCHERS) for name in os.environ)
    require(trainer.num_nodes == 1 or launched, "trainer.num_nodes", trainer.num_nodes, rule, ConfigError)
    if slurm := int(os.environ.get("SLURM_NNODES", 0)) if "SLURM_NTASKS" in os.environ else 0:
        rule = f"{slurm} at most, the machines of this SLURM job"
        require(trainer.num_nodes <= slurm, "trainer.num_nodes", trainer.num_nodes, rule, ConfigError)


def is_first_process() -> bool:
    """Whether this process of the run writes and prints; known before there is a process group.

    torchrun gives each its RANK, SLURM its SLURM_PROCID, and Lightning's launcher its LOCAL_RANK on its machine.
    """
    given = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    machine = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return int(given[0] if given else 0) == int(machine) == 0
