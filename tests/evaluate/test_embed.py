"""Features as arrays and tables: the run's own, of every kind of input, whole after an interruption."""

import csv
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import ssl_vit
from ssl_vit.cli.main import guarded
from ssl_vit.evaluate import embed as module
from ssl_vit.models.weights import save_encoder

SHAPE = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 4, "image_size": 8}
METADATA = {"mean": [0.5] * 3, "std": [0.25] * 3, "readout": {"pool": "both", "layer": 1, "blocks": 1}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A run, and five images of two classes, one of them unreadable."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_encoder(ssl_vit.VisionTransformer(**SHAPE), "run", **METADATA)
    values = np.random.default_rng(0).integers(0, 256, (5, 12, 9, 3), dtype=np.uint8)
    for number, value in enumerate(values):
        path = tmp_path / "images" / ("=cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(path)
    (tmp_path / "images" / "dog" / "3.png").write_bytes(b"no image")
    return tmp_path


def readable(place) -> list[str]:
    return [f"images/{name}.png" for name in ("=cat/0", "=cat/2", "=cat/4", "dog/1")]


def test_features_are_those_of_the_runs_readout_for_every_kind_of_input(place):
    encoder = ssl_vit.load_encoder("run").train()
    inputs = torch.stack([encoder.preprocess(path) for path in readable(place)])
    expected = encoder.eval().features(inputs, layers=[0], pool="both").detach().numpy()
    encoder.train()
    found = ssl_vit.embed(encoder, readable(place), batch_size=3)
    assert (found.shape, found.dtype, encoder.training) == ((4, 32), np.float32, True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    images = [Image.open(path) for path in readable(place)]
    assert np.array_equal(ssl_vit.embed("run", images, batch_size=3), found)
    pairs = [(np.asarray(image), 7) for image in images]  # as a Dataset gives them
    assert np.array_equal(ssl_vit.embed("run", pairs, batch_size=3), found)
    assert ssl_vit.embed("run", images, pool="cls", layer="last", blocks=2).shape == (4, 32)
    patches = ssl_vit.embed("run", images, patches=True)
    assert patches.shape == (4, 4, 16)
    np.testing.assert_allclose(patches.mean(1), found[:, 16:], atol=1e-5)


@pytest.mark.parametrize("out", ["f.npz", "new/f.parquet", "f.csv"])
def test_a_folder_becomes_a_table(place, out, caplog, capsys):
    assert guarded(["embed", "encoder=run", "images=images", f"out={out}", "batch_size=2"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    expected = ssl_vit.embed("run", readable(place), batch_size=2)
    if out.endswith(".npz"):
        table = np.load(out)
        names, labels, features = table["names"].tolist(), table["labels"].tolist(), table["features"]
    elif out.endswith(".parquet"):
        table = pq.read_table(out)
        names, labels = table["name"].to_pylist(), table["label"].to_pylist()
        features = np.array(table["features"].to_pylist(), dtype=np.float32)
    else:
        with open(out) as file:
            rows = list(csv.reader(file))[1:]
        names, labels, features = (
            [row[0] for row in rows],
            [row[1] for row in rows],
            np.float32([r[2:] for r in rows]),
        )
        assert labels[0] == "'=cat"  # no formula
        labels = [label.lstrip("'") for label in labels]
    assert names == readable(place)
    assert labels == ["=cat", "=cat", "=cat", "dog"]
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert any("dog/3.png" in message for message in caplog.messages)
    assert not list(place.rglob("*.partial"))


def test_an_interrupted_command_goes_on_where_it_was(place, monkeypatch, capsys):
    monkeypatch.setattr(module, "CHUNK", 2)
    done, embedded = [], module._embedded

    def break_off(*given):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(given[-1])
        return embedded(*given)

    command = ["embed", "encoder=run", "images=images", "out=f.npz"]
    monkeypatch.setattr(module, "_embedded", break_off)
    assert guarded(command) == 130
    assert guarded([*command, "pool=cls"]) == 2
    assert "f.npz.partial is of other images, another encoder or other settings" in capsys.readouterr().err
    image, times = readable(place)[0], os.stat(readable(place)[0])
    os.utime(image, (0, 0))  # as where another one has taken its name: the half of before would be of the old one
    assert guarded(command) == 2
    assert "f.npz.partial is of other images" in capsys.readouterr().err
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    again = []
    monkeypatch.setattr(module, "_embedded", lambda *given: again.append(given[-1]) or embedded(*given))
    assert guarded(command) == 0
    assert (done, again) == ([range(2)], [range(2, 4), range(4, 5)])
    np.testing.assert_allclose(np.load("f.npz")["features"], ssl_vit.embed("run", readable(place)), atol=1e-5)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "images= must be an image, or a folder of images"),
        (["images=images", "out=f.txt"], "out=f.txt must be a file that ends in .npz, .parquet or .csv"),
        (
            ["images=images", "patches=true", "out=f.csv"],
            "out=f.csv must be a file that ends in .npz with patches=true",
        ),
        (["images=images", "layer=best"], "layer=best must be last or a number"),
        (["images=images", "layer=3"], "layer=3 must be at most 2"),
        (["images=images/dog/3.png"], "none of 1 images can be read"),
    ],
)
def test_what_cannot_be_embedded_is_one_line(place, args, line, capsys):
    assert guarded(["embed", "encoder=run", *args]) in (1, 2)
    assert line in capsys.readouterr().err
    assert not list(place.glob("features.npz*"))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"data": {"eval_crop": "x"}}, "data.eval_crop=x must be a number"),
        ({"data": {"white_16bit": 0}}, "data.white_16bit=0 must be in"),
        ({"readout": {"blocks": "x"}}, "readout.blocks=x must be"),
        ({"readout": [1]}, "must be an object of settings"),
    ],
)
def test_metadata_of_a_stranger_is_one_line(place, more, line, capsys):
    save_encoder(ssl_vit.load_encoder("run"), "other", **METADATA | more)
    assert guarded(["embed", "encoder=other", "images=images"]) == 2
    assert line in capsys.readouterr().err


def test_an_encoder_whose_normalization_is_not_known_says_so(place, capsys):
    metadata = json.loads((place / "run" / "encoder.json").read_text())
    save_encoder(ssl_vit.load_encoder("run"), "other", readout=metadata["readout"])
    assert guarded(["embed", "encoder=other", "images=images"]) == 2
    assert "does not say by which mean and std" in capsys.readouterr().err
