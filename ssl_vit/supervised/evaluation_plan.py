"""What an evaluation will do: encoder, images, what is read, the work and its memory; no image is decoded for it."""

import math
from dataclasses import replace
from typing import Any

from ssl_vit.config.checks import shown
from ssl_vit.config.evaluation_schema import EvaluationConfig, protocol_of
from ssl_vit.data.sources import source_class
from ssl_vit.evaluate.backbones import Backbone, Feature
from ssl_vit.evaluate.evaluation import SEEN, Evaluation, readout_of, schedule_of
from ssl_vit.evaluate.features import Resources, cover, held_out_folds
from ssl_vit.evaluate.few_shot import SUBSETS
from ssl_vit.evaluate.linear import RATES, grid_features
from ssl_vit.evaluate.paper_probes import PAPER_PROBES
from ssl_vit.supervised.report import evaluator_of, images_for, images_lines, open_backbone

NAMED = 6  # features that are named


def evaluation_plan(config: EvaluationConfig) -> list[str]:
    """The lines of a plan, a dozen at most; nothing is downloaded. Raises what the evaluation would before it reads."""
    evaluator_of(config)
    backbone, name, folder = open_backbone(config, pretrained=False)
    readout, where = readout_of(backbone, config, f"encoder={name}"), f"{config.data.source}:{config.data.path}"
    undecoded = replace(config, data=replace(config.data, cache_gb=0))
    data, lines = images_for(backbone, name, undecoded), encoder_lines(backbone, name)
    if source_class(config.data.source).needs_download(config.data):
        return [*lines, f"images        {where}, not counted before it is downloaded"]
    evaluation = Evaluation(undecoded, data, Resources(), readout)
    features, work, kept = work_of(evaluation, backbone)
    read = [f"{feature.pool} of block {_joined(feature.metadata['blocks'])}" for feature in features]
    more = f" and {len(read) - NAMED} more" * (len(read) > NAMED)
    return [
        *lines,
        *images_lines(evaluation),
        f"reads         {'; '.join(read[:NAMED]) or 'what the protocol says'}{more}",
        f"work          {work}",
        f"controls      {'a random encoder and raw pixels, by the same protocol' if config.controls else 'none'}",
        f"memory        {kept}; decoded images up to data.cache_gb={shown(config.data.cache_gb)}",
        f"writes        {folder / config.task}.json",
    ]


def encoder_lines(backbone: Backbone, name: str) -> list[str]:
    """What an encoder is, and where it comes from."""
    metadata, (height, width) = backbone.metadata, backbone.height_width
    known = {key: metadata[key] for key in ("method", "recipe", "step") if metadata.get(key)}
    if source := metadata.get("data", {}).get("source"):
        known["images"] = f"{source}:{metadata['data'].get('path', '')}".rstrip(":")
    trained = ", ".join(f"{key} {value}" for key, value in known.items())
    count = sum(parameter.numel() for parameter in backbone.module.parameters())
    return [
        f"encoder       {name}: {backbone.depth} blocks, {backbone.width} wide, {count:,} parameters",
        f"trained       {trained or 'it does not say how'}",
        f"image         {height} x {width} pixels, {backbone.channels} channel{'s' * (backbone.channels > 1)}",
    ]


def work_of(evaluation: Evaluation[Any], backbone: Backbone) -> tuple[list[Feature], str, str]:
    """The features that are read, what is done with them, and what is kept in memory for it."""
    config: Any = evaluation.config  # of k-NN or of a linear probe
    count = len(evaluation.train_labels)
    folds = len([*held_out_folds(evaluation.train_labels, config.seed)])
    neighbors = getattr(config, "neighbors", [])
    chosen = "logreg" if neighbors or config.few else config.chosen(count)[0]
    images, pixels = count + len(evaluation.test_labels), backbone.channels * math.prod(backbone.height_width)
    if chosen in PAPER_PROBES:
        tokens = pixels // backbone.channels // backbone.patch_size**2 + 1
        once = chosen == "attentive"
        epochs, batch, _ = schedule_of(evaluation, SEEN if once else 0)
        kept = f"tokens of {_mb(images * tokens * backbone.width * 2)}" if once else "no features"
        passes = f"{epochs} epochs of batch {batch}, images encoded {'once' if once else 'anew in each'}"
        return PAPER_PROBES[chosen].features(backbone, config), f"{protocol_of(chosen).summary}: {passes}", kept
    if chosen not in ("grid", "logreg"):
        return [], f"protocol={chosen}", "what the protocol keeps"
    features = grid_features(config, backbone) if chosen == "grid" else evaluation.readable(backbone)
    epochs, batch, _ = schedule_of(evaluation, SEEN) if chosen == "grid" else (0, 0, 0)
    width = len(cover(features).vectors) * backbone.width
    kept = f"features of {_mb(images * width * 4)}, raw pixels {_mb(images * pixels * 4)}"
    how = f"k-NN, k = {_joined(neighbors)}" if neighbors else "logistic regression"
    if chosen == "grid":
        heads = f"{len(features) * len(RATES)} heads on {len(features)} features"
        how = f"{heads}, {epochs} epochs of batch {batch}: {epochs * count:,} images seen"
    if config.few:
        return features, f"{how}, on {SUBSETS} random subsets for each number", kept
    tries = (
        f"{folds} times on held-out images to choose, and once more" if len(features) + len(neighbors) > 1 else "once"
    )
    return features, f"{how}, {tries}", kept


def _mb(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _joined(values: list[int]) -> str:
    return ", ".join(map(str, values))
