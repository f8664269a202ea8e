"""Evaluate an encoder beside its controls; write the figures, a confusion image, and the evaluation's last line."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_vit.config.evaluation_schema import TIMM, EvaluationConfig, KNNConfig, LinearProbeConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.attentive import evaluate_attentive
from ssl_vit.evaluate.backbones import Backbone, EncoderBackbone, RawPixels, load_timm
from ssl_vit.evaluate.evaluation import Evaluation, Result
from ssl_vit.evaluate.features import Resources, local_device
from ssl_vit.evaluate.few_shot import evaluate_few_shot, require_shots
from ssl_vit.evaluate.knn import evaluate_knn, knn_scores
from ssl_vit.evaluate.linear import evaluate_grid, evaluate_logreg, logistic_scores
from ssl_vit.evaluate.metrics import confusion_image, figures
from ssl_vit.evaluate.paper_probes import evaluate_beit, evaluate_dino, evaluate_mae
from ssl_vit.models.weights import load_encoder
from ssl_vit.parallel.distributed import process_group
from ssl_vit.run.files import RUNS, newest_run, write_atomic, write_json

LINEAR = {
    "grid": evaluate_grid,
    "logreg": evaluate_logreg,
    "mae": evaluate_mae,
    "dino": evaluate_dino,
    "beit": evaluate_beit,
    "attentive": evaluate_attentive,
}
"""Linear protocols by name, as config.evaluation.PROTOCOLS."""


def evaluate(config: EvaluationConfig) -> dict[str, Any] | None:
    """Evaluate the encoder of a config, and a random encoder and raw pixels beside it; write <task>.json beside it.

    Under torchrun every process extracts the features of its images. The first one writes, and has the result; the
    others have None.

    Raises:
        ValueError: the images have no labels, or do not fit the encoder.
    """
    with process_group() as ranks:
        started = time.time()
        backbone, name, folder = open_backbone(config)
        resources = Resources(local_device(), ranks, config.data.cache_gb, folder)
        evaluation = Evaluation(config, images_for(backbone, name, config), resources)
        backbones = {"encoder": backbone}
        if config.controls:
            backbones["random encoder"] = backbone.random(config.seed)
            backbones["raw pixels"] = RawPixels(backbone.height_width, backbone.channels, backbone.patch_size)
        if config.few:
            require_shots(evaluation)
        rows = {}
        for label, each in backbones.items():
            each.module.to(resources.device)
            rows[label] = few_row(evaluation, each) if config.few else full_row(evaluation, each, label == "encoder")
        if ranks[0]:
            return None
        own, trained_on = rows.pop("encoder"), len(evaluation.train_labels)
        result = {
            "task": config.task,
            "top1": own.pop("top1"),
            "top5": own.pop("top5"),
            "encoder": name,
            "data": f"{config.data.source}:{config.data.path}".rstrip(":"),
            "layer": own["head"]["blocks"][-1],
            "protocol": f"{own.pop('how')}; {trained_on} training images; {evaluation.data.split_note}",
            "controls": {control: row["top1"] for control, row in rows.items()},
            **own,
            "test_images": len(evaluation.test_labels),
            "seed": config.seed,
            "seconds": round(time.time() - started, 1),
        }
        write_json(folder / f"{config.task}.json", result)
        write_events(folder / config.task, result, backbone.metadata.get("step", 0))
        return result


def open_backbone(config: EvaluationConfig) -> tuple[Backbone, str, Path]:
    """The encoder to evaluate, its name, and the folder that its figures go to."""
    if config.encoder.startswith(TIMM):
        folder = RUNS / config.encoder.replace(":", "-").replace("/", "-")
        return load_timm(config.encoder.removeprefix(TIMM)), config.encoder, folder
    source = Path(config.encoder) if config.encoder else newest_run()
    return EncoderBackbone(load_encoder(source)), str(source), source if source.is_dir() else source.parent


def images_for(backbone: Backbone, name: str, config: EvaluationConfig) -> ImageDataModule:
    """The images, in the encoder's size and normalized as in its training, where that is known.

    ValueError where they have other channels than it takes.
    """
    known = {key: backbone.metadata[key] for key in ("mean", "std") if key in backbone.metadata}
    data = replace(config.data, **known)
    if len(data.mean) != backbone.channels:
        raise ValueError(
            f"encoder={name} takes images of {backbone.channels} channels, data.mean={data.mean} is of "
            f"{len(data.mean)}: give data.mean= and data.std= one number a channel, or another encoder"
        )
    return ImageDataModule(None, data, image_size=backbone.height_width, channels=backbone.channels, seed=config.seed)


def full_row(evaluation: Evaluation, backbone: Backbone, draws_confusion: bool) -> dict[str, Any]:
    """Figures of a backbone from all training images; a confusion image too, by the first process."""
    config, labels, resources = evaluation.config, evaluation.test_labels, evaluation.resources
    protocol = LINEAR[config.protocol] if isinstance(config, LinearProbeConfig) else evaluate_knn
    result: Result = protocol(evaluation, backbone)
    if draws_confusion and resources.ranks[0] == 0:
        from torchvision.io import encode_png

        image = encode_png(confusion_image(result.probabilities, labels))
        write_atomic(resources.folder / f"{config.task}-confusion.png", image.numpy().tobytes())
    row = {"how": result.how, "head": result.head}
    return row | figures(result.probabilities, labels, evaluation.data.classes)


def few_row(evaluation: Evaluation, backbone: Backbone) -> dict[str, Any]:
    """Figures of a backbone from few training images; top1 and top5 are the means of the last number of them."""
    config, scores_of, how = evaluation.config, logistic_scores, "logistic regression, C=1"
    if isinstance(config, KNNConfig):
        k, device = min(config.neighbors), evaluation.resources.device
        how = f"{k}-NN or all, cosine, T={config.temperature:g}"

        def scores_of(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
            return knn_scores(train, labels, test.to(device), k, config.temperature).cpu()

    found = evaluate_few_shot(evaluation, backbone, scores_of)
    last = list(list(found.values())[-1].values())[-1]
    head = evaluation.readable(backbone)[0].metadata
    return {"how": how, "head": head, "top1": last["mean"], "top5": last["top5"], **found}


def write_events(folder: Path, result: dict[str, Any], step: int) -> None:
    """The figures as TensorBoard events, at the encoder's training step."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for name in ("top1", "top5", "calibration_error"):
            if result.get(name) is not None:
                writer.add_scalar(f"{result['task']}/{name}", result[name], step)
        for kind in ("shots", "fraction"):
            for amount, figure in result.get(kind, {}).items():
                writer.add_scalar(f"{result['task']}/{kind}_{amount}", figure["mean"], step)


def show(result: dict[str, Any] | None) -> None:
    """Print the top-1 of the encoder and of its controls, and the line; nothing where another process has them."""
    if result is None:
        return
    from rich.console import Console
    from rich.table import Table

    rows = Table("features", "top-1", title=f"{result['task']} on {result['data']}: {result['test_images']} images")
    rows.add_row("this encoder", f"[bold]{result['top1']:.1%}[/bold]")
    for name, score in result["controls"].items():
        rows.add_row(name, f"{score:.1%}")
    Console().print(rows)
    print(json.dumps(result))
