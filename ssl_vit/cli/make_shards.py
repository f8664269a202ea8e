"""Pack images of any source into tar shards."""

import json
import logging

from ssl_vit.cli.main import typed
from ssl_vit.config.help import help_page
from ssl_vit.config.resolve import resolve
from ssl_vit.config.tool_schema import ShardsConfig

USAGE = "[data.source=folder] data.path=FOLDER out=SHARDS [key=value ...]"


def help(args: list[str]) -> str:
    """Every setting."""
    return help_page(ShardsConfig, f"{typed('make_shards')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Write the shards; the last line is what they hold, as JSON."""
    config = resolve(ShardsConfig, args).config
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    from ssl_vit.data.shard_writer import make_shards

    result = make_shards(config)
    print(f"next: {typed('pretrain')} method=mae data.source=webdataset data.path={config.out}")
    print(json.dumps(result))
