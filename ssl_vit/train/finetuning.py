"""Fine-tuning from a config: encoder, labeled images, training, evaluation on the test images."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ssl_vit.callbacks.image_logger import ImageLogger
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.recipes import FINETUNE
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig, EncoderConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import open_source
from ssl_vit.evaluate.evaluation import require_classes
from ssl_vit.evaluate.features import Resources, extract_features
from ssl_vit.evaluate.metrics import confusion_image, figures
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.files import newest_run, write_json
from ssl_vit.supervised.classifier import Classifier, start_of
from ssl_vit.supervised.distill import load_teacher
from ssl_vit.supervised.finetune import FineTune
from ssl_vit.train.runs import Session
from ssl_vit.train.trainer import data_of

LOGGED = ("top1", "top5", "calibration_error")


def finetune(config: FinetuneRun) -> tuple[Path, dict[str, Any]] | None:
    """Train to the end and evaluate the last epoch's weights; the run directory, and what finetune.json holds.

    On the first rank; None on the others.

    Raises:
        ValueError, OSError: bad input or a full disk; what is written stays, and the log has how to resume.
    """
    session = Session(config, "", prefix=FINETUNE)
    config = replace(config, encoder=config.encoder or str(newest_run()))
    encoder, architecture = start_of(config)
    session.config = config = replace(config, data=with_statistics(config.data, encoder))
    data = labeled_data(config, architecture)
    objective = objective_of(config, encoder, architecture, data)
    data.transform = objective.transform()
    session.open()
    trained = session.fit(objective, data, OnlineAccuracy(config.monitor, session.run_dir), architecture)
    if trained is None:
        return None
    result = evaluate_on_test(session, trained, data) | {"seconds": session.seconds}
    readout = {"pool": trained.config.pool, "layer": "last", "blocks": 1}
    metadata = {"start": config.encoder, "init": config.init, "readout": readout, "step": trained.global_step}
    session.export(trained.export, **metadata)
    write_json(session.run_dir / "finetune.json", result)
    return session.run_dir, result


def with_statistics(data: DataConfig, encoder: VisionTransformer) -> DataConfig:
    """The data options with the normalization that the encoder was trained with."""
    mean, std = encoder.metadata.get("mean", IMAGENET_MEAN), encoder.metadata.get("std", IMAGENET_STD)
    return replace(data, mean=list(mean), std=list(std))


def labeled_data(config: FinetuneRun, architecture: EncoderConfig) -> ImageDataModule:
    """The run's labeled images.

    Raises:
        ValueError: no labels, one class only, a test class that training lacks, images of other channels.
    """
    require_channels(config, architecture.channels)
    data = data_of(config, None, architecture, labeled=True)
    require_classes(data)
    return data


def require_channels(config: FinetuneRun, channels: int) -> None:
    """ValueError unless the images can be read with the encoder's channels: 1 and 3 always, others as they are."""
    if channels in (1, 3):
        return
    source = open_source(config.data, channels, "train")
    with suppress(OSError), source.open_image(0) as image:  # pyright: ignore  # an unreadable one is named when it is read
        bands = image.getbands()
        if len(bands) != channels:
            raise ValueError(
                f"encoder={config.encoder} sees {channels} channels, but the images of data.path={config.data.path} "
                f"have {len(bands)} ({', '.join(bands)}): give images or an encoder that fit"
            )


def objective_of(
    config: FinetuneRun, encoder: VisionTransformer, architecture: EncoderConfig, data: ImageDataModule
) -> FineTune:
    """What trains the run's classifier, teacher included."""
    counts = torch.bincount(torch.from_numpy(data.labels("train")), minlength=len(data.classes))
    teacher, statistics = None, (config.data.mean, config.data.std)
    if config.distill.teacher:
        teacher = load_teacher(config.distill.teacher, data.classes, architecture, statistics)
    return FineTune(
        encoder,
        data.classes,
        config.optim,
        config.seed,
        image_size=config.image_size,
        counts=counts,
        teacher=teacher,
        distill=config.distill,
        **vars(config.finetune),
    )


def class_probabilities(model: Classifier) -> Callable[[Tensor], Tensor]:
    """Class probabilities by a model in eval mode; bf16 where the GPU has it."""
    model = model.eval()
    on_gpu = next(model.parameters()).is_cuda

    def probabilities(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            return model(images).float().softmax(1)

    return probabilities


class OnlineAccuracy(ImageLogger):
    """Evaluates the classifier on test images: monitor/top1, monitor/top5 and monitor/calibration_error."""

    def measure(self, objective: FineTune, data: ImageDataModule) -> dict[str, float]:
        probabilities_of, resources = class_probabilities(objective.final_model()), Resources(str(objective.device))
        probabilities, labels = extract_features(
            probabilities_of, data, "test", self.config.test_limit, resources=resources
        )
        metrics = figures(probabilities, labels, data.classes)
        return {f"monitor/{name}": metrics[name] for name in LOGGED if metrics[name] is not None}


def evaluate_on_test(session: Session, objective: FineTune, data: ImageDataModule) -> dict[str, Any]:
    """Score the final weights on all test images: the JSON line, confusion.png and TensorBoard's test/*."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the trainer has put the weights back on the CPU
    probabilities_of = class_probabilities(objective.final_model().to(device))
    probabilities, labels = extract_features(probabilities_of, data, "test", resources=Resources(device))
    metrics, step = figures(probabilities, labels, data.classes), objective.global_step
    scalars = {name: metrics[name] for name in LOGGED if metrics[name] is not None}
    session.log_image("confusion", confusion_image(probabilities, labels), "confusion.png", step, **scalars)
    config, ema = session.config, objective.config.ema
    assert isinstance(config, FinetuneRun)
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
