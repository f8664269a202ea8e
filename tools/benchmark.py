"""Time a part beside what the field uses, or see where a run's time goes: python tools/benchmark.py suite=... [--help].

suite=views|step|startup|probe|memory, or suite=doctor with the settings of a run.
"""

import importlib

from ssl_vit.cli.main import guarded, read_run_words
from ssl_vit.config.help import help_text, run_help
from ssl_vit.config.resolve import read
from ssl_vit.config.tool_schema import DOCTOR, SUITES, BenchmarkConfig

USAGE = "python tools/benchmark.py suite=views|step|startup|probe|memory|doctor [key=value ...]"
DOCTOR_USAGE = "python tools/benchmark.py suite=doctor method=mae [recipe=digits] [key=value ...]"


def main(words: list[str]) -> None:
    if f"suite={DOCTOR}" in words:
        doctor([word for word in words if word != f"suite={DOCTOR}"])
        return
    if "--help" in words:
        print(help_text(BenchmarkConfig, USAGE))
        return
    config = read(BenchmarkConfig, words).config
    importlib.import_module(SUITES[config.suite]).run(config)


def doctor(words: list[str]) -> None:
    """Examine the run that these words describe."""
    if "--help" in words:
        print(run_help(words, DOCTOR_USAGE))
        return
    resolved = read_run_words(words)
    from ssl_vit.train.doctor import run

    run(resolved.config, resolved.method)


if __name__ == "__main__":
    guarded(main)
