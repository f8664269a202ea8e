"""Evaluate an encoder by a linear classifier on its frozen features."""

from ssl_vit.config.evaluation_schema import EvaluationConfig, LinearProbeConfig
from ssl_vit.config.resolve import Resolved

USAGE = "[encoder=RUN_OR_FILE] [key=value ...] [--dry-run]"
Config = LinearProbeConfig


def run(resolved: Resolved[EvaluationConfig]) -> None:
    """Evaluate; the last line is the result as JSON."""
    from ssl_vit.supervised.report import evaluate, show

    show(evaluate(resolved.config))


def plan(resolved: Resolved[EvaluationConfig]) -> list[str]:
    """What `--dry-run` answers."""
    from ssl_vit.supervised.evaluation_plan import evaluation_plan

    return evaluation_plan(resolved.config)
