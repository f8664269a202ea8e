"""Draw what an encoder attends to and how its patch features differ."""

from ssl_vit.cli.main import typed
from ssl_vit.config.help import help_page
from ssl_vit.config.resolve import resolve
from ssl_vit.config.tool_schema import VisualizeConfig

USAGE = "images=FILE_OR_FOLDER [encoder=RUN_OR_FILE] [key=value ...]"


def help(args: list[str]) -> str:
    """Every setting."""
    return help_page(VisualizeConfig, f"{typed('visualize')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Write the images and print their paths."""
    config = resolve(VisualizeConfig, args).config
    from ssl_vit.evaluate.visualize import visualize

    for path in visualize(config):
        print(path)
