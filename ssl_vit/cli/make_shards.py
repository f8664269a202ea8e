"""Pack images of any source into tar shards."""

import json
import logging

from ssl_vit.config.evaluation_schema import ShardsConfig as Config
from ssl_vit.config.resolve import Resolved
from ssl_vit.run.launch import typed

USAGE = "data.path=FOLDER out=SHARDS [key=value ...]"


def run(resolved: Resolved[Config]) -> None:
    """Write the shards; the last line is what they hold, as JSON."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    from ssl_vit.data.shard_writer import make_shards

    result = make_shards(resolved.config)
    print(f"next: {typed('pretrain')} method=mae data.path={resolved.config.out}")
    print(json.dumps(result))
