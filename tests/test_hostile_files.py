"""Files that somebody made to harm: each ends in one line within seconds, and nothing is run, downloaded or made."""

import json
import os
import pickle
import random
import signal
import socket
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save, save_file

from ssl_vit.cli.main import guarded
from ssl_vit.config.recipes import load_class
from ssl_vit.config.tokenizer_schema import TOKENIZERS
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.run import files
from ssl_vit.supervised.classifier import Classifier, save_classifier

SECONDS = 10  # that each may take
MARK = "MARK"  # the file that code in them would leave
SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "image_size": 16}
SIZES = [f"encoder.{key}={value}" for key, value in SMALL.items()]
ABSURD = [10**9, 10**18, -1, 0, 1.5, "a", None, [], [4] * 7, {}, {"a": {}}, True, 1e308, float("nan"), float("inf")]
DEEP = "[" * 3000 + "]" * 3000
DIGITS = "9" * 5000
EVIL = f"import pathlib; pathlib.Path({MARK!r}).touch()"


class TooSlow(BaseException):
    """Not caught by what handles errors."""


@pytest.fixture
def answer(capsys, monkeypatch, tmp_path):
    """Runs a command in this process, in an empty folder: (exit status, errors); fails where it takes too long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil_module.py").write_text(EVIL)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save("image.png")

    def late(*_: Any) -> None:
        raise TooSlow

    def run(*args: str) -> tuple[int, str]:
        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            status = guarded(args)
        finally:
            signal.alarm(0)
        return status, capsys.readouterr().err

    return run


def whole_encoder(folder: Path, **metadata: Any) -> Path:
    encoder = VisionTransformer(**SMALL)
    known = {"mean": [0.5] * 3, "std": [0.2] * 3, "method": "mae", "recipe": "digits", "data": {"source": "digits"}}
    return save_encoder(encoder, folder, **(known | metadata))


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def packed(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def headers(whole: bytes) -> Iterator[bytes]:
    """Safetensors whose headers lie."""
    (size,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    for length in (0, 1, size - 1, size + 1, 2**31, 2**60, 2**64 - 1):
        yield packed(whole[8 : 8 + size], data, length)
    for text in ("", "[]", "{", "null", "\0" * 64, "{" + '"a":{' * 3000, f'{{"a":{DIGITS}}}', '{"a":1,"a":1}', "\xff"):
        yield packed(text, data)
    name = "blocks.0.attn.qkv.weight"
    for change in (
        {"data_offsets": [-8, 8]},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [64, 0]},
        {"data_offsets": header["cls_token"]["data_offsets"]},
        {"data_offsets": "x"},
        {"dtype": "F99"},
        {"dtype": 3},
        {"dtype": "I32"},
        {"shape": [-1]},
        {"shape": [2**40, 2**40]},
        {"shape": "x"},
        {"shape": [48 * 16]},
    ):
        yield packed(json.dumps(header | {name: header[name] | change}), data)
    yield packed(json.dumps({key: value for key, value in header.items() if key != name}), data)
    own = json.dumps(header["cls_token"])
    yield packed(json.dumps(header)[:-1] + f', "{name}": {own}}}', data)


def descriptions() -> Iterator[str]:
    """Metadata that describes another network than its weights are of, or none."""
    for key in (*SMALL, "channels", "mlp_ratio", "num_registers"):
        legal = {"num_registers": (0,), "mlp_ratio": (), "channels": ()}.get(key, (None,))
        for value in ABSURD:
            if value not in legal and not (value is None and key in ("embed_dim", "depth", "num_heads")):
                yield json.dumps({"encoder": SMALL | {key: value}})
    for change in ({"size": "giga"}, {"pos_embed": "relative"}, {"pos_embed": [1]}, {"init_values": 1}, {"evil": 1}):
        yield json.dumps({"encoder": SMALL | change})
    yield json.dumps({"encoder": SMALL | {"depth": 10**9, "embed_dim": 4, "num_heads": 1}})
    yield json.dumps({"encoder": SMALL | {"image_size": [4, 4 * 10**7], "pos_embed": "relative"}})
    for own in ([1], "x", 3, [[]]):
        yield json.dumps({"encoder": own})
    for known in ({"mean": "x"}, {"mean": [1, 2]}, {"mean": [float("nan")] * 3}, {"std": [0, 0, 0]}, {"step": "x"}):
        yield json.dumps({"encoder": SMALL} | known)
    yield json.dumps({"encoder": SMALL, "data": "x"})
    yield from ("[]", '"x"', "3", "{", DEEP, DIGITS, '{"a":1,"a":2}', f'{{"encoder":{{"depth":{DIGITS}}}}}', "\udcff")


def hostile_tokenizers(folder: Path) -> Iterator[Path]:
    """Tokenizers that describe others than their weights are of."""
    small = {"vocab_size": 4, "patch_size": 4, "image_size": 16}
    more: dict[str, dict[str, Any]] = {
        "kmeans": {},
        "dvae": {"width": 16, "residuals": 1, "code_dim": 4},
        "vqkd": {"width": 16, "depth": 1, "heads": 2, "code_dim": 4},
    }
    number = 0
    for kind, own in more.items():
        config = type(TOKENIZERS[kind].config().own_config)(**small, **own)
        state = load_class(TOKENIZERS[kind].home)(config).state_dict()
        values = (10**9, -1, "a", [1, 2, 3], float("nan"))
        wrong: list[Any] = [{key: value} for key in (*small, *own) for value in values]
        for change in (*wrong, {"crop_scale": 3}, {"evil": 1}, {"channels": 10**12}, None):
            if (kind, change) != ("kmeans", {"image_size": 10**9}):  # which has no positions
                known = {"kind": kind, "config": None if change is None else asdict(config) | change}
                save_file(state, folder / f"{number}.safetensors", {"ssl_vit": json.dumps(known)})
                yield folder / f"{number}.safetensors"
                number += 1
        state = {key: value * torch.nan if value.is_floating_point() else value for key, value in state.items()}
        for known in ({"kind": kind, "config": asdict(config)}, {"kind": [kind]}, {"kind": "evil:Evil", "config": {}}):
            save_file(state, folder / f"{number}.safetensors", {"ssl_vit": json.dumps(known)})
            yield folder / f"{number}.safetensors"
            number += 1


def hostile_classifiers(folder: Path) -> Iterator[Path]:
    """Classifiers that describe others."""
    save_classifier(Classifier(VisionTransformer(**SMALL), ["a", "b"]), folder)
    with safe_open(folder / files.MODEL, "pt") as file:
        known = json.loads(file.metadata()["ssl_vit"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    head = known["classifier"]
    for number, change in enumerate(
        (
            *({"classes": value} for value in ("ab", 3, [1, 2], [["a"], "b"], None, {}, ["a"] * 10**5)),
            *({"pool": value} for value in ("evil", 3, [1], None)),
            *({"distilled": value} for value in (True, "x", 10**9)),
            *({"evil": 1}, None),
        )
    ):
        changed = known | {"classifier": None if change is None else head | change}
        save_file(state, folder / f"{number}.safetensors", {"ssl_vit": json.dumps(changed)})
        yield folder / f"{number}.safetensors"
    for number, data in enumerate(([1], {"white_16bit": "x"}, {"eval_crop": float("nan")}, {"eval_crop": -1})):
        save_file(state, folder / f"data{number}.safetensors", {"ssl_vit": json.dumps(known | {"data": data})})
        yield folder / f"data{number}.safetensors"


def wrong_weights() -> Iterator[dict[str, torch.Tensor]]:
    """Weights of a good encoder, but for one of them."""
    state, name = VisionTransformer(**SMALL).state_dict(), "blocks.1.mlp.fc1.weight"
    for wrong in (
        state[name] * torch.nan,
        state[name].index_fill(0, torch.tensor([3]), torch.inf),
        state[name].long(),
        state[name] > 0,
        state[name].flatten(),
        state[name][:1],
        state[name][None],
        torch.zeros(0),
        torch.tensor(1.0),
    ):
        yield state | {name: wrong}
    yield {key: value for key, value in state.items() if key != name}
    yield state | {"another": torch.zeros(3)}
    yield {"weight": torch.zeros(3)}
    yield {}


class Code:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def torch_files(folder: Path) -> Iterator[Path]:
    """What torch.save, pickle and zip make, none of it an encoder."""
    state = VisionTransformer(**SMALL).state_dict()
    ours = {"exported": "encoder.", "state_dict": {f"encoder.{key}": value for key, value in state.items()}}
    nested: Any = torch.zeros(1)
    for _ in range(60):
        nested = [nested]
    contents: list[Any] = [
        *(Code(os.system, f"touch {MARK}"), {"model": Code(exec, EVIL)}, {"state_dict": {}, "x": Code(eval, "1")}),
        *(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).state_dict(), [state], None, 3, "x", {}, {1: 2}, {"model": 3}),
        *({"model": {1: torch.zeros(1)}}, {"model": {"blocks.0.x": 1}}, {"teacher": [1]}, nested, {"model": nested}),
        {"state_dict": {"net.weight": torch.zeros(3)}, "global_step": 3, "loops": {}, "epoch": 1},  # Lightning's
        {"model": {key: value.numpy() for key, value in state.items()}},
        {"model": state | {"patch_embed.proj.weight": torch.zeros(1).expand(2**16, 3, 2**12, 2**12)}},
        {"model": state | {"blocks.99999999999.x": torch.zeros(1)}},
        {"model": state | {"norm.weight": torch.zeros(16).to_sparse()}},
        {"model": state | {"norm.weight": torch.zeros(16, dtype=torch.complex64)}},
        *(ours, ours | {"hyper_parameters": 3}, ours | {"hyper_parameters": {"encoder": [1]}}),
        ours | {"hyper_parameters": {"encoder": SMALL | {"embed_dim": 10**9}}},
        ours | {"hyper_parameters": {"encoder": SMALL}, "metadata": [1]},
        ours | {"hyper_parameters": {"encoder": SMALL}, "exported": [1]},
        ours | {"hyper_parameters": {"encoder": SMALL}, "state_dict": {"encoder.norm.bias": 3}},
    ]
    for number, content in enumerate(contents):
        for suffix in (".ckpt", ".pth"):
            torch.save(content, folder / f"{number}{suffix}", _use_new_zipfile_serialization=suffix == ".ckpt")
            yield folder / f"{number}{suffix}"
    yield write(folder / "pickle.pth", pickle.dumps(Code(os.system, f"touch {MARK}")))
    yield write(folder / "text.pth", "an image of a cat")
    yield write(folder / "empty.ckpt", "")
    for name, how, content in (("bomb", zipfile.ZIP_DEFLATED, bytes(10**8)), ("other", zipfile.ZIP_STORED, b"cat")):
        with zipfile.ZipFile(folder / f"{name}.ckpt", "w", how) as archive:
            archive.writestr("archive/data.pkl", content)
        yield folder / f"{name}.ckpt"


def no_files(folder: Path) -> Iterator[str]:
    """Paths that are no files, or cannot be opened."""
    os.mkfifo(folder / "fifo.safetensors")
    socket.socket(socket.AF_UNIX).bind(str(folder / "socket.safetensors"))
    (folder / "empty").mkdir()
    (folder / "folder.safetensors").mkdir()
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "nowhere.safetensors").symlink_to(folder / "nothing")
    (folder / "zeros.safetensors").symlink_to("/dev/zero")
    os.mkfifo(write(folder / "run" / "config.yaml", "").with_name("encoder.safetensors"))
    for name in ("fifo", "socket", "folder", "loop", "nowhere", "zeros"):
        yield str(folder / f"{name}.safetensors")
    yield from (str(folder / "empty"), str(folder / "run"), "/dev/zero", "/dev/urandom", "/dev/null", "/dev/full")
    yield from ("x" * 300, "a\0b", "a\nb", "/proc/self/mem", "", ".")
    yield os.fsdecode(write(folder / os.fsdecode(b"\xff\xfe.safetensors"), "x"))


WISHES = [
    *({"source": "evil_module:Evil"}, {"source": "torchvision", "path": "CIFAR10:made"}),
    *({"source": "torchvision", "path": "MNIST:made"}, {"source": "hf", "path": "made/up"}),
    *({"source": "hf", "path": "."}, {"source": "hf", "path": "https://localhost:9/x", "streaming": True}),
    {"source": "webdataset", "path": f"pipe:touch {MARK}", "epoch_size": 3, "test_path": "."},
    {"source": "webdataset", "path": f"{{pipe:touch {MARK}; true /,http://h/x.tar}}", "epoch_size": 3},
    {"source": "webdataset", "path": f"{{p,q}}ipe:touch {MARK}"},
    {"source": "webdataset", "path": ".", "test_path": f"pipe:touch {MARK}"},
    {"source": "webdataset", "path": "http://localhost:9/x.tar", "epoch_size": 3},
    {"source": "webdataset", "path": "s3://made/up.tar", "epoch_size": 3},
]
"""Data that reading alone does not give: code, downloads, folders, shell commands, URLs."""
BESIDE = [
    *("[]", "3", "{", DEEP, DIGITS, '{"data":1,"data":2}', '{"data":[1]}', '{"data":"x"}', '{"readout":[1]}'),
    *('{"data":{"source":"digits","batch_size":"x"}}', '{"data":{"source":"digits","batch_size":-1}}', "\xff"),
    *('{"data":{"source":["digits"]}}', '{"data":{"mean":{}}}', '{"data":{"evil":1}}', '{"readout":{"layer":[1]}}'),
    *(f'{{"data":{{"batch_size":{DIGITS}}}}}', '{"data":{"source":{"a":{"b":{}}}}}', '{"recipe":[1]}', " " * 1_100_000),
    *('{"data":{"source":"digits","mean":NaN}}', '{"data":{"data":{"data":{}}}}', '{"data":{"source":null}}', "[[]]"),
]
"""An encoder.json that is none."""
RECIPES = [
    *("a: &x [1, 1]\nb: *x", "a: *x", "!!python/object/apply:os.system ['touch MARK']", "a: !!binary x", "\0", "\xff"),
    *(f"a: !!python/object/apply:os.system ['touch {MARK}']", f"seed: {DIGITS}", f"seed: -{DIGITS}", f"seed: {DEEP}"),
    *("a: " * 3000, "- " * 3000, "? " * 3000, "{" * 3000, "a:\n" + "".join(f"{' ' * i}b:\n" for i in range(1, 200))),
    *("a: b\n---\nc: d", "<<: {seed: 1}", "? [a, b]\n: c", "seed: 1\nseed: 2", "#" * 60_000, "seed: [" + "1," * 9000),
    *("3", "[]", "method: {name: [mae]}", "method: 3", "data: 3", "data: {source: [a]}", "encoder: {depth: 1e9}"),
    *("seed: ${oc.env:HOME}", "trainer: {max_steps: ${oc.env:HOME}}", "resume: x", "run_dir: made", "%YAML 9\n---\na"),
    *("".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9 if i else 1}]\n" for i in range(40)), "tokenizer: {name: evil:Evil}"),
    *("trainer: {logger: [wandb]}\ndata: {source: digits}", "seed: 0x1", "seed: .inf", "optim: {base_lr: .nan}"),
]


def roads(random_numbers: random.Random) -> Iterator[tuple[str, list[str]]]:
    """(what it is, command that reads it) of every hostile file, made in the current folder."""
    readers = [
        ["knn", "data.source=digits", "encoder={}"],
        ["linear_probe", "data.source=digits", "encoder={}"],
        ["visualize", "images=image.png", "encoder={}"],
        ["embed", "images=image.png", "out=features{n}.npz", "encoder={}"],
        ["finetune", "recipe=digits", "data.source=digits", "encoder={}", "--dry-run"],
        ["predict", "images=image.png", "model={}"],
        ["pretrain", "method=mae", *SIZES, "run_dir=out{n}", "init_from={}"],
        ["pretrain", "method=beit", *SIZES, "run_dir=out{n}", "tokenizer={}"],
        ["train_tokenizer", "recipe=digits-vqkd", "run_dir=out{n}", "tokenizer.teacher={}"],
    ]
    number = 0

    def read(kind: str, path: Path | str, reader: list[str] | None = None) -> tuple[str, list[str]]:
        nonlocal number
        number += 1
        reader = reader or readers[number % len(readers)]
        return f"{kind} {number}", [arg.replace("{n}", str(number)).replace("{}", str(path)) for arg in reader]

    whole = whole_encoder(Path("whole")).read_bytes()
    for content in headers(whole):
        yield read("header", write(Path(f"headers/{number}.safetensors"), content))
    for _ in range(20):
        content = whole[: random_numbers.randrange(len(whole))]
        yield read("truncated", write(Path(f"cut/{number}.safetensors"), content))
    state = VisionTransformer(**SMALL).state_dict()
    for text in descriptions():
        file = write(Path(f"described/{number}.safetensors"), "")
        try:
            file.write_bytes(save(state, metadata={"ssl_vit": text}))
        except Exception:  # such metadata cannot be written by the library
            continue
        yield read("described", file, readers[number % 4 if number % 6 < 4 else 5])
    Path("weights").mkdir()
    for tensors in wrong_weights():
        save_file(tensors, f"weights/{number}.safetensors", metadata={"ssl_vit": json.dumps({"encoder": SMALL})})
        yield read("weights", f"weights/{number}.safetensors")
    Path("torch").mkdir()
    for file in torch_files(Path("torch")):
        yield read("torch", file)
    Path("tokenizers").mkdir()
    for file in hostile_tokenizers(Path("tokenizers")):
        yield read("tokenizer", file, readers[6])
    for file in hostile_classifiers(Path("classifiers")):
        yield read("classifier", file, readers[4])
    Path("no").mkdir()
    for path in no_files(Path("no")):
        for reader in (*random_numbers.sample(readers, 2), ["pretrain", "method=mae", *SIZES, "resume={}"]):
            if path not in ("", "."):  # which mean the newest, and here
                yield read("no file", path, reader)
    for wish in WISHES:
        known = {"mean": [0.5] * 3, "std": [0.2] * 3, "recipe": "digits", "encoder": SMALL}
        folder = whole_encoder(Path(f"beside/{number}"), data=wish).parent
        write(folder / "encoder.json", json.dumps(known | {"data": wish}))
        for reader in (["knn", "encoder={}"], ["linear_probe", "encoder={}"], ["finetune", "encoder={}", "--dry-run"]):
            yield read("wish", folder, reader)
        recipe = write(Path(f"wishes/{number}.yaml"), json.dumps({"data": wish, "monitor": {"every_epochs": 0}}))
        yield read("wish", recipe, ["pretrain", "method=mae", *SIZES, "recipe={}"])
        own = {"recipe": "digits", "run_dir": "x", "resume": "", "data": wish, "monitor": {"every_epochs": 0}}
        run = write(Path(f"resumed/{number}/config.yaml"), json.dumps(own)).parent
        yield read("wish", run, ["pretrain", "method=mae", *SIZES, "resume={}"])
    for text in BESIDE:
        folder = whole_encoder(Path(f"beside/{number}")).parent
        write(folder / "encoder.json", text)
        yield read("beside", folder, [*readers[number % 2][:1], "encoder={}"])
    for text in RECIPES:
        recipe = write(Path(f"recipes/{number}.yaml"), text)
        yield read("recipe", recipe, ["pretrain", "method=mae", *SIZES, "recipe={}", "--dry-run"])
        run = write(Path(f"resumed/{number}/config.yaml"), text).parent
        yield read("config.yaml", run, ["pretrain", "method=mae", *SIZES, "resume={}"])
    os.mkfifo("fifo.yaml")
    for path in ("fifo.yaml", "/dev/zero.yaml", "no/empty.yaml"):
        yield read("recipe", path, ["pretrain", "method=mae", "recipe={}"])


def test_each_ends_in_one_line_and_does_nothing(answer):
    wrong, count = [], 0
    for what, args in roads(random.Random(0)):
        count, started = count + 1, time.monotonic()
        try:
            status, errors = answer(*args)
        except BaseException as error:
            status, errors = -1, f"{type(error).__name__}: {error}"
        if status not in (1, 2) or not errors.startswith("error: ") or errors.count("\n") != 1:
            wrong.append((what, args, status, errors[:300]))
        left = [name for name in (MARK, "made") if os.path.exists(name)]
        assert not left, (what, args, left)
        assert time.monotonic() - started < SECONDS, (what, args)
    assert not wrong, "\n".join(map(str, [len(wrong), *wrong]))
    assert count > 600
    assert "evil_module" not in sys.modules


ARGS = ["method=mae", *SIZES, "method.decoder_embed_dim=16", "method.decoder_num_heads=2", "data.batch_size=256"]
LAST = {
    "a zip that is not ours": lambda path: torch.save({"a": torch.zeros(3)}, path),
    "a pickle with code": lambda path: torch.save(
        {"state_dict": {}, "global_step": 9, "x": Code(os.system, f"touch {MARK}")}, path
    ),
    "no zip of PyTorch": lambda path: zipfile.ZipFile(path, "w").close(),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": os.mkfifo,
    "empty": lambda path: path.touch(),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def test_a_last_checkpoint_that_is_none_is_skipped_and_an_empty_config_yaml_is_said(answer, caplog):
    more = ["monitor.every_epochs=0", "data.workers=0", "trainer.checkpoint_every_steps=1", "run_dir=run"]
    assert answer("pretrain", *ARGS, *more, "trainer.max_steps=2")[0] == 0
    before, last = Path("run/checkpoints/step-0000002.ckpt"), Path("run/checkpoints/step-0000009.ckpt")
    for what, make in LAST.items():
        make(last)
        caplog.clear()
        assert files.newest_checkpoint(Path("run")) == before, what
        assert f"{last} is damaged (" in caplog.text, what
        last.rmdir() if last.is_dir() else last.unlink()
    torch.save({"state_dict": {"net.weight": torch.zeros(3)}, "global_step": 9, "loops": {}}, last)
    status, errors = answer("pretrain", *ARGS, *more, "trainer.max_steps=3", "resume=auto")
    assert (status, errors.splitlines()[-1].startswith("error: ")) == (1, True)  # another model's, named as such
    last.write_bytes(b"")
    for name in (files.METRICS, files.QUARANTINE, "hparams.yaml", ".lock"):
        for make in (os.mkfifo, lambda path: path.symlink_to(write(Path("theirs"), "precious").absolute())):
            kept = Path("run", name).rename("kept") if Path("run", name).exists() else None
            make(Path("run", name))
            status, errors = answer("pretrain", "method=mae", "trainer.max_steps=3", "resume=run")
            assert (status, errors.count("\n")) == (1, 1), name
            Path("run", name).unlink()
            _ = kept and kept.rename(Path("run", name))
    assert Path("theirs").read_text() == "precious"
    config = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text("")
    status, errors = answer("pretrain", "method=mae", "resume=run")
    assert (status, errors.count("\n")) == (2, 1)
    assert "run/config.yaml is empty or damaged: give recipe= and the settings" in errors
    Path("run/config.yaml").write_text(config)
    assert answer("pretrain", "method=mae", "trainer.max_steps=3", "resume=run")[0] == 0
    assert Path("run/checkpoints/step-0000003.ckpt").exists()
    assert not os.path.exists(MARK)
