"""Evaluate an encoder beside its controls; write the figures, a confusion image, and the evaluation's last line."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_vit.config.evaluation_schema import TIMM, EvaluationConfig, LinearProbeConfig, protocol_of
from ssl_vit.config.recipes import imported, load_class
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.backbones import Backbone, EncoderBackbone, RawPixels, load_timm
from ssl_vit.evaluate.evaluation import Evaluation, Result, readout_of
from ssl_vit.evaluate.features import Resources, local_device
from ssl_vit.evaluate.few_shot import evaluate_few_shot
from ssl_vit.evaluate.knn import evaluate_knn
from ssl_vit.evaluate.legend import CONFUSION, titled_grid
from ssl_vit.evaluate.metrics import confusion_image, figures, p_same, right
from ssl_vit.models.weights import load_encoder, statistics_of
from ssl_vit.parallel.distributed import process_group
from ssl_vit.run.files import RUNS, newest_run, write_atomic, write_json

SIGNIFICANT = 0.05  # two rows differ where chance alone makes such a difference less often


def evaluate(config: EvaluationConfig) -> dict[str, Any] | None:
    """Evaluate an encoder, and its controls, and write <task>.json beside it; None but on the first rank.

    ValueError where the images have no labels, or do not fit the encoder.
    """
    with process_group() as ranks:
        started = time.time()
        backbone, name, folder = open_backbone(config)
        readout = readout_of(backbone, config, f"encoder={name}")
        resources = Resources(local_device(), ranks, config.data.cache_gb, folder)
        evaluation = Evaluation(config, images_for(backbone, name, config), resources, readout)
        if not ranks[0]:
            print(*images_lines(evaluation), sep="\n", flush=True)
        rows = {}
        for label, each in with_controls(backbone, config).items():
            evaluation.title = "" if ranks[0] else label
            each.module.to(resources.device)
            if config.few:
                rows[label] = evaluate_few_shot(evaluation, each)
            else:
                rows[label] = full_row(evaluation, each, draws_confusion=label == "encoder" and not ranks[0])
        if ranks[0]:
            return None
        hits = {label: row.pop("hits") for label, row in rows.items() if "hits" in row}
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
            "controls_interval": {control: row["top1_interval"] for control, row in rows.items() if control in hits},
            "controls_p": {control: p_same(hits["encoder"], hits[control]) for control in rows if control in hits},
            **own,
            "test_images": len(evaluation.test_labels),
            "seed": config.seed,
            "seconds": round(time.time() - started, 1),
        }
        write_json(folder / f"{config.task}.json", result)
        write_events(folder / config.task, result, backbone.metadata.get("step", 0))
        return result


def with_controls(backbone: Backbone, config: EvaluationConfig) -> dict[str, Backbone]:
    """What an evaluation compares, by name: the encoder, and unless it is without controls a random one and pixels."""
    controls = {
        "random encoder": lambda: backbone.random(config.seed),
        "raw pixels": lambda: RawPixels(backbone.height_width, backbone.channels, backbone.patch_size),
    }
    return {"encoder": backbone} | {name: made() for name, made in controls.items() if config.controls}


def images_lines(evaluation: Evaluation) -> list[str]:
    """What a header says of the images, and of the protocol where their number has chosen it."""
    count, config = len(evaluation.train_labels), evaluation.config
    lines = evaluation.data.splits.lines(count, len(evaluation.test_labels))
    if getattr(config, "protocol", "") == "auto" and not config.few:
        chosen, why = config.chosen(count)
        lines += [f"protocol      {chosen}: {why} (protocol=auto)"]
    return lines


def evaluator_of(config: EvaluationConfig) -> Callable[[Evaluation, Backbone], Result]:
    """The function of a protocol, or of k-NN. ConfigError: there is none of this name."""
    if not isinstance(config, LinearProbeConfig):
        return evaluate_knn
    home = protocol_of(config.protocol).home
    return load_class(home) if home else imported("protocol", config.protocol)


def open_backbone(config: EvaluationConfig, pretrained: bool = True) -> tuple[Backbone, str, Path]:
    """The encoder to evaluate, its name, and the folder that its figures go to; pretrained: of a model of timm."""
    if config.encoder.startswith(TIMM):
        folder = RUNS / config.encoder.replace(":", "-").replace("/", "-")
        return load_timm(config.encoder.removeprefix(TIMM), pretrained), config.encoder, folder
    source = Path(config.encoder) if config.encoder else newest_run()
    return EncoderBackbone(load_encoder(source)), str(source), source if source.is_dir() else source.parent


def images_for(backbone: Backbone, name: str, config: EvaluationConfig) -> ImageDataModule:
    """The images, in the encoder's size and normalized as in its training; ValueError where their channels differ."""
    mean, std = statistics_of(backbone.metadata, f"encoder={name}", config.data)
    data = replace(config.data, mean=mean, std=std)
    if len(mean) != backbone.channels:
        raise ValueError(
            f"encoder={name} takes images of {backbone.channels} channels, data.mean={data.mean} is of "
            f"{len(data.mean)}: give data.mean= and data.std= one number a channel, or another encoder"
        )
    return ImageDataModule(None, data, image_size=backbone.height_width, channels=backbone.channels, seed=config.seed)


def full_row(evaluation: Evaluation, backbone: Backbone, draws_confusion: bool) -> dict[str, Any]:
    """Figures of a backbone from all training images, and where it is to be drawn a confusion image beside it."""
    config, labels = evaluation.config, evaluation.test_labels
    result: Result = evaluator_of(config)(evaluation, backbone)
    if draws_confusion:
        from torchvision.io import encode_png

        matrix = confusion_image(result.probabilities, labels)
        image = encode_png(titled_grid([matrix], [CONFUSION], 1))
        write_atomic(evaluation.resources.folder / f"{config.task}-confusion.png", image.numpy().tobytes())
    row = {"how": result.how, "head": result.head, "hits": right(result.probabilities, labels)}
    return row | figures(result.probabilities, labels, evaluation.data.classes)


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
    from rich.markup import escape
    from rich.table import Table

    title = f"{result['task']} on {result['data']}: {result['test_images']} images"
    rows = Table("features", "top-1", "95 %", "beside this encoder", title=escape(title))
    rows.add_row("this encoder", f"[bold]{result['top1']:.1%}[/bold]", _percent(result.get("top1_interval")))
    for name, score in result["controls"].items():
        p = result["controls_p"].get(name)
        beside = "" if p is None else f"{'differs' if p < SIGNIFICANT else 'does not differ'}, p = {p:.2g}"
        rows.add_row(name, f"{score:.1%}", _percent(result["controls_interval"].get(name)), beside)
    Console().print(rows)
    print(json.dumps(result))


def _percent(interval: list[float] | None) -> str:
    return f"{interval[0]:.1%} .. {interval[1]:.1%}" if interval else ""
