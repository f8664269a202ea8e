"""Look at what an encoder sees: python tools/visualize.py images=FILE_OR_FOLDER [encoder=RUN_OR_FILE] [--help]."""

from ssl_vit.cli.main import guarded
from ssl_vit.config.help import help_text
from ssl_vit.config.resolve import read
from ssl_vit.config.tool_schema import VisualizeConfig

USAGE = "python tools/visualize.py images=FILE_OR_FOLDER [encoder=RUN_OR_FILE] [key=value ...]"


def main(args: list[str]) -> None:
    if "--help" in args:
        print(help_text(VisualizeConfig, USAGE))
        return
    config = read(VisualizeConfig, args).config
    from ssl_vit.evaluate.visualize import visualize

    for path in visualize(config):
        print(path)


if __name__ == "__main__":
    guarded(main)
