"""Several runs in one table: the settings that differ, and what came of them, with mean and std over seeds."""

import io
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ssl_vit.config.checks import ConfigError, shown
from ssl_vit.config.reading import read_json
from ssl_vit.config.recipes import OF_ONE_RUN, read_yaml
from ssl_vit.run.files import CONFIG, METRICS, metadata_of, write_atomic
from ssl_vit.run.tables import as_csv

EVALUATIONS = ("linear_probe", "knn", "finetune")
CURVES = ("train/loss", "monitor/linear_top1")


@dataclass(frozen=True)
class RunRecord:
    """What lies in a run's directory: settings by dotted key, figures by name, curves as (step, value)."""

    name: str
    settings: dict[str, str]
    figures: dict[str, float]
    curves: dict[str, list[tuple[int, float]]]


def read_run(folder: Path) -> RunRecord:
    """Read a run, whatever of it is there. ConfigError: it is no run."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"runs={folder} is not a run: it has no {CONFIG}")
    settings = {key: shown(value) for key, value in leaves(read_yaml(folder / CONFIG)) if key not in OF_ONE_RUN[1:]}
    metadata, curves, figures = metadata_of(folder), dict[str, list[tuple[int, float]]](), dict[str, float]()
    for row in _json_lines(folder / METRICS):
        for name in CURVES:
            if row.get(name) is not None:
                curves.setdefault(name, []).append((int(row["step"]), float(row[name])))
    if "step" in metadata:
        figures["steps"] = metadata["step"]
    if seconds := _seconds_logged(folder):
        figures["minutes"] = seconds / 60
    if "train/loss" in curves:
        figures["loss"] = curves["train/loss"][-1][1]
    for task in EVALUATIONS:
        found = read_json(folder / f"{task}.json") if (folder / f"{task}.json").exists() else {}
        if isinstance(found.get("top1"), float | int):
            figures[task] = 100 * found["top1"]
    return RunRecord(folder.name, settings, figures, curves)


def _seconds_logged(folder: Path) -> float:
    """From the first to the last event that each attempt logged to TensorBoard, together; 0 without any."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a crash may have cut the last event
    seconds = 0.0
    for path in folder.glob("events.out.tfevents.*"):
        times = [event.wall_time for event in LegacyEventFileLoader(str(path)).Load() if event.HasField("summary")]
        seconds += max(times, default=0.0) - min(times, default=0.0)
    return seconds


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Values of nested dicts by dotted key."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    if path.is_file():
        with path.open() as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


def comparison(runs: list[RunRecord]) -> list[dict[str, str]]:
    """A row for each group of runs that differ in their seeds alone: the settings that differ, then the figures."""
    keys = sorted({key for run in runs for key in run.settings} - {"seed"})
    differing = [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]
    groups: dict[tuple[str | None, ...], list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.get(key) for key in differing), []).append(run)
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    rows = []
    for values, group in groups.items():
        row = {"run": group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more seeds"}
        row |= {key: "-" if value is None else value for key, value in zip(differing, values, strict=True)}
        figures = {name: [run.figures[name] for run in group if name in run.figures] for name in names}
        rows.append(row | {name: spread(found, 0 if name == "steps" else 2) for name, found in figures.items()})
    return rows


def spread(values: list[float], digits: int) -> str:
    """Mean and, of several, std; "-" of none."""
    texts = [f"{statistic(values):,.{digits}f}" for statistic in (mean, stdev)[: min(2, len(values))]]
    return " +- ".join(texts) if texts else "-"


def as_markdown(rows: list[dict[str, str]]) -> str:
    """The table as Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def write_comparison(runs: list[RunRecord], out: Path) -> list[Path]:
    """Write compare.csv, compare.md and, where there are curves, compare.png into a folder; their paths."""
    rows, written = comparison(runs), []
    cells = [list(row.values()) for row in rows]
    for name, text in (("compare.csv", as_csv(list(rows[0]), cells)), ("compare.md", as_markdown(rows))):
        write_atomic(out / name, text)
        written.append(out / name)
    if any(run.curves for run in runs):
        image = io.BytesIO()
        draw_curves(runs).save(image, "PNG")
        write_atomic(out / "compare.png", image.getvalue())
        written.append(out / "compare.png")
    return written


WIDTH, HEIGHT, MARGIN, LINE = 720, 360, 64, 16  # of a panel, its margin, a line of text; pixels
COLORS = ("#1b6ca8", "#d1495b", "#66a182", "#edae49", "#6a4c93", "#2e4057", "#8d96a3", "#00798c")


def draw_curves(runs: list[RunRecord]) -> Any:
    """A PIL image: a panel for each of CURVES that some run has, a line for each run, its name in the same color."""
    from PIL import Image, ImageDraw

    panels = [name for name in CURVES if any(name in run.curves for run in runs)]
    image = Image.new("RGB", (WIDTH, HEIGHT * len(panels) + LINE * (len(runs) + 1)), "white")
    draw = ImageDraw.Draw(image)
    for number, name in enumerate(panels):
        drawn = [(COLORS[i % len(COLORS)], run.curves[name]) for i, run in enumerate(runs) if name in run.curves]
        steps, values = zip(*(point for _, curve in drawn for point in curve), strict=True)
        low, high, last = min(values), max(values), max(*steps, 1)
        top, bottom, left, right = HEIGHT * number + LINE * 2, HEIGHT * (number + 1) - LINE * 2, MARGIN, WIDTH - LINE
        draw.rectangle((left, top, right, bottom), outline="#cccccc")
        draw.text((left, top - LINE), name, "black")
        for text, y in ((f"{high:.4g}", top), (f"{low:.4g}", bottom - LINE)):
            draw.text((4, y), text, "black")
        draw.text((right - 90, bottom + 2), f"step {last:,}", "black")
        for color, curve in drawn:
            points = [
                (
                    left + (right - left) * step / last,
                    bottom - (bottom - top) * (value - low) / (high - low or 1.0),
                )
                for step, value in curve
            ]
            draw.line(points, fill=color, width=2, joint="curve")
            x, y = points[-1]
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=color)
    for i, run in enumerate(runs):
        draw.text((MARGIN, HEIGHT * len(panels) + LINE * i), run.name, COLORS[i % len(COLORS)])
    return image
