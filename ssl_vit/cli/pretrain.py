"""Pretrain an encoder on unlabeled images."""

from ssl_vit.config.resolve import Resolved
from ssl_vit.config.schema import RunConfig as Config
from ssl_vit.run.launch import typed

USAGE = "method=mae [data.path=IMAGES] [recipe=digits|auto|...] [key=value ...] [--dry-run [--all] [--measure]]"


def run(resolved: Resolved[Config]) -> None:
    """Train."""
    from ssl_vit.train.pretraining import pretrain

    if run_dir := pretrain(resolved.config, resolved.name):
        print(f"next: {typed('linear_probe')} encoder={run_dir}")
        print(f"look: tensorboard --logdir {run_dir}")


def plan(resolved: Resolved[Config]) -> list[str]:
    """What it would do."""
    from ssl_vit.train.rehearsal import rehearse

    return rehearse(resolved.config, resolved.name)
