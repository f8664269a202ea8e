"""Predictions as a table that any program may open, whatever the files are called."""

import csv
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.config.finetune_schema import PredictConfig
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.tables import harmless
from ssl_vit.supervised import predict as module
from ssl_vit.supervised.classifier import Classifier, save_classifier
from ssl_vit.supervised.predict import predict


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A fine-tuned run with hostile class names, of a network that has learned nothing."""
    monkeypatch.chdir(tmp_path)
    encoder = VisionTransformer(embed_dim=8, depth=1, num_heads=1, patch_size=4, image_size=8)
    save_classifier(Classifier(encoder, ["=1+1", "cat\udcff"]), tmp_path / "run", mean=[0.5] * 3, std=[0.5] * 3)
    return str(tmp_path / "run")


def images(*names: bytes) -> None:
    os.makedirs("images", exist_ok=True)
    for name in names:
        with open(b"images/" + name, "wb") as file:
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(file, "PNG")


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_no_name_of_a_file_loses_the_table(model, kind):
    """One name that is no UTF-8 ended the command after all images had been classified, and nothing was written."""
    names = (b"a.png", b"caf\xe9.png", b'"x",;=1.png', b"two\nlines\r.png")
    images(*names)
    (path := b"images/bad\xff.png") and open(path, "wb").write(b"no image")  # noqa: SIM115
    out, rows = predict(PredictConfig(images="images", model=model, out=f"new/table.{kind}", batch_size=2))
    with out.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file)) if kind == "csv" else json.load(file)
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    assert {row["file"] for row in table} == {
        "images/a.png", "images/caf\\udce9.png", "images/bad\\udcff.png",
        'images/"x",;=1.png', "images/two\nlines\r.png",
    }  # fmt: skip
    (unread,) = (row for row in table if row["error"])
    assert unread["file"] == "images/bad\\udcff.png"
    assert "bad\\udcff.png is no image that can be read" in unread["error"]
    names = {"'=1+1", "cat\\udcff"} if kind == "csv" else {"=1+1", "cat\\udcff"}
    assert {row["prediction"] for row in table if not row["error"]} <= names


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\rx", "\nx", " =1", "\uff1d1", "\uff20x"])
def test_no_text_is_a_formula(text):
    assert harmless(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=1", "", "images/-1.png", -1.5, None, "'=1"])
def test_what_is_none_stays(value):
    assert harmless(value) == value


def test_a_file_that_begins_like_a_formula_is_text_in_a_spreadsheet(model):
    images(b"=cmd|'calc'!A1.png")
    os.chdir("images")
    out, rows = predict(PredictConfig(images="=cmd|'calc'!A1.png", model=model, out="table.csv"))
    assert rows[0]["file"] == "=cmd|'calc'!A1.png"
    assert out.read_text().splitlines()[1].startswith("\"'=cmd|'calc'!A1.png\",")


def test_what_was_classified_is_kept_whatever_ends_the_work(model, monkeypatch):
    images(*(b"%d.png" % i for i in range(5)))
    calls, whole = [], module.classify

    def classify(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(module, "classify", classify)
    with pytest.raises(KeyboardInterrupt):
        predict(PredictConfig(images="images", model=model, out="table.csv", batch_size=2))
    assert [row["file"] for row in csv.DictReader(open("table.csv"))] == [f"images/{i}.png" for i in range(4)]  # noqa: SIM115


def test_one_image_is_all_that_is_read(model, monkeypatch):
    """The folder that it lies in, of millions of others, is not looked at."""
    images(b"a.png", b"b.png")
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, lambda *_: 1 / 0)
    _, rows = predict(PredictConfig(images="images/a.png", model=model))
    monkeypatch.undo()
    assert [row["file"] for row in rows] == ["images/a.png"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: os.mkfifo("x"), "images=x is a pipe or a device: give an image or a folder of images"),
        (lambda: os.symlink("x", "x"), "images=x: there is no such file or folder"),
        (lambda: os.mkdir("x"), "images=x holds no images: 0 files seen, images end in "),
    ],
)
def test_what_is_no_image_is_not_opened(model, make, message):
    make()
    with pytest.raises((ValueError, OSError)) as caught:
        predict(PredictConfig(images="x", model=model))
    assert str(caught.value).startswith(message)


def test_a_table_that_cannot_be_written_is_said_before_the_work(model, monkeypatch):
    images(b"a.png")
    os.mkdir("table.csv")
    monkeypatch.setattr(module, "classify", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r"^out=table.csv must be a file in a folder that can be written to$"):
        predict(PredictConfig(images="images", model=model, out="table.csv"))
    assert torch.is_grad_enabled()
