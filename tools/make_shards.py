"""Pack images into tar shards: python tools/make_shards.py data.path=FOLDER out=SHARDS [key=value ...] [--help]."""

import json
import logging

from ssl_vit.cli.main import guarded
from ssl_vit.config.help import help_text
from ssl_vit.config.resolve import read
from ssl_vit.config.tool_schema import ShardsConfig

USAGE = "python tools/make_shards.py [data.source=folder] data.path=FOLDER out=SHARDS [key=value ...]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(help_text(ShardsConfig, USAGE))
        return
    config = read(ShardsConfig, args).config
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    from ssl_vit.data.shard_writer import make_shards

    result = make_shards(config)
    print(f"next: python tools/pretrain.py method=mae data.source=webdataset data.path={config.out}")
    print(json.dumps(result))


if __name__ == "__main__":
    guarded(main)
