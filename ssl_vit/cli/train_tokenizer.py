"""Train a tokenizer, which turns patches into tokens for BEiT."""

import json

from ssl_vit.config.resolve import Resolved
from ssl_vit.config.tokenizer_schema import TokenizerRun as Config
from ssl_vit.run.launch import typed

USAGE = "[tokenizer=dvae] [recipe=digits] [key=value ...] [--dry-run [--all] [--measure]]"


def run(resolved: Resolved[Config]) -> None:
    """Train; the last line is the result as JSON."""
    from ssl_vit.train.tokenizing import train_tokenizer

    if done := train_tokenizer(resolved.config, resolved.name):
        print(f"next: {typed('pretrain')} method=beit tokenizer={done[0]}", json.dumps(done[1]), sep="\n")


def plan(resolved: Resolved[Config]) -> list[str]:
    """What it would do."""
    from ssl_vit.train.rehearsal import rehearse

    return rehearse(resolved.config, resolved.name)
