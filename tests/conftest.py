"""One thread a process, shapes checked where single functions are tested, and fixtures of all rooms."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import nursery as forks
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

ROOT = Path(__file__).resolve().parents[1]
if sys.dont_write_bytecode:  # so each process that tests start would compile all it imports, which takes 20 seconds
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(ROOT / ".pytest_cache" / "bytecode")
    sys.dont_write_bytecode = False
# Not config, which answers a value of another type in a line of its own.
ROOMS = [f"ssl_vit.{room.name}" for room in (ROOT / "ssl_vit").iterdir() if room.is_dir() and room.name != "config"]
_jaxtyped = jaxtyping.jaxtyped


def _jaxtyped_once(typechecker: Any) -> Callable[[Any], Any]:
    """Not for functions within functions, which say no shapes: each call of the outer one would take a millisecond."""
    checks = _jaxtyped(typechecker=typechecker)
    return lambda found: found if "<locals>" in getattr(found, "__qualname__", "") else checks(found)


jaxtyping.jaxtyped = _jaxtyped_once  # pyright: ignore
jaxtyping.install_import_hook(ROOMS, "typecheck.checked")
TESTS_OF_USE = (
    *("test_killed.py", "test_stopped.py", "test_plugin.py", "test_extending.py"),
    *("test_hostile_files.py", "test_mutated_commands.py", "test_collapse.py", "test_report.py"),
    *("test_plugin_data.py", "test_step_sizes.py", "test_guard.py"),
)
TRAININGS = ("train", "parallel", "cli", "benchmarks", *TESTS_OF_USE)
"""Where whole runs are tested. They come first, so that no worker is left with a long file at the end; the shapes in
signatures, whose checks would double their time, are checked everywhere else."""


def _trains(path: Path) -> bool:
    return path.name in TRAININGS or path.relative_to(ROOT / "tests").parts[0] in TRAININGS


FORKING = (
    *("test_killed.py", "test_stopped.py", "test_distributed.py", "test_trainer.py"),
    *("test_commands.py", "test_finetuning.py", "test_dino.py"),
)
"""Files with tests that take the nursery. One worker runs them all, and first, so that it is started once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (item.path.name not in FORKING, not _trains(item.path)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "nursery" if file.rpartition("/")[2] in FORKING else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Captured text goes from worker to worker as UTF-8; file names in it may be any bytes."""
    report = (yield).get_result()  # pyright: ignore
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    jaxtyping.config.update("jaxtyping_disable", _trains(item.path))


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


@pytest.fixture(scope="session")
def _digits() -> None:
    forks.keep_digits()


@pytest.fixture(autouse=True)
def _drawn_once(request: pytest.FixtureRequest) -> None:
    if _trains(request.node.path):
        request.getfixturevalue("_digits")


@pytest.fixture(autouse=True, scope="session")
def _impatient() -> None:
    """Workers of a loader that Python's cyclic garbage collector finds no longer hear that they shall end, and PyTorch
    waits for each of them; the frames of type checks make such cycles."""
    import torch.utils.data._utils as loaders

    loaders.MP_STATUS_CHECK_INTERVAL = 0.2  # instead of 5 seconds


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    return forks.free_port()


@pytest.fixture(scope="session")
def nursery() -> Iterator[forks.Nursery]:
    """Starts processes cheaply."""
    made = forks.Nursery()
    yield made
    made.close()
