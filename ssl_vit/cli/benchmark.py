"""Time a part beside what the field uses for the same work, or see where a run's time goes (suite=doctor)."""

import importlib
import sys
from pathlib import Path

from ssl_vit.cli.main import typed
from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.help import help_page
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import RunConfig
from ssl_vit.config.tool_schema import BenchmarkConfig

USAGE = "suite=views|step|startup|probe|memory|doctor [key=value ...]"
DOCTOR = "suite=doctor"
DOCTOR_USAGE = f"{DOCTOR} method=mae [recipe=digits] [key=value ...]"
TOOLS = Path(__file__).resolve().parents[2] / "tools"
"""Where the suites lie in a checkout; an installed package has none of them."""


def help(args: list[str]) -> str:
    """The settings of a benchmark; with suite=doctor those of the run that is examined."""
    if DOCTOR in args:
        return help_page(RunConfig, f"{typed('benchmark')} {DOCTOR_USAGE}", args)
    return help_page(BenchmarkConfig, f"{typed('benchmark')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Run a suite of tools/benchmarks, each of which has run(config), or the doctor."""
    if DOCTOR in args:
        resolved = resolve_run(RunConfig, [arg for arg in args if arg != DOCTOR])
        from ssl_vit.train import doctor

        doctor.run(resolved.config, resolved.name)
        return
    config = resolve(BenchmarkConfig, args).config
    if not (TOOLS / "benchmarks").is_dir():
        raise ConfigError(f"suite={config.suite} belongs to the repository, which is not here; {DOCTOR} is installed")
    if str(TOOLS) not in sys.path:
        sys.path.insert(0, str(TOOLS))
    importlib.import_module(f"benchmarks.{config.suite}").run(config)
