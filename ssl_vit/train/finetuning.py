"""Fine-tuning from a config: encoder, labeled images, training, evaluation on the test images."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.recipes import FINETUNE
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import open_source
from ssl_vit.evaluate.evaluation import require_classes
from ssl_vit.evaluate.legend import CONFUSION, titled_grid
from ssl_vit.evaluate.metrics import confusion_image, figures
from ssl_vit.models.decode import bands_of
from ssl_vit.models.weights import require_finite, statistics_of
from ssl_vit.run.files import MODEL, newest_run, write_json
from ssl_vit.supervised.classifier import start_of
from ssl_vit.supervised.distill import load_teacher
from ssl_vit.supervised.finetune import LOGGED, FineTune, class_probabilities
from ssl_vit.train.trainer import Session, data_of


def finetune(config: FinetuneRun, session_of: Callable[..., Session] = Session) -> tuple[Path, dict[str, Any]] | None:
    """Train and evaluate; the run directory, and what finetune.json holds, on the first rank, None on the others.

    Raises:
        ValueError, OSError: bad input or a full disk; what is written stays, and the log has how to resume.
    """
    session = session_of(config, "", prefix=FINETUNE)
    config = replace(config, encoder=config.encoder or str(newest_run()))
    encoder, session.patches = start_of(config)
    mean, std = statistics_of(encoder.metadata, f"encoder={config.encoder}", config.data)
    session.config = config = replace(config, data=replace(config.data, mean=mean, std=std))
    require_channels(config, session.patches.channels)
    data = data_of(config, None, session.patches, labeled=True)
    require_classes(data)
    teacher, counts = None, torch.bincount(torch.from_numpy(data.labels("train")), minlength=len(data.classes))
    if config.distill.teacher:
        statistics = (config.data.mean, config.data.std)
        teacher = load_teacher(config.distill.teacher, data.classes, session.patches, statistics)
    given = {"image_size": config.image_size, "counts": counts, "teacher": teacher, "distill": config.distill}
    given["monitor"] = config.monitor
    objective = FineTune(encoder, data.classes, config.optim, config.seed, **given, **vars(config.finetune))
    data.transform = objective.transform()
    session.open()
    trained = session.fit(objective, data)
    if trained is None:
        return None
    require_finite(trained.final_model().state_dict(), session.run_dir / MODEL)
    result = evaluate_on_test(session, config, trained, data) | {"seconds": session.seconds}
    readout = {"pool": trained.config.pool, "layer": "last", "blocks": 1}
    metadata = {"start": config.encoder, "init": config.init, "readout": readout}
    session.export(trained.export, **metadata)
    write_json(session.run_dir / "finetune.json", result)
    return session.run_dir, result


def require_channels(config: FinetuneRun, channels: int) -> None:
    """ValueError unless the images can be read with the encoder's channels: 1 and 3 always, others as they are."""
    if channels in (1, 3):
        return
    bands, source = channels, open_source(config.data, channels, "train")
    with suppress(OSError), source.open_image(0) as image:  # pyright: ignore  # an unreadable one is named when it is read
        bands = bands_of(image)
    if bands != channels:
        raise ValueError(
            f"encoder={config.encoder} sees {channels} channels, but the images of data.path={config.data.path} have "
            f"{bands}: give images or an encoder that fit"
        )


def evaluate_on_test(session: Session, config: FinetuneRun, objective: Any, data: ImageDataModule) -> dict[str, Any]:
    """Score the final weights on all test images: the JSON line, confusion.png and TensorBoard's test/*."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the trainer has put the weights back on the CPU
    probabilities, labels = class_probabilities(objective.final_model().to(device), data)
    metrics, step, ema = figures(probabilities, labels, data.classes), objective.global_step, objective.config.ema
    scalars = {name: metrics[name] for name in LOGGED if metrics[name] is not None}
    matrix = titled_grid([confusion_image(probabilities, labels)], [CONFUSION], 1)
    session.log_image("confusion", matrix, "confusion.png", step, **scalars)
    weights = f"moving average {ema:g}" if ema else "last weights"
    length = f"{objective.current_epoch} epochs, {step} steps on {len(data.labels('train'))} labeled images"
    return {
        "task": FINETUNE,
        **metrics,
        "encoder": config.encoder,
        "init": config.init,
        "data": f"{config.data.source}:{config.data.path}".rstrip(":"),
        "protocol": "; ".join([f"recipe={config.recipe}", length, weights, data.split_note]),
        "test_images": len(labels),
        "seed": config.seed,
    }
