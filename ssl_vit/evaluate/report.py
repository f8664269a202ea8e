"""Score an encoder beside its controls, and write the one JSON line that every evaluation ends with."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_vit.checkpoint import load_encoder
from ssl_vit.config.tools import ProbeConfig
from ssl_vit.data.module import ImageDataModule
from ssl_vit.encoder import VisionTransformer
from ssl_vit.evaluate.features import best_layer, describer, extract, layers_of
from ssl_vit.evaluate.knn import knn_scores
from ssl_vit.evaluate.linear import logistic_scores
from ssl_vit.evaluate.scores import top_k
from ssl_vit.runs import newest_run, write_json

Judge = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, str]]
"""(training features, training labels, test features) -> (scores per class, how they were made)."""


def judge_of(task: str, config: ProbeConfig) -> Judge:
    """The classifier of a task: linear_probe or knn."""
    if task == "linear_probe":

        def linear(train: Tensor, labels: Tensor, test: Tensor) -> tuple[Tensor, str]:
            return logistic_scores(train, labels, test), "logistic regression, C=1"

        return linear

    def knn(train: Tensor, labels: Tensor, test: Tensor) -> tuple[Tensor, str]:
        scores = knn_scores(train, labels, test, config.neighbours, config.temperature)
        return scores, f"{config.neighbours}-NN, cosine, T={config.temperature:g}"

    return knn


def source_of(config: ProbeConfig) -> Path:
    """Where the encoder lies: as given, by default the newest run."""
    return Path(config.encoder) if config.encoder else newest_run()


def evaluate(task: str, config: ProbeConfig) -> dict[str, Any]:
    """Judge the encoder of a config, and a random encoder and raw pixels beside it; write <task>.json beside it.

    Raises:
        ValueError: the pictures have no labels, or do not fit the encoder.
    """
    started, source = time.time(), source_of(config)
    encoder = load_encoder(source)
    data = ImageDataModule(
        None,
        _with_statistics(config, encoder),
        image_size=encoder.config.height_width,
        channels=encoder.config.channels,
        seed=config.seed,
    )
    data.setup()
    if not data.has_labels:
        raise ValueError(
            f"data.path={config.data.path} has no labels to judge by: give data.path= with a folder for each class, "
            "or a parquet file with a label column"
        )
    judge, rows = judge_of(task, config), {}
    for name, (describe, blocks) in _describers(encoder, config).items():
        rows[name] = _score(describe, blocks, judge, data, config)
    own = rows["encoder"]
    layer = config.layer if config.layer != "best" else f"{own['layer']} of {encoder.depth}, best on held-out fifths"
    how = f"{own['how']}; pool={config.pool}; layer={layer}; blocks={config.blocks}"
    result = {
        "task": task,
        "top1": own["top1"],
        "top5": own["top5"],
        "encoder": str(source),
        "data": f"{config.data.source}:{config.data.path}".rstrip(":"),
        "layer": own["layer"],
        "protocol": f"{how}; {own['train']} training pictures; {data.split_note}",
        "controls": {name: row["top1"] for name, row in rows.items() if name != "encoder"},
        "test_pictures": own["test"],
        "seed": config.seed,
        "seconds": round(time.time() - started, 1),
    }
    write_json((source if source.is_dir() else source.parent) / f"{task}.json", result)
    return result


def _with_statistics(config: ProbeConfig, encoder: VisionTransformer) -> Any:
    """The data settings with the normalisation that the encoder was trained with, where it says so."""
    known = {key: encoder.facts[key] for key in ("mean", "std") if key in encoder.facts}
    return replace(config.data, **known)


def _describers(
    encoder: VisionTransformer, config: ProbeConfig
) -> dict[str, tuple[Callable[[Tensor], Tensor], list[int]]]:
    """What describes a picture, and the blocks whose features it puts side by side, by row."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers = layers_of(encoder, config.layer, config.blocks)
    rows = {"encoder": (describer(encoder.to(device), config.pool, layers), layers)}
    if config.controls:
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            random = VisionTransformer(encoder.config).to(device).eval()
        rows["random encoder"] = (describer(random, config.pool, layers), layers)
        rows["raw pixels"] = (lambda images: images.flatten(1), [])
    return rows


def _score(
    describe: Callable[[Tensor], Tensor], layers: list[int], judge: Judge, data: ImageDataModule, config: ProbeConfig
) -> dict[str, Any]:
    """Scores on the test pictures; with layer=best of the one of the layers that held-out training pictures choose."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, train_labels = extract(describe, data, "train", config.train_limit, config.seed, device)
    test, test_labels = extract(describe, data, "test", 0, config.seed, device)
    layer = 1 + layers[-1] if layers else None
    if config.layer == "best" and layers:
        layer = best_layer(lambda *parts: judge(*parts)[0], train, train_labels, len(layers), config.seed)
        train, test = (features.chunk(len(layers), dim=1)[layer - 1] for features in (train, test))
    scores, how = judge(train, train_labels, test)
    best = {f"top{k}": top_k(scores, test_labels, k) for k in (1, 5)}
    return best | {"how": how, "layer": layer, "train": len(train), "test": len(test)}


def table(result: dict[str, Any]) -> None:
    """Print the top-1 of the encoder and of its controls."""
    from rich.console import Console
    from rich.table import Table

    rows = Table("features", "top-1", title=f"{result['task']} on {result['data']}: {result['test_pictures']} pictures")
    rows.add_row("this encoder", f"[bold]{result['top1']:.1%}[/bold]")
    for name, score in result["controls"].items():
        rows.add_row(name, f"{score:.1%}")
    Console().print(rows)
