"""Evaluate an encoder by k-nearest neighbors of its frozen features."""

from ssl_vit.cli.linear_probe import USAGE, plan, run
from ssl_vit.config.evaluation_schema import KNNConfig as Config

__all__ = ["USAGE", "Config", "plan", "run"]
