"""Classes of images by a fine-tuned model, as a table: one row an image, those that cannot be read among them.

Letters: B images, K classes.
"""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_vit.config.finetune_schema import PredictConfig
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.sources.folder import ENDINGS, Folder, scan
from ssl_vit.data.transforms.color import normalize
from ssl_vit.data.transforms.crops import CenterCrop
from ssl_vit.run.files import MODEL, newest_run, write_atomic
from ssl_vit.supervised.classifier import Classifier, load_classifier

Row = dict[str, Any]
"""file, prediction, probability, top (name -> probability, best first) and error, one of the last two empty."""


def predict(config: PredictConfig) -> tuple[Path, list[Row]]:
    """Write the table of a file's or folder's images; where it lies, and its rows in the order of the names.

    Raises:
        FileNotFoundError: there is no such model, file or folder.
        ValueError: the folder holds no images.
    """
    path, out = Path(config.images), Path(config.out)
    if not config.images or not path.exists():
        raise FileNotFoundError(f"images={config.images}: there is no such file or folder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_classifier(config.model or newest_run(holding=MODEL)).to(device)
    data = DataConfig(**model.metadata.get("data", {}))
    listing = scan(os.fsencode(path.parent if path.is_file() else path), least_classes=2)
    files = Folder(data, model.encoder.config.channels, listing)
    wanted = [i for i in range(len(files)) if path.is_dir() or Path(files.name(i)) == path]
    if not wanted:
        raise ValueError(f"images={path} holds no images: {listing.other or 'it'}, images end in {', '.join(ENDINGS)}")
    transform, rows = CenterCrop(model.encoder.config.height_width, data.eval_crop), dict[int, Row]()
    for first in range(0, len(wanted), config.batch_size):
        images = dict[int, Tensor]()
        for i in wanted[first : first + config.batch_size]:
            try:
                images[i] = transform(torch.from_numpy(files.read(i).copy()).permute(2, 0, 1))
            except UnreadableImageError as error:
                rows[i] = {"file": files.name(i), "prediction": "", "probability": None, "top": {}, "error": str(error)}
        if images:
            best = classify(model, torch.stack(list(images.values())).to(device), config.top)
            for i, top in zip(images, best, strict=True):
                name, probability = next(iter(top.items()))
                rows[i] = {
                    "file": files.name(i),
                    "prediction": name,
                    "probability": probability,
                    "top": top,
                    "error": "",
                }
    table = [rows[i] for i in wanted]
    write_atomic(out, json.dumps(table, indent=2) + "\n" if out.suffix == ".json" else as_csv(table, config.top))
    return out, table


@torch.inference_mode()
def classify(model: Classifier, pixels: Tensor, top: int) -> list[dict[str, float]]:
    """The most probable classes of uint8 images [B, C, H, W], best first, with their probabilities."""
    mean, std = model.metadata.get("mean", IMAGENET_MEAN), model.metadata.get("std", IMAGENET_STD)
    probabilities = model(normalize(pixels, mean, std)).float().softmax(1)
    fractions, numbers = probabilities.topk(min(top, len(model.classes)))
    return [
        {model.classes[number]: round(fraction, 6) for fraction, number in zip(row, which, strict=True)}
        for row, which in zip(fractions.tolist(), numbers.tolist(), strict=True)
    ]


def as_csv(table: list[Row], top: int) -> str:
    """Rows of file, prediction, probability, class_2, probability_2, ... and error."""
    names = [f"{word}_{rank}" for rank in range(2, top + 1) for word in ("class", "probability")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "prediction", "probability", *names, "error"])
    for row in table:
        others = [value for pair in list(row["top"].items())[1:] for value in pair]
        others += [""] * (len(names) - len(others))
        writer.writerow([row["file"], row["prediction"], row["probability"], *others, row["error"]])
    return text.getvalue()
