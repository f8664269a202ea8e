"""Fine-tune an encoder on labeled images."""

import json

from ssl_vit.config.finetune_schema import FinetuneRun as Config
from ssl_vit.config.resolve import Resolved
from ssl_vit.run.launch import typed

USAGE = "[encoder=RUN_OR_FILE] [recipe=digits] [key=value ...] [--dry-run [--all] [--measure]]"


def run(resolved: Resolved[Config]) -> None:
    """Train; the last line is the result as JSON."""
    from ssl_vit.train.finetuning import finetune

    if done := finetune(resolved.config):
        print(f"next: {typed('predict')} model={done[0]} images=FOLDER", json.dumps(done[1]), sep="\n")


def plan(resolved: Resolved[Config]) -> list[str]:
    """What it would do."""
    from ssl_vit.train.rehearsal import rehearse

    return rehearse(resolved.config, resolved.name)
