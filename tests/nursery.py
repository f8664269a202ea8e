"""Runs tools and functions in processes of their own, forked from one that has paid for the imports.

Run as a script it is the process that forks. A line of JSON starts one, {"file": .., "function": .., "args": [..],
"variables": {..}, "folder": .., "output": file}, and is answered by its process id; a file without a function is a
script, which finds modules in the PYTHONPATH of its variables too. {"wait": [ids]} is answered by their exit statuses,
negative for a signal.
"""

import functools
import importlib
import inspect
import json
import os
import runpy
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAID = (
    *("torch.distributed.fsdp", "torch.distributed.launcher.api", "torch.distributed.nn.functional"),
    *("torch.distributed.tensor.parallel", "torchvision.io", "sklearn.datasets", "sklearn.linear_model"),
    *("ssl_vit.methods.mae", "ssl_vit.methods.dino", "ssl_vit.methods.beit"),
    *("ssl_vit.train.pretraining", "ssl_vit.train.finetuning", "ssl_vit.supervised.predict"),
)
"""Modules that runs of one or of several processes import."""


def free_port() -> int:
    """A port that nobody listens on, below those (from 32768 on) that the kernel gives away unasked."""
    while True:
        with socket.socket() as listener:
            port = 10_000 + secrets.randbelow(20_000)  # not `random`, which tests seed alike in every process
            try:
                listener.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def keep_digits() -> None:
    """Draw and decode the digits of data.source=digits once for all runs of this process and of its forks."""
    from sklearn import datasets

    from ssl_vit.data import datamodule
    from ssl_vit.data.sources import digits

    datasets.load_digits = functools.cache(datasets.load_digits)
    drawn = [digits.draw_digit(strokes, number) for number, strokes in enumerate(datasets.load_digits().images)]
    digits.draw_digit = lambda strokes, number: drawn[number]
    decode, decoded = datamodule.cached, {}

    def cached(source: Any, budget_gb: float, stops: bool) -> Any:
        if not isinstance(source, digits.Digits):
            return decode(source, budget_gb, stops)
        settings = (len(source), source.channels, source.white_16bit, source.label_note, budget_gb, stops)
        return decoded.get(settings) or decoded.setdefault(settings, decode(source, budget_gb, stops))

    datamodule.cached = cached


class Nursery:
    """Starts processes cheaply; a tool's own process takes seconds to import what it needs."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def _request(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request, default=str) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process that forks."""
        self.process.kill()
        self.process.wait()

    def start(self, folder: Path, *args: str, tool: str = "pretrain", **variables: str) -> int:
        """The process id of tools/<tool>.py with these args; what it prints is added to <folder>/output."""
        request = {"file": ROOT / "tools" / f"{tool}.py", "function": "", "args": args, "variables": variables}
        return self._request({**request, "folder": folder, "output": folder / "output"})

    def start_two(self, folder: Path, *args: str) -> list[int]:
        """Two processes of one pretraining, as Lightning's launcher would start them."""
        args = (*args, "trainer.devices=2", "trainer.strategy=ddp")
        variables = {**_group(2), "NODE_RANK": "0"}
        return [self.start(folder, *args, **variables, LOCAL_RANK=str(rank)) for rank in range(2)]

    def wait(self, *processes: int) -> list[int]:
        """The exit statuses, negative for a signal; as soon as one has failed the others are killed."""
        return self._request({"wait": processes})

    def run(self, folder: Path, *args: str, tool: str = "pretrain", **variables: str) -> int:
        """The exit status of a tool."""
        return self.wait(self.start(folder, *args, tool=tool, **variables))[0]

    def call(self, folder: Path, function: Callable[..., None], *args: Any, **variables: str) -> int:
        """The process id of function(*args), a module's own; the args are passed as JSON."""
        request = {"file": inspect.getfile(function), "function": function.__name__, "folder": folder}
        return self._request({**request, "args": args, "variables": variables, "output": folder / "output"})

    def ranks(self, folder: Path, function: Callable[..., None], *args: Any, processes: int = 2) -> None:
        """Run function(rank, *args) in processes that torchrun might have started; the args are passed as JSON."""
        torchrun = {"LOCAL_WORLD_SIZE": str(processes), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "tests"}
        variables = _group(processes) | torchrun
        started = [
            self.call(folder, function, rank, *args, RANK=str(rank), LOCAL_RANK=str(rank), **variables)
            for rank in range(processes)
        ]
        assert self.wait(*started) == [0] * processes, (folder / "output").read_text()

    def signal_when(self, happened: Callable[[], bool], number: int, *processes: int) -> list[int]:
        """Send a signal as soon as something has happened; the exit statuses."""
        give_up = time.monotonic() + 300  # for a run that hangs, however slow the machine
        while not happened():
            if time.monotonic() > give_up:
                for process in processes:
                    os.kill(process, signal.SIGKILL)
                raise AssertionError("it has not happened")
            time.sleep(0.002)
        for process in processes:
            os.kill(process, number)
        return [self.wait(process)[0] for process in processes]

    def kill_when(self, happened: Callable[[], bool], *processes: int) -> None:
        """SIGKILL as soon as something has happened."""
        assert self.signal_when(happened, signal.SIGKILL, *processes) == [-signal.SIGKILL] * len(processes)


def _group(processes: int) -> dict[str, str]:
    """The variables by which processes find one another, at a port of their own."""
    return {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}


def _wait(processes: list[int], ended: dict[int, int]) -> list[int]:
    """The exit statuses of children. ended: those of children that nobody has waited for yet."""
    while not ended.keys() >= set(processes):
        process, status = os.wait()
        ended[process] = os.waitstatus_to_exitcode(status)
        if process in processes and ended[process]:
            for other in set(processes) - ended.keys():
                os.kill(other, signal.SIGKILL)
    return [ended.pop(process) for process in processes]


def _call(file: Path, function: str, args: list[Any]) -> None:
    if function:
        getattr(importlib.import_module(file.stem), function)(*args)
    else:
        sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.argv = [str(file), *args]
        runpy.run_path(str(file), run_name="__main__")


def _serve() -> None:
    """Answer requests until their pipe is closed; a fork leaves by SystemExit."""
    for module in PAID:
        importlib.import_module(module)
    keep_digits()
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(json.dumps(_wait(request["wait"], ended)), flush=True)
            continue
        file = Path(request["file"])
        if request["function"]:  # imported once, before the forks
            sys.path.insert(0, str(file.parent))
            importlib.import_module(file.stem)
        child = os.fork()
        if child:
            print(child, flush=True)
            continue
        with open(request["output"], "ab", buffering=0) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(request["variables"])
        os.chdir(request["folder"])
        _call(file, request["function"], request["args"])
        raise SystemExit


if __name__ == "__main__":
    _serve()
