"""Classify images by a fine-tuned model, into a table."""

from ssl_vit.config.finetune_schema import PredictConfig as Config
from ssl_vit.config.resolve import Resolved

USAGE = "images=FILE_OR_FOLDER [model=RUN_OR_FILE] [out=predictions.csv] [top=5]"


def run(resolved: Resolved[Config]) -> None:
    """Write the table."""
    from ssl_vit.supervised.predict import predict

    out, table = predict(resolved.config)
    unread = sum(bool(row["error"]) for row in table)
    print(f"{len(table) - unread} images classified, {unread} could not be read: {out}")
