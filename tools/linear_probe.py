"""Judge an encoder by Linear probe: python tools/linear_probe.py [encoder=RUN_OR_FILE] [key=value ...] [--help]."""

import json

from ssl_vit.command import guarded, read_probe_words
from ssl_vit.config.explain import help_text
from ssl_vit.config.tools import ProbeConfig

USAGE = "python tools/linear_probe.py [encoder=RUN_OR_FILE] [key=value ...]"


def main(words: list[str]) -> None:
    if "--help" in words:
        print(help_text(ProbeConfig, USAGE))
        return
    config = read_probe_words(words).config
    from ssl_vit.evaluate.report import evaluate, table

    result = evaluate("linear_probe", config)
    table(result)
    print(json.dumps(result))


if __name__ == "__main__":
    guarded(main)
