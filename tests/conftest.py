"""Shapes in signatures are checked while the tests run; data that is not in the repository is found or skipped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]
# Not config, which answers a value of another type in a line of its own.
ROOMS = [f"ssl_vit.{room.name}" for room in (ROOT / "ssl_vit").iterdir() if room.is_dir() and room.name != "config"]
install_import_hook(ROOMS, "typecheck.checked")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with cifar10/ and imagenette128/: $SSL_VIT_DATA, by default ../shared/data beside the checkout."""
    folder = Path(os.environ.get("SSL_VIT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.exists():
        pytest.skip(f"{folder} is absent; set SSL_VIT_DATA")
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="module")
def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Nursery:
    """Runs of tools/pretrain.py as processes of their own; nursery.py pays for the imports once."""

    def __init__(self) -> None:
        script, environment = ROOT / "tests" / "nursery.py", {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _ask(self, asked: dict) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self._answer())

    def start(self, folder: Path, *args: str, **variables: str) -> int:
        """The process id of a pretraining; what it prints is added to <folder>/output."""
        args = (str(ROOT / "tools" / "pretrain.py"), *args)
        asked = {"args": args, "variables": variables, "folder": str(folder), "output": str(folder / "output")}
        return self._ask(asked)

    def start_two(self, folder: Path, port: int, *args: str) -> list[int]:
        """Two processes of one run, as Lightning's launcher would start them."""
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
        args = (*args, "trainer.devices=2", "trainer.strategy=ddp")
        return [self.start(folder, *args, **shared, LOCAL_RANK=str(rank)) for rank in range(2)]

    def wait(self, process: int) -> int:
        """The exit status, negative for a signal."""
        return self._ask({"wait": process})

    def run(self, folder: Path, *args: str, **variables: str) -> int:
        """Start a pretraining and wait for it."""
        return self.wait(self.start(folder, *args, **variables))

    def signal_when(self, happened: Callable[[], bool], number: int, *processes: int) -> list[int]:
        """Send a signal as soon as something has happened; the exit statuses."""
        give_up = time.monotonic() + 40
        while not happened():
            if time.monotonic() > give_up:
                for process in processes:
                    os.kill(process, signal.SIGKILL)
                raise AssertionError("it has not happened")
            time.sleep(0.002)
        for process in processes:
            os.kill(process, number)
        return [self.wait(process) for process in processes]

    def kill_when(self, happened: Callable[[], bool], *processes: int) -> None:
        """SIGKILL as soon as something has happened."""
        assert self.signal_when(happened, signal.SIGKILL, *processes) == [-signal.SIGKILL] * len(processes)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Starts processes cheaply."""
    made = Nursery()
    yield made
    made.process.kill()
    made.process.wait()
