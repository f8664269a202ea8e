"""Evaluate an encoder by a linear classifier on its frozen features."""

from ssl_vit.cli.main import typed
from ssl_vit.cli.settings import resolve_evaluation
from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.config.help import help_page

USAGE = "[encoder=RUN_OR_FILE] [key=value ...]"


def help(args: list[str]) -> str:
    """Every setting."""
    return help_page(LinearProbeConfig, f"{typed('linear_probe')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Evaluate; the last line is the result as JSON."""
    config = resolve_evaluation(LinearProbeConfig, args).config
    from ssl_vit.supervised.report import evaluate, show

    show(evaluate(config))
