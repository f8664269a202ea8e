"""Evaluate an encoder by k-nearest neighbors of its frozen features."""

from ssl_vit.cli.main import typed
from ssl_vit.cli.settings import resolve_evaluation
from ssl_vit.config.evaluation_schema import KNNConfig
from ssl_vit.config.help import help_page

USAGE = "[encoder=RUN_OR_FILE] [key=value ...]"


def help(args: list[str]) -> str:
    """Every setting."""
    return help_page(KNNConfig, f"{typed('knn')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Evaluate; the last line is the result as JSON."""
    config = resolve_evaluation(KNNConfig, args).config
    from ssl_vit.supervised.report import evaluate, show

    show(evaluate(config))
