"""Evaluate an encoder by k-nearest neighbors of its frozen features."""

from ssl_vit.config.evaluation_schema import KNNConfig as Config
from ssl_vit.config.resolve import Resolved

USAGE = "[encoder=RUN_OR_FILE] [key=value ...]"


def run(resolved: Resolved[Config]) -> None:
    """Evaluate; the last line is the result as JSON."""
    from ssl_vit.supervised.report import evaluate, show

    show(evaluate(resolved.config))
