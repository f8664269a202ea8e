"""Classify images by a fine-tuned model, into a table."""

from ssl_vit.cli.main import typed
from ssl_vit.config.finetune_schema import PredictConfig
from ssl_vit.config.help import help_page
from ssl_vit.config.resolve import resolve

USAGE = "images=FILE_OR_FOLDER [model=RUN_OR_FILE] [out=predictions.csv] [top=5]"


def help(args: list[str]) -> str:
    """Every setting."""
    return help_page(PredictConfig, f"{typed('predict')} {USAGE}", args)


def run(args: list[str]) -> None:
    """Write the table."""
    config = resolve(PredictConfig, args).config
    from ssl_vit.supervised.predict import predict

    out, table = predict(config)
    unread = [row for row in table if row["error"]]
    print(f"{len(table) - len(unread)} images classified, {len(unread)} could not be read: {out}")
