"""Fine-tuning from a config: encoder, labeled images, training, the verdict on the test images."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ssl_vit import __version__
from ssl_vit.callbacks.online_eval import ImageLogger, save_image
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.recipes import FINETUNE
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig, EncoderConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import open_source
from ssl_vit.evaluate.evaluation import require_classes
from ssl_vit.evaluate.features import Resources, extract_features
from ssl_vit.evaluate.metrics import confusion_image, figures
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.directory import open_run
from ssl_vit.run.files import newest_run, write_json
from ssl_vit.supervised.classifier import Classifier, start_of
from ssl_vit.supervised.distill import load_teacher
from ssl_vit.supervised.finetune import FineTune
from ssl_vit.train.trainer import fit, quiet_lightning


def finetune(config: FinetuneRun) -> tuple[Path, dict[str, Any]] | None:
    """Train to the end and judge the last epoch's weights; the run directory, and what finetune.json says.

    Of several processes the first one writes and has them, the others have None.

    Raises:
        ValueError, OSError: bad input or a full disk; what is written stays, and the log says how to go on.
    """
    quiet_lightning()
    started = time.time()
    pl.seed_everything(config.seed, verbose=False)
    config = replace(config, encoder=config.encoder or str(newest_run()))
    encoder, architecture = start_of(config)
    config = replace(config, data=with_statistics(config.data, encoder))
    data = labeled_data(config, architecture)
    objective = objective_of(config, encoder, architecture, data)  # what does not fit shows before anything is written
    data.transform = objective.transform()
    run_dir, checkpoint = open_run(config, "", FINETUNE)
    trained = fit(config, objective, data, run_dir, checkpoint, Grader(config.monitor, run_dir), architecture)
    if trained is None:
        return None
    result = judge(config, trained, data, run_dir) | {"seconds": round(time.time() - started, 1)}
    print(f"saved {trained.export(run_dir, **run_metadata(config, trained))}")
    write_json(run_dir / "finetune.json", result)
    return run_dir, result


def with_statistics(data: DataConfig, encoder: VisionTransformer) -> DataConfig:
    """The data settings with the normalization that the encoder was trained with."""
    mean, std = encoder.metadata.get("mean", IMAGENET_MEAN), encoder.metadata.get("std", IMAGENET_STD)
    return replace(data, mean=list(mean), std=list(std))


def labeled_data(config: FinetuneRun, architecture: EncoderConfig) -> ImageDataModule:
    """The run's labeled images.

    Raises:
        ValueError: no labels, one class only, a test class that training lacks, images of other channels.
    """
    channels, size = architecture.channels, architecture.height_width
    require_channels(config, channels)
    data = ImageDataModule(None, config.data, image_size=size, channels=channels, seed=config.seed, labeled=True)
    require_classes(data)
    return data


def require_channels(config: FinetuneRun, channels: int) -> None:
    """ValueError unless the images can be read with the encoder's channels: 1 and 3 always, others as they are."""
    if channels in (1, 3):
        return
    source = open_source(config.data, channels, "train")
    with suppress(OSError), source.open_image(0) as image:  # pyright: ignore  # a broken one is named when it is read
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


class Grader(ImageLogger):
    """Judges the classifier on test images: monitor/top1, monitor/top5 and monitor/calibration_error."""

    def measure(self, objective: FineTune, data: ImageDataModule) -> dict[str, float]:
        probabilities, labels = extract_features(
            feature_extractor(objective.judged()),
            data,
            "test",
            self.config.test_limit,
            resources=Resources(str(objective.device)),
        )
        found = figures(probabilities, labels, data.classes)
        kept = {name: found[name] for name in ("top1", "top5", "calibration_error")}
        return {f"monitor/{name}": value for name, value in kept.items() if value is not None}


def feature_extractor(model: Classifier) -> Callable[[Tensor], Tensor]:
    """Class probabilities by a model in eval mode; bf16 where the GPU has it."""
    model = model.eval()
    on_gpu = next(model.parameters()).is_cuda

    def extract_features(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            return model(images).float().softmax(1)

    return extract_features


def judge(config: FinetuneRun, objective: FineTune, data: ImageDataModule, run_dir: Path) -> dict[str, Any]:
    """Score the final weights on all test images: the JSON line, confusion.png and TensorBoard's test/*."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the trainer has put the weights back on the CPU
    probabilities, labels = extract_features(
        feature_extractor(objective.judged().to(device)), data, "test", resources=Resources(device)
    )
    found, step = figures(probabilities, labels, data.classes), objective.global_step
    confusion = confusion_image(probabilities, labels)
    save_image(confusion, run_dir / "confusion.png")
    with SummaryWriter(str(run_dir)) as writer:
        writer.add_image("confusion", confusion, step)
        for name in ("top1", "top5", "calibration_error"):
            if found[name] is not None:
                writer.add_scalar(f"test/{name}", found[name], step)
    weights = f"moving average {config.finetune.ema:g}" if config.finetune.ema else "last weights"
    length = f"{objective.current_epoch} epochs, {step} steps on {len(data.labels('train'))} labeled images"
    return {
        "task": FINETUNE,
        **found,
        "encoder": config.encoder,
        "init": config.init,
        "data": f"{config.data.source}:{config.data.path}".rstrip(":"),
        "protocol": "; ".join([f"recipe={config.recipe}", length, weights, data.split_note]),
        "test_images": len(labels),
        "seed": config.seed,
    }


def run_metadata(config: FinetuneRun, objective: FineTune) -> dict[str, Any]:
    """What the files say of the training."""
    return {
        "method": FINETUNE,
        "recipe": config.recipe,
        "start": config.encoder,
        "init": config.init,
        "mean": config.data.mean,
        "std": config.data.std,
        "data": asdict(config.data),
        "readout": {"pool": config.finetune.pool, "layer": "last", "blocks": 1},
        "step": objective.global_step,
        "seed": config.seed,
        "ssl_vit": __version__,
        "torch": torch.__version__,
    }
