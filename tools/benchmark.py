"""Time a part beside what the field uses: python tools/benchmark.py suite=views|step|startup|probe|memory [--help]."""

import importlib

from ssl_vit.command import guarded
from ssl_vit.config.explain import help_text
from ssl_vit.config.load import read
from ssl_vit.config.tools import SUITES, BenchmarkConfig

USAGE = "python tools/benchmark.py suite=views|step|startup|probe|memory [key=value ...]"


def main(words: list[str]) -> None:
    if "--help" in words:
        print(help_text(BenchmarkConfig, USAGE))
        return
    config = read(BenchmarkConfig, words).config
    importlib.import_module(SUITES[config.suite]).run(config)


if __name__ == "__main__":
    guarded(main)
