"""Fine-tune an encoder on labeled images."""

import json

from ssl_vit.cli.main import typed
from ssl_vit.cli.settings import print_plan, resolve_run
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.help import help_page

USAGE = "[encoder=RUN_OR_FILE] [recipe=digits] [key=value ...] [--dry-run]"


def help(args: list[str]) -> str:
    """Every setting, after the recipes."""
    return help_page(FinetuneRun, f"{typed('finetune')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Train, or with --dry-run say what would be trained."""
    resolved = resolve_run(FinetuneRun, args)
    if "--dry-run" in args:
        from ssl_vit.supervised.classifier import start_of

        print_plan(resolved, start_of(resolved.config)[1])
        return
    from ssl_vit.train.finetuning import finetune

    if done := finetune(resolved.config):
        run_dir, result = done
        print(f"next: {typed('predict')} model={run_dir} images=FOLDER")
        print(json.dumps(result))
