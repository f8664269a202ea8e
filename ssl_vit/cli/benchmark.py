"""Time a part beside what the field uses for the same work, or see where a run's time goes (suite=doctor)."""

import importlib
import sys
from pathlib import Path

from ssl_vit.config.evaluation_schema import BenchmarkConfig as Config
from ssl_vit.config.resolve import ConfigError, Resolved

USAGE = "suite=views|step|startup|probe|memory|spin|differences|doctor [key=value ...]"
TOOLS = Path(__file__).resolve().parents[2] / "tools"  # in a checkout; an installed package has no suites


def run(resolved: Resolved[Config]) -> None:
    """Run a suite of tools/benchmarks, each of which has run(config)."""
    suite = resolved.config.suite
    if not (TOOLS / "benchmarks").is_dir():
        raise ConfigError(f"suite={suite} belongs to the repository, which is not here; suite=doctor is installed")
    sys.path.insert(0, str(TOOLS))
    importlib.import_module(f"benchmarks.{suite}").run(resolved.config)
