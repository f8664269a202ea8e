"""Pretrain an encoder on unlabeled images."""

from ssl_vit.cli.main import typed
from ssl_vit.cli.settings import print_plan, resolve_run
from ssl_vit.config.help import help_page
from ssl_vit.config.schema import RunConfig

USAGE = "method=mae [recipe=digits] [key=value ...] [--dry-run]"


def help(args: list[str]) -> str:
    """The overview, or with method= the method's settings."""
    return help_page(RunConfig, f"{typed('pretrain')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Train, or with --dry-run say what would be trained."""
    resolved = resolve_run(RunConfig, args)
    if "--dry-run" in args:
        print_plan(resolved)
        return
    from ssl_vit.train.pretraining import pretrain

    if run_dir := pretrain(resolved.config, resolved.name):
        print(f"next: {typed('linear_probe')} encoder={run_dir}")
        print(f"look: tensorboard --logdir {run_dir}")
