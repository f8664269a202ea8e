"""Train a tokenizer, which turns patches into tokens for BEiT."""

import json

from ssl_vit.cli.main import typed
from ssl_vit.cli.settings import print_plan, resolve_run
from ssl_vit.config.help import help_page
from ssl_vit.config.tokenizer_schema import TokenizerRun

USAGE = "[tokenizer=dvae] [recipe=digits] [key=value ...] [--dry-run]"


def help(args: list[str]) -> str:
    """The settings of the tokenizer that tokenizer= or recipe= names."""
    return help_page(TokenizerRun, f"{typed('train_tokenizer')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Train, or with --dry-run say what would be trained."""
    resolved = resolve_run(TokenizerRun, args)
    if "--dry-run" in args:
        print_plan(resolved)
        return
    from ssl_vit.train.tokenizing import train_tokenizer

    if done := train_tokenizer(resolved.config, resolved.name):
        run_dir, result = done
        print(f"next: {typed('pretrain')} method=beit tokenizer={run_dir}")
        print(json.dumps(result))
