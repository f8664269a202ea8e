"""Draw what an encoder attends to and how its patch features differ."""

import logging

from ssl_vit.cli.plans import encoder_line, files_plan
from ssl_vit.config.checks import printable
from ssl_vit.config.evaluation_schema import VisualizeConfig as Config
from ssl_vit.config.resolve import Resolved

USAGE = "[images=FILE_OR_FOLDER] [encoder=RUN_OR_FILE] [key=value ...]"


def run(resolved: Resolved[Config]) -> None:
    """Write the images and print their paths."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    from ssl_vit.evaluate.visualize import visualize

    print(*(printable(str(path)) for path in visualize(resolved.config)), sep="\n")


def plan(resolved: Resolved[Config]) -> list[str]:
    """What it would do."""
    config = resolved.config
    network, source = encoder_line(config.encoder)
    out = config.out or (source if source.is_dir() else source.parent) / "visualize"
    return files_plan(config.images, network, f"{out}/: attention, mask and pca of {config.limit} images at most")
