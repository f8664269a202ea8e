"""Time a part beside what the field uses, or see where a run's time goes: python tools/benchmark.py suite=... [--help].

suite=views|step|startup|probe|memory, or suite=doctor with the settings of a run.
"""

import importlib

from ssl_vit.cli.main import guarded, read_run_args
from ssl_vit.config.help import help_text, run_help
from ssl_vit.config.resolve import read
from ssl_vit.config.tool_schema import DOCTOR, SUITES, BenchmarkConfig

USAGE = "python tools/benchmark.py suite=views|step|startup|probe|memory|doctor [key=value ...]"
DOCTOR_USAGE = "python tools/benchmark.py suite=doctor method=mae [recipe=digits] [key=value ...]"


def main(args: list[str]) -> None:
    if f"suite={DOCTOR}" in args:
        doctor([arg for arg in args if arg != f"suite={DOCTOR}"])
        return
    if "--help" in args:
        print(help_text(BenchmarkConfig, USAGE))
        return
    config = read(BenchmarkConfig, args).config
    importlib.import_module(SUITES[config.suite]).run(config)


def doctor(args: list[str]) -> None:
    """Examine the run that these args describe."""
    if "--help" in args:
        print(run_help(args, DOCTOR_USAGE))
        return
    resolved = read_run_args(args)
    from ssl_vit.train.doctor import run

    run(resolved.config, resolved.method)


if __name__ == "__main__":
    guarded(main)
