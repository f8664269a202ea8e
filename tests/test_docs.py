"""README and docs/ are right: their commands parse, their Python compiles and runs, and the site is built."""

import contextlib
import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from glob import glob
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_vit
from ssl_vit.cli import doctor
from ssl_vit.cli.main import COMMANDS, DOCTOR, command, run_command
from ssl_vit.cli.settings import resolve_command
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.resolve import settings_of, to_yaml
from ssl_vit.config.schema import DataConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))}
RECIPES = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "configs").rglob("*.yaml")}
PROGRAM = r"(?:python tools/|tools/|ssl-vit |python -m ssl_vit )"
RUN = "runs/mae-digits-1"
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
CODE = [(page, code) for page, text in PAGES.items() for kind, code in BLOCK.findall(text) if kind == "python"]
FILES = {name: code for _, code in CODE for name in re.findall(r"\A# (\w+\.py)\n", code)}


NEEDS = {
    "images that are not here": re.compile(
        r"recipe=(imagenet\b|imagenet-|cifar10)|given|source=(hf|torchvision)|runs/night"
    ),
    "the network": re.compile(r"timm:|https?:|pipe:|\.pth"),
    "more processes": re.compile(r"devices=|train_limit=0"),
    "minutes": re.compile(r"method=beit|train_tokenizer|^benchmark (?!.*doctor)"),
    "what its page leaves out": re.compile(r" \.\.\.( |$)"),
}
TRAINER = {"trainer.max_steps": 2, "monitor.every_epochs": 0, "data.batch_size": 4, "data.workers": 0}
SMALL = {
    "pretrain": {"encoder.embed_dim": 32, "encoder.depth": 2, "encoder.num_heads": 2, **TRAINER},
    "benchmark": {"encoder.embed_dim": 32, "encoder.depth": 2, "encoder.num_heads": 2, "data.batch_size": 4},
    "finetune": TRAINER,
    "linear_probe": {"train_limit": 100},
}


class Printed(NamedTuple):
    """A command as a page has it, its variables replaced."""

    page: str
    name: str
    args: list[str]


def printed(page: str, text: str) -> Iterator[Printed]:
    """Commands in the blocks and in the `code` of a page."""
    blocks = [block for kind, block in BLOCK.findall(text) if kind in ("bash", "")]
    lines = [line for block in blocks for line in expanded(block.replace("\\\n", " "))]
    spans = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    for line in [*lines, *(" ".join(span.split()) for span in spans)]:
        found = re.match(rf"(?:\w+=\S* |uv run |srun |torchrun |--\S+ )*{PROGRAM}(\w+)(?:\.py)?(?: (.*))?$", line)
        if found and found[1] not in ("NAME", "benchmarks"):
            yield Printed(page, found[1], shlex.split(re.sub(r"<.*?>", "given", found[2] or ""), comments=True))


def expanded(block: str) -> list[str]:
    """The lines of a block, with the variables that it sets replaced by their values, others by 1."""
    known = dict(re.findall(r'^(\w+)="(.*)"', block, re.M))
    for _ in range(2):
        block = re.sub(r"\$(\w+)", lambda found: known.get(found[1], "1"), block)
    return block.splitlines()


COMMANDS_PRINTED = [
    *(found for page, text in PAGES.items() for found in printed(page, text)),
    *(
        found
        for path, text in RECIPES.items()
        for line in re.findall(r"^#.*?(python tools/\S+ .*)$", text, re.M)
        for found in printed(path, f"```\n{line.partition(', ')[0]}\n```")
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run, a few images, and the Python files of the pages."""
    folder = tmp_path_factory.mktemp("docs")
    encoder = ssl_vit.VisionTransformer(embed_dim=32, depth=4, num_heads=2, image_size=32, patch_size=8)
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}
    data = asdict(DataConfig(source="digits", batch_size=16, **statistics))
    ssl_vit.save_encoder(encoder, folder / RUN, recipe="digits", data=data, **statistics)
    (folder / RUN / "config.yaml").write_text(to_yaml(METHODS["mae"].config(data=DataConfig(source="digits")), "mae"))
    for number in range(32):
        path = folder / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        gray = np.random.default_rng(number).integers(0, 255 >> number % 2, (40, 50), dtype=np.uint8)
        Image.fromarray(gray).save(path)
    for name, code in FILES.items():
        (folder / name).write_text(re.sub(r'"runs/[^"]*"', f'"{RUN}"', code))
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.fixture
def here(folder, monkeypatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.syspath_prepend(folder)
    return folder


def as_given(arg: str) -> list[str]:
    """An arg in which what a page leaves to its reader is something that is there."""
    key, equals, value = arg.partition("=")
    if arg in ("...", "--help", "--dry-run", "--all", "--measure"):
        return []
    if key == "recipe" and value.startswith("runs/"):
        return [f"recipe={RUN}/config.yaml"]
    if key in ("encoder", "resume") and not value.startswith(("timm:", "auto")):
        return [f"{key}={RUN}"]
    return [f"{key}{equals}{value}"]


@pytest.mark.parametrize("found", COMMANDS_PRINTED, ids=lambda found: " ".join([*found[:2], *found.args]))
def test_every_command_is_legal(found, here, monkeypatch):
    """It exists, its settings exist, and their values are legal; what a page leaves out is a method."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")  # what starts a run on several machines sets
    monkeypatch.setenv("NODE_RANK", "0")
    assert (ROOT / "tools" / f"{found.name}.py").exists()
    assert found.name in COMMANDS
    module, args = command(found.name), [given for arg in found.args for given in as_given(arg)]
    if not re.search(r"data.source=|data.path=\S+://", " ".join(args)):  # which is not looked at
        args = ["data.path=images" if arg.startswith("data.path=") else arg for arg in args]
    if DOCTOR in args:
        module = doctor
        args.remove(DOCTOR)
    if found.args[:1] == ["..."]:
        args.append("method=mae")
    if key := getattr(module, "POSITIONAL", ""):
        args = [f"{key}={','.join(arg for arg in args if '=' not in arg)}", *(arg for arg in args if "=" in arg)]
    monkeypatch.setattr("ssl_vit.train.auto.seconds_of_step", lambda *args: 1.0)
    if found.args and "--help" not in found.args:
        resolve_command(module.Config, args)


@pytest.mark.slow
@pytest.mark.parametrize(
    "found",
    {(found.name, *found.args): found for found in COMMANDS_PRINTED}.values(),
    ids=lambda found: " ".join([*found[:2], *found.args]),
)
def test_every_command_runs(found, here, tmp_path):
    """As it is printed, but small: networks of 32 channels, two steps. Some need what is not here."""
    if needed := next((what for what, needs in NEEDS.items() if needs.search(" ".join([found.name, *found.args]))), ""):
        pytest.skip(f"needs {needed}")
    args = [given for arg in found.args for given in ([arg] if arg.startswith("--") else as_given(arg))]
    patterns = {arg for arg in args if "*" in arg and "=" not in arg}  # which a shell expands
    args = [path for arg in args for path in (sorted(glob(arg)) if arg in patterns else [arg])]
    changed = dict(SMALL.get(found.name, {}))
    if found.name == "predict" and not list(here.glob("runs/finetune-*/model.safetensors")):
        run_command("finetune", f"encoder={RUN}", *(f"{key}={value}" for key, value in SMALL["finetune"].items()))
    for arg in args:
        if re.fullmatch(r"data.path=(shards|packed)/?", arg) and not Path(arg[10:]).exists():
            run_command("make_shards", "data.path=images", f"out={arg[10:]}")
    if found.name == "make_shards":
        changed["out"] = tmp_path / "shards"
    if found.name == "linear_probe" and re.search(r"protocol=(grid|mae|dino|beit|attentive)", " ".join(args)):
        changed["epochs"] = 1
    kept = [arg for arg in args if arg.partition("=")[0] not in changed]
    if not {"--help", "--dry-run"} & {*args}:
        kept += [f"{key}={value}" for key, value in changed.items()]
    if found.name in ("embed", "visualize", "predict") and not any(arg.startswith("images=") for arg in kept):
        kept.append("images=images")  # the run here is of digits
    if found.name == "finetune" and not any(arg.startswith("encoder=") for arg in kept):
        kept.append(f"encoder={RUN}")  # other commands have left runs here
    run_command(found.name, *kept)


def test_commands_are_found_on_the_pages():
    """So that a change of the pages' form does not leave the test above without commands."""
    line = re.compile(r"^(?:uv run )?python tools/\w+\.py", re.M)
    plain = {page: len(line.findall(text)) for page, text in PAGES.items()}
    assert sum(plain.values()) > 80
    assert [page for page in plain if plain[page] > sum(found.page == page for found in COMMANDS_PRINTED)] == []
    assert {"docs/methods/dino.md", "configs/mae/digits.yaml"} <= {found.page for found in COMMANDS_PRINTED}


@pytest.mark.parametrize(("page", "code"), CODE, ids=lambda value: value.splitlines()[0][:40])
def test_python_compiles(page, code):
    compile(re.sub(r"^ {4}", "", code, flags=re.M) if code.startswith("    ") else code, page, "exec")


@pytest.mark.parametrize("file", ["my_classifier.py", "my_search.py", "my_probe.py"])
def test_the_encoder_is_used_as_the_page_says(file, here, capsys):
    runpy.run_path(file)
    assert len(capsys.readouterr().out.split()) > 4


def test_the_segmentation_head_learns(here):
    train = runpy.run_path("my_segmentation.py")["train"]
    images = torch.randn(2, 3, 32, 64)
    network = train([(images, (images[:, 0] > 0).long())], classes=2, epochs=2)
    assert network(images).shape == (2, 2, 32, 64)
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())


def test_the_mean_of_images_is_measured(here, capsys):
    """By the page's own code, on images whose halves have means of .5 and .25."""
    (code,) = [code for page, code in CODE if page == "docs/auto.md"]
    exec(code, {})
    images, height, width, channels, _, mean, std = capsys.readouterr().out.replace("[", "").replace("]", "").split()
    assert (images, height, width, channels) == ("32", "40", "50", "1")
    assert float(mean) == pytest.approx(0.375, abs=0.02)
    assert 0 < float(std) < 1


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    if not importlib.util.find_spec("material") or not importlib.util.find_spec("mkdocstrings"):
        pytest.skip("the extra docs is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with contextlib.redirect_stdout(None):
        build(load_config(str(ROOT / ".ci/mkdocs.yml"), strict=True, site_dir=str(folder)))  # Abort at a warning
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    """Scripts, styles, images and fonts are its own; links that a reader may follow are not looked at."""
    tags = r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*(?:stylesheet|preconnect)[^>]*//"
    loads = re.compile(rf"{tags}|url\(\"?https?:|@import")
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 20
    assert not [str(page) for page in pages if loads.search(page.read_text())]


def test_the_site_has_every_setting_and_every_public_name(site):
    """A new setting, method or name is on the site without a change of it."""
    for name in COMMANDS:
        page = (site / "settings" / name / "index.html").read_text()
        keys = settings_of(command(name).Config())
        assert [key for key in keys if f'id="{key}"' not in page] == []
    pretrain, names = (site / "settings/pretrain/index.html").read_text(), (site / "api/index.html").read_text()
    assert all(f'id="{key}"' in pretrain for row in METHODS.values() for key in settings_of(row.config()))
    assert [name for name in ssl_vit.__all__ if f'.{name}"' not in names] == []
