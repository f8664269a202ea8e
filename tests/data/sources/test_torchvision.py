import struct
from urllib.error import URLError

import numpy as np
import pytest

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import open_source
from ssl_vit.data.sources.torchvision import DATASETS


def write_mnist(root, train: int, test: int) -> np.ndarray:
    """Random images in MNIST's own file format."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    for name, split in (("train", pixels[:train]), ("t10k", pixels[train:])):
        header = struct.pack(">IIII", 2051, len(split), 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + split.tobytes())
        labels = (np.arange(len(split)) % 10).astype(np.uint8)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(split)) + labels.tobytes())
    return pixels


def test_torchvision_sets_are_read_from_their_files(tmp_path):
    pixels = write_mnist(tmp_path, 12, 3)
    data = DataConfig(source="torchvision", path=f"MNIST:{tmp_path}")
    train, test = open_source(data, 1, "train"), open_source(data, 1, "test")
    assert (len(train), len(test)) == (12, 3)
    assert train.labels.tolist() == [*range(10), 0, 1]
    assert train.classes[:2] == ["0 - zero", "1 - one"]
    assert np.array_equal(test.read(2)[:, :, 0], pixels[14])
    assert test.size(0) == (28, 28)
    assert test.name(2) == "MNIST test image 2"


def test_every_torchvision_set_exists_with_its_splits():
    import inspect

    from torchvision import datasets

    for name, (train, test) in DATASETS.items():
        parameters = inspect.signature(getattr(datasets, name)).parameters
        assert next(iter(parameters)) == "root"
        assert ("train" in parameters) + ("split" in parameters) == (test is not None), name
        if train == "trainval":
            assert parameters["split"].default == "trainval"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("CIFAR:downloads", "must be CLASS:ROOT, such as CIFAR10:downloads, with CLASS one of CIFAR10, CIFAR100"),
        ("CIFAR10", "must be CLASS:ROOT"),
        ("", "must be CLASS:ROOT"),
    ],
)
def test_a_wrong_torchvision_path_is_said(path, message):
    with pytest.raises(ValueError, match=r"^data.path=") as caught:
        open_source(DataConfig(source="torchvision", path=path), 3, "train")
    assert str(caught.value).startswith(f"data.path={path} {message}")
    assert path == "" or str(caught.value).endswith("(did you mean CIFAR10?)")


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    from torchvision import datasets

    def download(self):
        raise URLError("no route\nto host")

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    with pytest.raises(ValueError, match=r"^data.path=CIFAR10:") as caught:
        open_source(DataConfig(source="torchvision", path=f"CIFAR10:{tmp_path}"), 3, "train")
    line = "could not be opened or downloaded: <urlopen error no route to host>: put its files into"
    assert str(caught.value) == f"data.path=CIFAR10:{tmp_path} {line} {tmp_path} yourself"
