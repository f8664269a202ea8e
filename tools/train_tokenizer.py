"""Train a tokenizer for BEiT: python tools/train_tokenizer.py [recipe=digits] [key=value ...] [--help] [--dry-run]."""

import json

from ssl_vit.cli.main import guarded, read_run_args
from ssl_vit.config.help import resolved_table, tokenizer_help
from ssl_vit.config.resolve import read_tokenizer

USAGE = "python tools/train_tokenizer.py [recipe=digits] [key=value ...] [--dry-run]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(tokenizer_help(args, USAGE))
        return
    resolved = read_run_args([arg for arg in args if arg != "--dry-run"], read_tokenizer)
    if "--dry-run" in args:
        from ssl_vit.train.plan import make_plan

        print(resolved_table(resolved), *make_plan(resolved.config).lines(), sep="\n")
        return
    from ssl_vit.train.tokenizing import train_tokenizer

    if done := train_tokenizer(resolved.config, resolved.method):
        run_dir, result = done
        print(f"next: python tools/pretrain.py method=beit tokenizer={run_dir}")
        print(json.dumps(result))


if __name__ == "__main__":
    guarded(main)
