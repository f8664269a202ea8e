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


def plan(resolved: Resolved[Config]) -> list[str]:
    """What it would do."""
    from ssl_vit.data.shard_writer import require_packable
    from ssl_vit.train.plan import planned_splits

    config = resolved.config
    require_packable(config)
    splits = planned_splits(config.data, 0)
    data = f"data          {config.data.source} {config.data.path}".rstrip()
    images = "not counted before loading" if splits is None else f"{len(splits.train.source):,} for training"
    apart = splits is not None and splits.test.source is not splits.train.source
    tests = f", {len(splits.test.source):,} for evaluation" if splits is not None and apart else ""
    size = f", scaled down to a short side of {config.size} pixels" if config.size else ", their bytes as they are"
    writes = f"{config.out}/: tar shards of {config.shard_mb:g} MB, their index"
    return [data, f"images        {images}{tests}{size}", f"writes        {writes}"]
