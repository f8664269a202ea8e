"""Evaluate an encoder by a linear classifier on its frozen features."""

from ssl_vit.config.evaluation_schema import EvaluationConfig, LinearProbeConfig
from ssl_vit.config.resolve import Resolved

USAGE = "[encoder=RUN_OR_FILE] [key=value ...]"
Config = LinearProbeConfig


def run(resolved: Resolved[EvaluationConfig]) -> None:
    """Evaluate; the last line is the result as JSON."""
    from ssl_vit.supervised.report import evaluate, show

    show(evaluate(resolved.config))
