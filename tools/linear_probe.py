"""Judge an encoder by a linear probe: python tools/linear_probe.py [encoder=RUN_OR_FILE] [key=value ...] [--help]."""

from ssl_vit.cli.main import guarded, read_probe_args
from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.config.help import help_text

USAGE = "python tools/linear_probe.py [encoder=RUN_OR_FILE] [key=value ...]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(help_text(LinearProbeConfig, USAGE))
        return
    config = read_probe_args(args, LinearProbeConfig).config
    from ssl_vit.supervised.report import evaluate, show

    show(evaluate(config))


if __name__ == "__main__":
    guarded(main)
