"""The one entry of all commands: finds the command, and answers mistakes in one line. Imports no torch.

A command is a module of this package with `help(args)`, what `--help` prints, and `run(args)`.
"""

import ctypes
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from ssl_vit.config.checks import ConfigError, nearest
from ssl_vit.run.signals import Stopped

COMMANDS = (
    *("pretrain", "linear_probe", "knn", "finetune", "predict", "visualize"),
    *("train_tokenizer", "make_shards", "benchmark"),
)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command, its name first among the args, by default the process's own, and exit with its status."""
    keep_freed_memory()
    raise SystemExit(guarded(sys.argv[1:] if args is None else args))


def guarded(args: Sequence[str]) -> int:
    """The exit status of a command; a mistake in its input becomes one line on standard error and status 2 or 1.

    Of a run that a signal has stopped the line says by which command it is resumed, and the status is 128 + the
    signal's number: 130 for Ctrl-C, 143 for SIGTERM. SSL_VIT_TRACEBACK=1 shows where an error comes from.
    """
    try:
        run_command(args)
    except Stopped as stop:
        stopped = [*shlex.split(typed(args[0])), *args[1:]]
        print(f"{stop}; go on with: {stop.command(stopped)}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("SSL_VIT_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def run_command(args: Sequence[str]) -> None:
    """Run the command whose name is first, or list the commands. Raises ConfigError where there is no such command."""
    name, *rest = args or ["--help"]
    if name == "--help":
        print(
            "\n".join([f"{typed('NAME')} [key=value ...] [--help]", "", *(f"  {n:<16} {summary(n)}" for n in COMMANDS)])
        )
    elif "--help" in rest:
        print(command(name).help(rest))
    else:
        command(name).run(rest)


def command(name: str) -> ModuleType:
    """The module of a command. Raises ConfigError."""
    if name not in COMMANDS:
        raise ConfigError(f"{name} is not a command: one of {', '.join(COMMANDS)}{nearest(name, COMMANDS)}")
    return importlib.import_module(f"ssl_vit.cli.{name}")


def summary(name: str) -> str:
    """What a command does, in a line."""
    return (command(name).__doc__ or "").partition("\n")[0]


def typed(name: str) -> str:
    """Another command in the form in which this one was typed, of the three that there are."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"python -m ssl_vit {name}"
    return f"python {program.with_name(f'{name}.py')}" if program.suffix == ".py" else f"ssl-vit {name}"


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, where its C library is glibc; done nowhere else.

    glibc gives large blocks back to the kernel at once, which clears every page of them when the next step needs them:
    on a CPU each step allocates its activations, and each batch its images, anew. MALLOC_* variables in the
    environment, glibc's own settings of this, have precedence.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never: a step may free more than any threshold that mallopt takes
