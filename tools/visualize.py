"""Look at what an encoder sees: python tools/visualize.py images=FILE_OR_FOLDER [encoder=RUN_OR_FILE] [--help]."""

from ssl_vit.command import guarded
from ssl_vit.config.explain import help_text
from ssl_vit.config.load import read
from ssl_vit.config.tools import VisualizeConfig

USAGE = "python tools/visualize.py images=FILE_OR_FOLDER [encoder=RUN_OR_FILE] [key=value ...]"


def main(words: list[str]) -> None:
    if "--help" in words:
        print(help_text(VisualizeConfig, USAGE))
        return
    config = read(VisualizeConfig, words).config
    from ssl_vit.evaluate.visualize import visualize

    for path in visualize(config):
        print(path)


if __name__ == "__main__":
    guarded(main)
