"""The evaluations as functions: the command's figures, on images of every kind, and nothing but a result."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import CLASSES, make_encoder, make_labeled
from PIL import Image
from torchvision.datasets import ImageFolder

import ssl_vit
from ssl_vit.cli.main import run_command
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.models.weights import load_encoder, save_encoder

STATISTICS = {"mean": [0.4] * 3, "std": [0.2] * 3}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with labeled images, split, and a run whose evaluation reads something of its own."""
    monkeypatch.chdir(tmp_path)
    make_labeled(Path("images"))
    data = {"source": "folder", "path": "images", "batch_size": 7, "workers": 0, "eval_crop": 0.8}
    readout = {"pool": "both", "layer": 2, "blocks": 1}
    save_encoder(make_encoder(), Path("run"), **STATISTICS, data=data, readout=readout, step=17)
    return tmp_path


def arrays_of(split: str):
    names = [path for name in CLASSES for path in sorted(Path("images", split, name).iterdir())]
    images = np.stack([np.asarray(Image.open(path)) for path in names])
    return images, np.array([CLASSES.index(path.parent.name) for path in names])


def kinds():
    """The same images in every form that a user may have them in."""
    (images, labels), (test_images, test_labels) = arrays_of("train"), arrays_of("test")
    yield "paths", ("images", None)
    yield "two paths", ("images/train", Path("images/test"))
    yield "PIL", (ImageFolder("images/train"), ImageFolder("images/test"))
    yield "arrays", ((images, labels), (test_images, test_labels))
    yield (
        "tensors",
        tuple(
            (torch.from_numpy(values).permute(0, 3, 1, 2), torch.from_numpy(numbers))
            for values, numbers in ((images, labels), (test_images, test_labels))
        ),
    )
    yield (
        "lists",
        (
            list(zip(images, labels.tolist(), strict=True)),
            list(zip(test_images, test_labels.tolist(), strict=True)),
        ),
    )


@pytest.mark.parametrize(
    ("task", "args", "given"),
    [
        ("linear_probe", [], {}),
        ("linear_probe", ["protocol=grid", "epochs=2"], {"protocol": "grid", "epochs": 2}),
        ("knn", ["neighbors=3"], {"neighbors": 3}),
    ],
)
def test_the_figures_are_the_commands_whatever_the_images_come_in(task, args, given, place, capsys):
    run_command(task, "encoder=run", *args)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for kind, (train, test) in kinds():
        scores = getattr(ssl_vit, task)("run", train, test, controls=kind == "PIL", **given)
        expected = [*(found[key] for key in ("top1", "top5", "calibration_error", "head")), found["top1_interval"]]
        assert [scores.top1, scores.top5, scores.calibration_error, scores.head, list(scores.interval)] == expected, (
            kind
        )
        assert scores.protocol.partition(";")[0] == found["protocol"].partition(";")[0]
        assert scores.probabilities.shape == (12, 3)
        assert (scores.predictions == scores.labels).mean() == pytest.approx(scores.top1, abs=1e-4)
        assert scores.classes == ([str(i) for i in range(3)] if kind in ("arrays", "tensors", "lists") else [*CLASSES])
        if kind == "PIL":
            assert {name: each.top1 for name, each in scores.controls.items()} == found["controls"]
        assert "\n" not in scores.summary()
        assert f"{task}: top-1 {scores.top1:.1%} (" in scores.summary()


def test_nothing_but_the_result_is_left(place, capfd):
    encoder, files = load_encoder("run").train(), sorted(place.rglob("*"))
    encoder.blocks[0].eval()  # pyright: ignore
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # beartype draws from Python's own
    for protocol in ("auto", "mae", "attentive"):
        ssl_vit.linear_probe(encoder, "images", protocol=protocol, epochs=None if protocol == "auto" else 1)
    ssl_vit.knn(encoder, arrays_of("train"), controls=True)
    ssl_vit.knn("run", "images")  # whose weights are drawn before they are read
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()
    assert sorted(place.rglob("*")) == files
    assert [block.training for block in encoder.blocks] == [False, True, True]
    assert encoder.training
    assert capfd.readouterr() == ("", "")


def test_a_method_in_python_is_read_as_its_evaluation_would(place):
    """Its encoder, mean and std and readout; without them the error is the command's."""
    sizes = {"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 4, "image_size": 16}
    small = {"decoder_embed_dim": 16, "decoder_num_heads": 2, "decoder_depth": 1}
    method = ssl_vit.MAE(encoder=sizes, readout={"pool": "cls", "layer": 1}, **STATISTICS, **small)
    scores = ssl_vit.linear_probe(method, "images")
    assert scores.head == {"blocks": [1], "pool": "cls"}
    save_encoder(method.export_encoder(), Path("saved"), **STATISTICS)
    data = {"eval_crop": 0.875, "batch_size": 64}
    saved = ssl_vit.linear_probe("saved", "images", pool="cls", layer=1, data=data)
    np.testing.assert_array_equal(scores.probabilities, saved.probabilities)
    backbone = EncoderBackbone(method.export_encoder())
    backbone.metadata = dict(STATISTICS)
    assert ssl_vit.knn(backbone, "images").top1 == ssl_vit.knn(method.export_encoder(), "images", data=STATISTICS).top1
    with pytest.raises(ValueError, match="does not say by which mean and std its images were normalized: give data"):
        ssl_vit.knn(method.export_encoder(), "images")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssl_vit.knn("run", (np.zeros((4, 9, 9, 3)), [0, 1, 0, 1])), "images float64 .* must be uint8"),
        (lambda: ssl_vit.knn("run", (np.zeros((4, 9, 9, 3), np.uint8), [0, 1])), "must be one for each of 4 images"),
        (
            lambda: ssl_vit.knn(3, "images"),
            "an encoder is a VisionTransformer, a Method, a path or timm:NAME, not a int",
        ),
        (lambda: ssl_vit.knn("run", (np.zeros((4, 9, 9, 3), np.uint8), [0] * 4)), "training images of one class alone"),
        (lambda: ssl_vit.linear_probe("run", "images", protocol="gird"), "did you mean grid"),
        (lambda: ssl_vit.linear_probe("run", "images", data={"eval_crup": 1}), "did you mean data.eval_crop"),
        (lambda: ssl_vit.linear_probe("run", "images", data=STATISTICS | {"std": [1] * 3}), "was trained with"),
    ],
)
def test_a_mistake_is_one_line(call, message, place):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
