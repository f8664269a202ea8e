"""Write the features of images to a file: .npz, .parquet or .csv."""

from ssl_vit.cli.plans import encoder_line, files_plan
from ssl_vit.config.evaluation_schema import EmbedConfig as Config
from ssl_vit.config.resolve import Resolved

USAGE = "[images=FILE_OR_FOLDER] [encoder=RUN_OR_FILE] [out=features.npz|.parquet|.csv] [key=value ...]"


def run(resolved: Resolved[Config]) -> None:
    """Embed, and say where the table is."""
    from ssl_vit.evaluate.embed import embed_files

    print(embed_files(resolved.config))


def plan(resolved: Resolved[Config]) -> list[str]:
    """What it would do."""
    config = resolved.config
    what = "features of each patch" if config.patches else "one vector for each"
    return files_plan(config.images, encoder_line(config.encoder)[0], f"{config.out}: {what}")
