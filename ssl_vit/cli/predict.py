"""Classify images by a fine-tuned model, into a table or an HTML page."""

from ssl_vit.cli.plans import files_plan
from ssl_vit.config.finetune_schema import PredictConfig as Config
from ssl_vit.config.resolve import Resolved

USAGE = "[images=FILE_OR_FOLDER] [model=RUN_OR_FILE] [out=predictions.csv|.json|.html] [top=5]"


def run(resolved: Resolved[Config]) -> None:
    """Write the table, or the page."""
    from ssl_vit.supervised.predict import predict

    out, table = predict(resolved.config)
    unread = sum(bool(row["error"]) for row in table)
    print(f"{len(table) - unread} images classified, {unread} could not be read: {out}")


def plan(resolved: Resolved[Config]) -> list[str]:
    """What it would do."""
    from ssl_vit.run.files import MODEL, newest_run
    from ssl_vit.supervised.classifier import load_classifier
    from ssl_vit.supervised.predict import require_writable

    config = resolved.config
    path = config.model or newest_run(holding=MODEL)
    classes = len(load_classifier(path).classes)
    require_writable(config)
    kind = "a page with thumbnails, the least confident first" if config.out.endswith(".html") else "a row for each"
    writes = f"{config.out}: {kind}, {min(config.top, classes)} of {classes:,} classes"
    return files_plan(config.images, f"model         {path}: {classes:,} classes", writes)
