import struct
import subprocess
import sys
from urllib.error import URLError

import numpy as np
import pytest

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.registry import TORCHVISION, count, open_source

DIGITS = DataConfig(source="digits")


@pytest.fixture(scope="module")
def digits():
    return open_source(DIGITS, 3, "train"), open_source(DIGITS, 3, "test")


def test_no_digit_is_in_both_parts(digits):
    train, test = (set(source.numbers.tolist()) for source in digits)
    assert (len(train), len(test)) == (1437, 360)
    assert not train & test
    assert count(DIGITS) == len(train)


def test_both_parts_hold_every_digit_in_proportion(digits):
    train, test = (np.bincount(source.labels, minlength=10) for source in digits)
    assert (abs(test / 360 - train / 1437) < 0.005).all()
    assert digits[0].classes == list("0123456789")


def test_digits_differ_in_place_size_and_color(digits):
    canvases = digits[0].canvases.astype(np.float64)
    rows = canvases.max(axis=(2, 3)) > 40
    tops, bottoms = rows.argmax(1), 31 - rows[:, ::-1].argmax(1)
    heights = bottoms - tops + 1
    assert canvases.shape == (1437, 32, 32, 3)
    assert 18 < np.percentile(heights, 2) < np.percentile(heights, 98) <= 32
    assert tops.std() > 1.5
    colors = canvases.max(axis=(1, 2))
    assert (colors.max(1) > 150).all()  # bright enough to see
    assert (colors.std(0) > 30).all()


def test_digits_are_the_same_each_time(digits):
    again = open_source(DIGITS, 3, "train")
    assert np.array_equal(again.canvases, digits[0].canvases)
    assert int(digits[0].canvases.astype(np.int64).sum()) == pytest.approx(206_900_000, rel=0.02)


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # 20 steps are near enough
def test_raw_pixels_of_digits_are_neither_trivial_nor_useless(digits):
    from sklearn.linear_model import LogisticRegression

    rows = [np.stack([source.read(i) for i in range(len(source))]).reshape(len(source), -1) / 255 for source in digits]
    model = LogisticRegression(max_iter=20).fit(rows[0], digits[0].labels)
    assert 0.70 < model.score(rows[1], digits[1].labels) < 0.82


def test_digits_come_in_gray_too():
    assert open_source(DIGITS, 1, "test").read(0).shape == (32, 32, 1)


def test_counting_needs_no_torch(tmp_path):
    code = (
        "import sys; from ssl_vit.data.sources.registry import count; from ssl_vit.config.schema import DataConfig;"
        f"print(count(DataConfig(source='digits')), count(DataConfig(source='torchvision', path='CIFAR10:{tmp_path}')),"
        "*[name for name in ('torch', 'torchvision', 'sklearn', 'pyarrow') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["1437", "None"]


def write_mnist(root, train: int, test: int) -> np.ndarray:
    """Random images in MNIST's own file format."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (train + test, 28, 28), dtype=np.uint8)
    for word, part in (("train", pixels[:train]), ("t10k", pixels[train:])):
        header = struct.pack(">IIII", 2051, len(part), 28, 28)
        (raw / f"{word}-images-idx3-ubyte").write_bytes(header + part.tobytes())
        labels = (np.arange(len(part)) % 10).astype(np.uint8)
        (raw / f"{word}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(part)) + labels.tobytes())
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


def test_every_torchvision_set_exists_with_its_parts():
    import inspect

    from torchvision import datasets

    for name, (train, test) in TORCHVISION.items():
        parameters = inspect.signature(getattr(datasets, name)).parameters
        assert next(iter(parameters)) == "root"
        assert ("train" in parameters) + ("split" in parameters) == (test is not None), name
        if train == "trainval":
            assert parameters["split"].default == "trainval"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "CIFAR:downloads",
            "must be CLASS:ROOT, such as CIFAR10:downloads, with CLASS one of CIFAR10, CIFAR100",
        ),
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
