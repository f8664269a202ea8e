"""Predictions as a table that any program may open, whatever the files are called."""

import base64
import csv
import io
import json
import os
import re
from collections import Counter
from html.parser import HTMLParser

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
from ssl_vit.supervised.prediction_page import POLICY, Gallery, thumbnail


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


HOSTILE = (
    b"<script>alert(1)<script>.png",
    b'"><img src=x onerror=alert(1)>.png',
    b"it's.png",
    b"two\nlines.png",
    "rtl\u202egnp.png".encode(),
    b"caf\xe9.png",
    b"a&amp;b.png",
)


class Seen(HTMLParser):
    """Elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = list[tuple[str, dict[str, str | None]]](), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def images(self) -> list[Image.Image]:
        sources = [attrs["src"].partition("data:image/jpeg;base64,") for tag, attrs in self.tags if tag == "img"]
        return [Image.open(io.BytesIO(base64.b64decode(content))) for _, _, content in sources]


def test_a_page_shows_every_image_and_nothing_of_a_name_is_markup(model):
    images(*HOSTILE)
    open(b"images/<b>bad\xff.png", "wb").write(b"no image")  # noqa: SIM115
    Image.fromarray(np.zeros((300, 900, 3), np.uint8)).save("images/wide.png")
    out, rows = predict(PredictConfig(images="images", model=model, out="new/page.html", batch_size=3))
    page = out.read_text(encoding="utf-8")
    seen = Seen(page)
    tags = Counter(tag for tag, _ in seen.tags)
    assert not {"script", "b", "a", "link", "iframe", "object", "form"} & tags.keys()
    assert tags["img"] == len(HOSTILE) + 1
    assert {attribute for _, attrs in seen.tags for attribute in attrs if attribute.startswith("on")} == set()
    assert [attrs["content"] for _, attrs in seen.tags if attrs.get("http-equiv") == "Content-Security-Policy"] == [
        POLICY
    ]
    assert "http" not in page.replace("http-equiv", "")
    for text in (
        "<script>alert(1)<script>.png",
        "a&amp;b.png",
        "two\\nlines.png",
        "rtl\\u202egnp.png",
        "caf\\udce9.png",
    ):
        assert text in seen.text
    assert "<b>bad\\udcff.png is no image that can be read" in seen.text
    assert f"{len(HOSTILE) + 1} images classified, 1 could not be read" in seen.text
    assert sorted(image.size for image in seen.images())[-1] == (160, 53)
    assert len(rows) == len(HOSTILE) + 2


def test_a_page_has_the_least_confident_and_counts_the_rest(model, monkeypatch):
    """Its size, and the memory that it takes, do not grow with the folder."""
    images(*(b"%d.png" % i for i in range(7)))
    sure = iter([0.9, 0.2, 0.8, 0.3, 0.7, 0.6, 0.95])
    monkeypatch.setattr(module, "classify", lambda model, pixels, top: [{"x": next(sure)} for _ in pixels])
    monkeypatch.setattr(module, "Gallery", lambda: Gallery(3))
    out, _ = predict(PredictConfig(images="images", model=model, out="page.html", batch_size=2))
    seen = Seen(out.read_text())
    assert re.findall(r"images/(\d).png", seen.text) == ["1", "3", "5"]
    assert "4 more confident images are not shown" in seen.text
    assert "7 images classified" in seen.text
    assert "63.6 %20.0 %" in seen.text  # mean and lowest of the class


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_thumbnail_of_any_number_of_channels(channels):
    assert thumbnail(np.full((3, 1000, channels), 7, np.uint8)).size == (160, 1)


def test_a_page_of_a_stopped_command_says_so(model, monkeypatch):
    images(*(b"%d.png" % i for i in range(3)))
    whole = module.classify
    monkeypatch.setattr(module, "classify", lambda *args: whole(*args) if not open("once", "x").close() else 0)
    with pytest.raises(FileExistsError):
        predict(PredictConfig(images="images", model=model, out="page.html", batch_size=2))
    assert "stopped after 2 of 3" in open("page.html").read()  # noqa: SIM115


def test_a_table_that_cannot_be_written_is_said_before_the_work(model, monkeypatch):
    images(b"a.png")
    os.mkdir("table.csv")
    monkeypatch.setattr(module, "classify", lambda *_: 1 / 0)
    with pytest.raises(ValueError, match=r"^out=table.csv must be a file in a folder that can be written to$"):
        predict(PredictConfig(images="images", model=model, out="table.csv"))
    assert torch.is_grad_enabled()
