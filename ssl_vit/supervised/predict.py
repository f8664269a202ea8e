"""Classes of images, as a CSV or JSON file with a row for each, or as an HTML page. Letters: B C H W of images."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ssl_vit.config.checks import require
from ssl_vit.config.finetune_schema import PredictConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.sources.folder import Folder
from ssl_vit.evaluate.features import local_device
from ssl_vit.models.preprocess import CenterCrop, normalize, pixel_settings
from ssl_vit.models.weights import statistics_of
from ssl_vit.run.files import MODEL, newest_run, write_atomic
from ssl_vit.run.tables import as_csv, readable
from ssl_vit.supervised.classifier import Classifier, load_classifier
from ssl_vit.supervised.prediction_page import Gallery, page_of, thumbnail

Row = dict[str, Any]
"""file, prediction, probability, top (name -> probability, best first) and error, one of the last two empty."""


def predict(config: PredictConfig) -> tuple[Path, list[Row]]:
    """Classify a file or a folder's images by name: (file written, rows). FileNotFoundError, ValueError without any."""
    files, out = Folder.at("images", config.images, DataConfig(), 3), Path(config.out)
    path = config.model or newest_run(holding=MODEL)
    model = load_classifier(path).to(local_device())
    out.parent.mkdir(parents=True, exist_ok=True)
    require_writable(config)
    data = pixel_settings(model.metadata, f"model={config.model}")
    files.channels, files.white_16bit = model.encoder.config.channels, data.white_16bit
    transform, rows = CenterCrop(model.encoder.config.height_width, data.eval_crop), list[Row]()
    gallery = Gallery() if out.suffix == ".html" else None
    try:
        for first in range(0, len(files), config.batch_size):
            found, images, thumbnails = list[Row](), list[Tensor](), list[Image.Image]()
            for i in range(first, min(first + config.batch_size, len(files))):
                row = {"file": readable(files.name(i)), "prediction": "", "probability": None, "top": {}, "error": ""}
                found.append(row)
                try:
                    pixels = files.read(i)
                    images.append(transform(torch.from_numpy(pixels.copy()).permute(2, 0, 1)))
                    thumbnails += [thumbnail(pixels)] if gallery else []
                except UnreadableImageError as error:
                    row["error"] = readable(str(error))
            best = iter(classify(model, torch.stack(images).to(local_device()), config.top) if images else [])
            small = iter(thumbnails)
            for row in found:
                if not row["error"]:
                    row["top"] = next(best)
                    row["prediction"], row["probability"] = next(iter(row["top"].items()))
                    if gallery:
                        gallery.add(row, next(small))
            rows += found
    finally:  # whatever ends it, what has been classified is kept
        if rows:
            if gallery:
                source = {"model": readable(str(path)), "images": readable(config.images)}
                text = page_of(rows, gallery, [*map(readable, model.classes)], source, len(files))
            else:
                text = json.dumps(rows, indent=2) + "\n" if out.suffix == ".json" else table_of(rows, config.top)
            write_atomic(out, text)
    return out, rows


def require_writable(config: PredictConfig) -> None:
    """ValueError: out= is no place for a file; a folder that is not there can be made."""
    out = Path(config.out)
    writable = not out.is_dir() and (not out.parent.exists() or os.access(out.parent, os.W_OK))
    require(writable, "out", config.out, "a file in a folder that can be written to")


@torch.inference_mode()
def classify(model: Classifier, pixels: UInt8[Tensor, "B C H W"], top: int) -> list[dict[str, float]]:
    """The most probable classes of each image, best first, with their probabilities."""
    mean, std = statistics_of(model.metadata, "model=")
    fractions, numbers = model(normalize(pixels, mean, std)).float().softmax(1).topk(min(top, len(model.classes)))
    return [
        {readable(model.classes[number]): round(fraction, 6) for fraction, number in zip(row, which, strict=True)}
        for row, which in zip(fractions.tolist(), numbers.tolist(), strict=True)
    ]


def table_of(rows: list[Row], top: int) -> str:
    """CSV of file, prediction, probability, class_2, probability_2, ... and error."""
    names = [f"{name}_{number}" for number in range(2, top + 1) for name in ("class", "probability")]
    columns, cells = ["file", "prediction", "probability", *names, "error"], []
    for row in rows:
        others = [value for pair in list(row["top"].items())[1:] for value in pair]
        row = row | dict(zip(names, others, strict=False))  # there may be fewer classes than columns
        cells.append([row.get(column) for column in columns])
    return as_csv(columns, cells)
