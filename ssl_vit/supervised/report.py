"""Judge an encoder beside its controls; write the figures, their picture, and the line that an evaluation ends with."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_vit.config.evaluation_schema import TIMM, EvaluationConfig, KNNConfig, LinearProbeConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.evaluate.attentive import judge_attentive
from ssl_vit.evaluate.backbones import OwnEncoder, RawPixels, Subject
from ssl_vit.evaluate.evaluation import Exam, Verdict
from ssl_vit.evaluate.features import a_place
from ssl_vit.evaluate.few_shot import judge_few, require_shots
from ssl_vit.evaluate.knn import judge_knn, knn_scores
from ssl_vit.evaluate.linear import judge_grid, judge_logreg, logistic_scores
from ssl_vit.evaluate.metrics import confusion_picture, figures
from ssl_vit.evaluate.paper_probes import judge_beit, judge_dino, judge_mae
from ssl_vit.evaluate.timm_models import load_timm
from ssl_vit.models.weights import load_encoder
from ssl_vit.parallel.distributed import joined
from ssl_vit.run.files import RUNS, newest_run, write_atomic, write_json

LINEAR = {
    "grid": judge_grid,
    "logreg": judge_logreg,
    "mae": judge_mae,
    "dino": judge_dino,
    "beit": judge_beit,
    "attentive": judge_attentive,
}
"""Linear protocols by name, as config.evaluation.PROTOCOLS."""


def evaluate(config: EvaluationConfig) -> dict[str, Any] | None:
    """Judge the encoder of a config, and a random encoder and raw pixels beside it; write <task>.json beside it.

    Under torchrun every process describes its share of the pictures. The first one writes, and has the result; the
    others have None.

    Raises:
        ValueError: the pictures have no labels, or do not fit the encoder.
    """
    with joined() as share:
        started = time.time()
        subject, name, folder = opened(config)
        exam = Exam(config, pictures_for(subject, name, config), a_place(share, config.data.cache_gb, folder))
        subjects = {"encoder": subject}
        if config.controls:
            subjects["random encoder"] = subject.random(config.seed)
            subjects["raw pixels"] = RawPixels(subject.height_width, subject.channels, subject.patch_size)
        rows = few_rows(exam, subjects) if config.few else full_rows(exam, subjects, folder, share[0] == 0)
        if share[0]:
            return None
        own = rows.pop("encoder")
        result = {
            "task": config.task,
            "top1": own.pop("top1"),
            "top5": own.pop("top5"),
            "encoder": name,
            "data": f"{config.data.source}:{config.data.path}".rstrip(":"),
            "layer": own["head"]["blocks"][-1],
            "protocol": f"{own.pop('how')}; {len(exam.train_labels)} training pictures; {exam.data.split_note}",
            "controls": {control: row["top1"] for control, row in rows.items()},
            **own,
            "test_pictures": len(exam.test_labels),
            "seed": config.seed,
            "seconds": round(time.time() - started, 1),
        }
        write_json(folder / f"{config.task}.json", result)
        write_events(folder / config.task, result, subject.facts.get("step", 0))
        return result


def opened(config: EvaluationConfig) -> tuple[Subject, str, Path]:
    """The encoder to judge, its name, and the folder that its figures go to."""
    if config.encoder.startswith(TIMM):
        folder = RUNS / config.encoder.replace(":", "-").replace("/", "-")
        return load_timm(config.encoder.removeprefix(TIMM)), config.encoder, folder
    source = Path(config.encoder) if config.encoder else newest_run()
    return OwnEncoder(load_encoder(source)), str(source), source if source.is_dir() else source.parent


def pictures_for(subject: Subject, name: str, config: EvaluationConfig) -> ImageDataModule:
    """The pictures, in the encoder's size and normalised as it was trained, where it says how.

    ValueError where they have other channels than it takes.
    """
    known = {key: subject.facts[key] for key in ("mean", "std") if key in subject.facts}
    data = replace(config.data, **known)
    if len(data.mean) != subject.channels:
        raise ValueError(
            f"encoder={name} takes pictures of {subject.channels} channels, data.mean={data.mean} is of "
            f"{len(data.mean)}: give data.mean= and data.std= one number a channel, or another encoder"
        )
    return ImageDataModule(None, data, image_size=subject.height_width, channels=subject.channels, seed=config.seed)


def judged(exam: Exam, subject: Subject) -> Verdict:
    """What the protocol that the settings name says of a subject."""
    if isinstance(exam.config, LinearProbeConfig):
        return LINEAR[exam.config.protocol](exam, subject)
    return judge_knn(exam, subject)


def full_rows(exam: Exam, subjects: dict[str, Subject], folder: Path, writes: bool) -> dict[str, dict[str, Any]]:
    """Figures of each subject from all training pictures; the encoder's with each class, and a confusion picture."""
    rows = {}
    for name, subject in subjects.items():
        verdict, labels = judged(exam, subject), exam.test_labels
        rows[name] = {"how": verdict.how, "head": verdict.head}
        rows[name] |= figures(verdict.probabilities, labels, exam.data.classes)
        if name == "encoder" and writes:
            from torchvision.io import encode_png

            picture = encode_png(confusion_picture(verdict.probabilities, labels))
            write_atomic(folder / f"{exam.config.task}-confusion.png", picture.numpy().tobytes())
    return rows


def few_rows(exam: Exam, subjects: dict[str, Subject]) -> dict[str, dict[str, Any]]:
    """Figures of each subject from few training pictures; top1 and top5 are the means of the last number of them."""
    require_shots(exam)
    config, scores_of, how = exam.config, logistic_scores, "logistic regression, C=1"
    if isinstance(config, KNNConfig):
        k = min(config.neighbours)
        how = f"{k}-NN or all, cosine, T={config.temperature:g}"

        def scores_of(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
            return knn_scores(train, labels, test.to(exam.place.device), k, config.temperature).cpu()

    rows = {}
    for name, subject in subjects.items():
        answers = judge_few(exam, subject, scores_of)
        last = list(list(answers.values())[-1].values())[-1]
        rows[name] = {"how": how, "head": exam.readable(subject)[0].facts, "top1": last["mean"], "top5": last["top5"]}
        rows[name] |= answers
    return rows


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

    rows = Table("features", "top-1", title=f"{result['task']} on {result['data']}: {result['test_pictures']} pictures")
    rows.add_row("this encoder", f"[bold]{result['top1']:.1%}[/bold]")
    for name, score in result["controls"].items():
        rows.add_row(name, f"{score:.1%}")
    Console().print(rows)
    print(json.dumps(result))
