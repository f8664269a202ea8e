"""Measure how fast a part is, beside what the field uses: python tools/benchmark.py suite=views|step|startup [--help]."""

import importlib

from ssl_vit.command import guarded
from ssl_vit.config.load import ConfigError
from ssl_vit.config.schema import nearest

USAGE = "python tools/benchmark.py suite=NAME"
SUITES = {
    "views": "ssl_vit.benchmark.views",
    "step": "ssl_vit.benchmark.step",
    "startup": "ssl_vit.benchmark.startup",
}
"""Each module is imported when it is asked for, and has run(), which prints one JSON object a line."""


def main(words: list[str]) -> None:
    if "--help" in words:
        print(f"{USAGE}\n\nsuite  one of {', '.join(SUITES)}; prints one JSON object a line")
        return
    for word in words:
        if not word.startswith("suite="):
            raise ConfigError(f"{word} is not a setting: {USAGE}")
    suite = words[-1].removeprefix("suite=") if words else ""
    if suite not in SUITES:
        raise ConfigError(f"suite={suite} must be one of {', '.join(SUITES)}{nearest(suite, SUITES)}")
    importlib.import_module(SUITES[suite]).run()


if __name__ == "__main__":
    guarded(main)
