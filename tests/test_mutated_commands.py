"""Commands as nobody should type them: whatever is typed ends within seconds, in one line, and leaves nothing behind.

From a fixed seed valid commands of every tool are mutated: keys misspelled, values of another type, absurd, twice,
paths to what is no image, encoder or recipe. Run as a script it tries as many as one wants, from another seed:
`python tests/test_mutated_commands.py 5000 7`.
"""

import contextlib
import importlib
import io
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from ssl_vit.cli import main
from ssl_vit.cli.main import DOCTOR, guarded
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.resolve import settings_of
from ssl_vit.config.tokenizer_schema import TOKENIZERS

COUNT, SEED, SECONDS = 480, 2026, 10
TOGETHER, HUNG = 24, -9
WIDE = ["encoder.embed_dim=16", "encoder.depth=1", "encoder.num_heads=2"]
FOLDER = ["data.source=folder", "data.path={place}/images"]
DRY = "--dry-run"
VALID = [
    ["pretrain", "method=mae", *WIDE, DRY],
    [
        "pretrain",
        "method=mae",
        "method.decoder_embed_dim=16",
        "method.decoder_num_heads=2",
        "recipe=imagenette",
        *FOLDER,
        DRY,
    ],
    ["pretrain", "method=mae", "recipe={place}/recipe.yaml", "init_from={place}/run", DRY],
    ["pretrain", "method=dino", "method.prototypes=64", "data.batch_size=32", DRY],
    ["pretrain", "method=beit", "tokenizer={place}/tokens", DRY],
    ["pretrain", "method=beit", "tokenizer_recipe=digits-kmeans", "encoder.depth=2", DRY],
    ["train_tokenizer", "recipe=digits", "tokenizer.width=16", DRY],
    ["train_tokenizer", "tokenizer=kmeans", "recipe=digits-kmeans", *FOLDER, DRY],
    ["train_tokenizer", "recipe=digits-vqkd", "tokenizer.teacher={place}/run", DRY],
    ["finetune", "encoder={place}/run", "recipe=digits", *FOLDER, DRY],
    ["finetune", "encoder={place}/run", "recipe=cifar10", "init=scratch", "image_size=32", *FOLDER, DRY],
    ["benchmark", DOCTOR, "method=mae", *WIDE, DRY],
    ["benchmark", "suite=views", "repeats=1"],
    ["linear_probe", "encoder={place}/run", "protocol=logreg", "controls=false"],
    ["linear_probe", "encoder={place}/run", "shots=1", "controls=false"],
    ["knn", "encoder={place}/run", "neighbors=1,2", "controls=false", "seed=3"],
    ["knn", "encoder={place}/run", *FOLDER, "controls=false", "temperature=0.1"],
    ["predict", "model={place}/tuned", "images={place}/images", "top=2"],
    ["predict", "model={place}/tuned/model.safetensors", "images={place}/one.png", "out=table.json"],
    ["visualize", "encoder={place}/run", "images={place}/images", "out=seen", "limit=2"],
    ["make_shards", *FOLDER, "out=shards", "shard_mb=1", "size=8"],
    ["pretrain", "--help"],
    ["knn", "--help"],
]
"""Each ends at once. {place}: a folder with the files that they name."""
ABSURD = [
    *(
        "",
        "0",
        "-1",
        "1",
        "2",
        "1e300",
        "-1e300",
        "1e-300",
        "1" + "0" * 18,
        "9" * 5000,
        "0.5",
        "1.5",
        "99",
        "nan",
        "inf",
    ),
    *(
        "null",
        "true",
        "[]",
        "[1]",
        "[1,2,3,4,5]",
        "[[1]]",
        "{}",
        "{a: b}",
        "auto",
        "best",
        "x" * 10_000,
        "\u00e9\u4e2d\U0001f600",
    ),
    *("\x1b[31mred", "a\nb", "\udcff", " ", "=", "==1", "$HOME", "${oc.env:HOME}", "`touch MARK`", "$(touch MARK)"),
    *("pipe:touch MARK", "{pipe:touch MARK; true /,http://127.0.0.1:9/x.tar}", "os:system", "a:b", ":", "x-{0..3}.tar"),
    *("*", "%", "50%", "\u0661", "0x10", "1_000", "+1", "-0", "1e3", "digits", "folder", "torchvision", "CIFAR10:x"),
]
PATHS = [
    *("nowhere", "nowhere/at/all.yaml", "/", "/dev/null", "/dev/zero", "/proc/self/mem", "/etc/passwd", "."),
    *("fifo", "loop", "socket", "empty", "text.txt", "text.yaml", "one.png", "images", "run", "tuned", "tokens"),
    *("run/encoder.safetensors", "run/encoder.json", "zeros.safetensors", "zeros.ckpt", "recipe.yaml", "hidden/.x"),
    *("f" * 300, "one.png/x", "list.yaml", "broken.yaml", "run/encoder.safetensors/x", "caf\u00e9", "byte\udcff"),
]
"""Below the place, unless they begin with a slash."""


PAID = ("train.pretraining", "train.finetuning", "train.rehearsal", "supervised.report", "data.shard_writer")
"""Modules that are imported once for all commands."""
SUITES = ("views", "step", "startup", "probe", "memory", "spin", "differences")


class Ended(NamedTuple):
    """How a command ended."""

    status: int
    output: str
    errors: str
    left: list[str]  # what it has written where it ran


def furnish(place: Path) -> Path:
    """The files that commands name: tiny ones of each kind, and what is none of them."""
    for module in PAID:
        importlib.import_module(f"ssl_vit.{module}")
    import torch
    from PIL import Image

    from ssl_vit.config.tokenizer_schema import KMeansConfig
    from ssl_vit.models.vit import VisionTransformer
    from ssl_vit.models.weights import save_encoder
    from ssl_vit.supervised.classifier import Classifier, save_classifier
    from ssl_vit.tokenizers.base import save_tokenizer
    from ssl_vit.tokenizers.kmeans import KMeans

    for number in range(12):
        path = place / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * number, 9, 250 - number)).save(path)
    Image.new("RGB", (16, 20), (1, 2, 3)).save(place / "one.png")
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}
    data = {"source": "folder", "path": str(place / "images"), "workers": 0}
    known = {"mean": [0.5] * 3, "std": [0.25] * 3, "data": data, "method": "mae", "recipe": "digits", "step": 1}
    save_encoder(VisionTransformer(**sizes), place / "run", **known)
    save_classifier(Classifier(VisionTransformer(**sizes), ["a", "b"]), place / "tuned", **known)
    save_tokenizer(KMeans(KMeansConfig(vocab_size=16, patch_size=4, image_size=32, patches=16)), place / "tokens")
    encoder = "{embed_dim: 16, depth: 2, num_heads: 2, image_size: 16, patch_size: 4}"
    files = {
        "recipe.yaml": f"encoder: {encoder}\ndata: {{source: folder, path: {place / 'images'}}}\n",
        **{"list.yaml": "- 1\n", "broken.yaml": "data: [", "text.yaml": "text", "text.txt": "text", "caf\u00e9": "x"},
        **{"zeros.safetensors": "\0" * 64, "zeros.ckpt": "\0" * 64, "hidden/.x": "x"},
    }
    for name, text in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / "empty").mkdir()
    (place / "loop").symlink_to("loop")
    os.mkfifo(place / "fifo")
    with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):  # where its path is too long
        server.bind(str(place / "socket"))
    return place


def mutated(rng: random.Random, place: Path) -> list[str]:
    """A valid command with one to three things changed."""
    name, *args = [arg.format(place=place) for arg in rng.choice(VALID)]
    keys = keys_of(name, args)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(args))
        key, equals, value = args[at].partition("=")
        new = str(place / rng.choice(PATHS)) if rng.random() < 0.3 else rng.choice(ABSURD)
        kind = rng.randrange(8)
        if kind == 0 and equals:  # misspelled
            cut = rng.randrange(len(key) or 1)
            args[at] = f"{key[:cut]}{rng.choice(('', 'x', '.', ' ', key[cut:]))}{key[cut + 1 :]}={value}"
        elif kind == 1 and equals:  # of another value
            args[at] = f"{key}={new}"
        elif kind == 2:  # twice
            args.insert(at, f"{key}={new}" if equals else args[at])
        elif kind == 3:  # no setting
            args.insert(
                at, rng.choice((new, key, "", "=", "-h", "--x", f"{key}.x={value}", f"={value}", f"--{args[at]}"))
            )
        elif kind == 4:  # of another command
            args.insert(at, rng.choice(rng.choice(VALID)).format(place=place))
        else:  # any setting
            args = [f"{rng.choice(keys)}={new}", *args]
    return [rng.choice((name, name, name, name, *main.COMMANDS)) if rng.random() < 0.05 else name, *args]


def keys_of(name: str, args: list[str]) -> list[str]:
    """Every setting of a command."""
    config = main.command(name).Config
    named = dict(arg.partition("=")[::2] for arg in args)
    if named.get("method") in METHODS:
        config = METHODS[named["method"]].config
    if named.get("tokenizer") in TOKENIZERS:
        config = TOKENIZERS[named["tokenizer"]].config
    return list(settings_of(config()))


class Hung(BaseException):
    """A command has taken its time."""


def run(args: list[str], folder: Path) -> Ended:
    """A command in this process, in an empty folder, as the command line runs it."""
    folder.mkdir()
    os.chdir(folder)
    output, errors, status = io.StringIO(), io.StringIO(), 70
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            status = guarded(args)
    except Hung:
        status = HUNG
    except BaseException:
        errors.write(traceback.format_exc())
    finally:
        signal.alarm(0)
    left = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return Ended(status, output.getvalue()[:5000], errors.getvalue(), left)


def run_all(commands: list[list[str]], folder: Path) -> list[Ended]:
    """How commands end, several in each process, which is forked from this one; one that ends the process too."""
    folder.mkdir(exist_ok=True)
    ended = list[Ended]()
    while len(ended) < len(commands):
        first, report = len(ended), folder / f"{len(ended)}.jsonl"
        report.touch()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException), report.open("w", buffering=1) as file:
                signal.signal(signal.SIGALRM, _stop)
                sys.modules |= {f"benchmarks.{suite}": SimpleNamespace(run=print) for suite in SUITES}
                for number in range(first, min(first + TOGETHER, len(commands))):
                    file.write(json.dumps(run(commands[number], folder / str(number))) + "\n")
            os._exit(0)
        waited, lines = time.monotonic(), 0
        while not os.waitpid(child, os.WNOHANG)[0]:
            time.sleep(0.01)
            if (now := report.read_text().count("\n")) > lines:
                waited, lines = time.monotonic(), now
            elif time.monotonic() > waited + 2 * SECONDS:  # it does not even hear the alarm
                os.kill(child, signal.SIGKILL)
        ended += [Ended(*json.loads(line)) for line in report.read_text().splitlines()]
        if len(ended) < min(first + TOGETHER, len(commands)):
            ended.append(Ended(HUNG, "", "", []))
    return ended


def _stop(*_: object) -> None:
    raise Hung


def fault(args: list[str], ended: Ended, place: Path) -> str:
    """What is wrong with how a command ended; "" for nothing."""
    lines = ended.errors.splitlines()
    if ended.status == HUNG:
        return f"it takes more than {SECONDS} seconds, or ends the process"
    if "Traceback" in ended.errors + ended.output:
        return "a traceback"
    if ended.status not in (0, 1, 2):
        return f"exit status {ended.status}"
    if ended.status and (not lines or not lines[-1].startswith("error: ")):
        return "no error in its last line"
    if ended.status and sum(line.startswith("error: ") for line in lines) + (DRY in args) * (len(lines) - 1) != 1:
        return "more than a line"
    if any(not line.isprintable() for line in lines):
        return "control characters"
    if ended.left and (ended.status or DRY in args):
        return f"it leaves {ended.left[:3]}"
    if any(path.name == "MARK" for path in place.rglob("MARK*")) or "MARK" in ended.left:
        return "what was typed has been run"
    return ""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    return furnish(tmp_path_factory.mktemp("place"))


def test_every_command_that_is_mutated_is_valid(place, tmp_path):
    commands = [[arg.format(place=place) for arg in args] for args in VALID]
    for args, ended in zip(commands, run_all(commands, tmp_path), strict=True):
        assert ended.status == 0, (args, ended)


def sweep(count: int, seed: int, place: Path, folder: Path) -> list[tuple[str, list[str], Ended]]:
    """(fault, command, how it ended) of mutated commands."""
    rng = random.Random(seed)
    commands = [mutated(rng, place) for _ in range(count)]
    found = zip(commands, run_all(commands, folder), strict=True)
    return [(fault(args, ended, place), args, ended) for args, ended in found]


def test_whatever_is_typed_ends_in_one_line_and_leaves_nothing(place, tmp_path):
    found = sweep(COUNT, SEED, place, tmp_path)
    none = [f"{wrong}: {args}\n{ended.errors[-2000:]}" for wrong, args, ended in found if wrong]
    assert not none, "\n".join(none)
    assert {ended.status for _, _, ended in found} == {0, 1, 2}


if __name__ == "__main__":
    from collections import Counter

    with tempfile.TemporaryDirectory() as temporary:
        room = furnish(Path(tempfile.mkdtemp(dir=temporary)))
        statuses = Counter[int]()
        for wrong, args, ended in sweep(int(sys.argv[1]), int(sys.argv[2]), room, Path(temporary, "run")):
            statuses[ended.status] += 1
            if wrong:
                short = [arg if len(arg) < 200 else arg[:60] + "..." for arg in args]
                print(f"{wrong}: {short!a}\n   {ended.errors.strip()[-700:]!a}", flush=True)
        print(statuses)
