"""The entry of all commands, which are modules of this package with USAGE, Config and run(resolved). No torch."""

import ctypes
import importlib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from types import ModuleType
from typing import NoReturn

from ssl_vit.cli import doctor
from ssl_vit.cli.settings import DRY_RUN, print_plan, resolve_command
from ssl_vit.config.checks import ConfigError, nearest, printable
from ssl_vit.config.help import help_page
from ssl_vit.run.launch import typed
from ssl_vit.run.signals import Stopped

COMMANDS = (
    *("pretrain", "linear_probe", "knn", "finetune", "predict", "visualize", "embed"),
    *("train_tokenizer", "make_shards", "compare", "benchmark"),
)
DOCTOR = "suite=doctor"
SPIN_COUNT = "3000"  # by `tools/benchmark.py suite=spin`; the table is in docs/results.md
OUT_OF_MEMORY = re.compile("allocate memory|out of memory")  # of PyTorch's errors, on CPUs and on GPUs
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run a command, its name first among the args, by default the process's own, and exit with its status."""
    keep_freed_memory()
    sleep_at_barriers()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be bytes that are no text
    raise SystemExit(guarded(sys.argv[1:] if args is None else args))


def guarded(args: Sequence[str]) -> int:
    """The exit status of a command: 2 or 1 for a mistake in its input, 128 + its number for a signal.

    One line on standard error says which, or how to resume; SSL_VIT_TRACEBACK=1 shows where an error comes from.
    """
    try:
        run_command(*args or ["--help"])
    except Stopped as stop:
        print(f"{stop}; go on with: {stop.command([*shlex.split(typed(args[0])), *args[1:]])}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        if os.environ.get("SSL_VIT_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {printable(error)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        print("error: out of memory: smaller images, batches (data.batch_size) or networks need less", file=sys.stderr)
        return 1
    return 0


def run_command(name: str, *args: str) -> None:
    """Run a command, say what it would do, or list them all. Raises ConfigError where there is no such command."""
    if name == "--help":
        summaries = [f"  {known:<16} {(command(known).__doc__ or '').partition(chr(10))[0]}" for known in COMMANDS]
        return print(f"{typed('NAME')} [key=value ...] [--help]", "", *summaries, sep="\n")
    module = command(name)
    if name == "benchmark" and DOCTOR in args:  # its settings are those of the run that it examines
        module, args = doctor, tuple(arg for arg in args if arg != DOCTOR)
    if "--help" in args:
        return print(help_page(module.Config, f"{typed(name)} {module.USAGE}", args))
    if key := getattr(module, "POSITIONAL", ""):  # arguments that are no settings are this one's
        plain = [arg for arg in args if "=" not in arg]
        args = (*(arg for arg in args if "=" in arg), *([f"{key}={','.join(plain)}"] if plain else []))
    resolved = resolve_command(module.Config, args)
    if DRY_RUN in args and hasattr(module, "plan"):
        return print(*module.plan(resolved), sep="\n")
    return print_plan(resolved) if DRY_RUN in args else module.run(resolved)


def command(name: str) -> ModuleType:
    """The module of a command. Raises ConfigError."""
    if name not in COMMANDS:
        raise ConfigError(f"{name} is not a command: one of {', '.join(COMMANDS)}{nearest(name, COMMANDS)}")
    return importlib.import_module(f"ssl_vit.cli.{name}")


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, unless MALLOC_* variables say otherwise; glibc alone.

    It gives large blocks back to the kernel at once, which clears their pages when the next step or batch needs them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never: a step may free more than any threshold that mallopt takes


def sleep_at_barriers() -> None:
    """Let OpenMP's threads sleep soon where they wait for one another, unless a variable of OpenMP's says otherwise.

    Read when torch is loaded. By default they spin, for long: beside other work a step takes many times longer.
    """
    if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
