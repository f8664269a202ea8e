"""Data sets of Hugging Face, by number and as a stream; all of them local, no network."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.sources import count, open_shards, open_source
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.transforms.crops import RandomCrop

datasets = pytest.importorskip("datasets", reason="needs the extra hf")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def encoded(seed: int) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), seed, dtype=np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def rows(values, labels=None, column="image", names=None):
    features = {column: datasets.Image()}
    data = {column: [{"bytes": encoded(value), "path": None} for value in values]}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
        data["label"] = labels
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def opened(path, split="train", **options):
    return open_source(DataConfig(source="hf", path=str(path), **options), 3, split)


def values(source) -> list[int]:
    return [int(source.read(i)[0, 0, 0]) for i in range(len(source))]


def test_a_saved_set_is_read_by_number(tmp_path):
    rows([3, 1, 2], [0, 1, None], names=["cat", "dog"]).save_to_disk(tmp_path / "a")
    source = opened(tmp_path / "a")
    assert values(source) == [3, 1, 2]
    assert source.labels.tolist() == [0, 1, -1]
    assert source.classes == ["cat", "dog"]
    assert source.size(0) == (4, 6)
    assert source.name(2) == f"{tmp_path / 'a'} row 2"
    assert count(DataConfig(source="hf", path=str(tmp_path / "a"))) == 3
    assert opened(tmp_path / "a", "test") is None


def test_a_split_with_labels_is_the_test_split(tmp_path):
    splits = {"train": rows([1, 2], [0, 1]), "test": rows([3], [None]), "validation": rows([4], [1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "a")
    assert values(opened(tmp_path / "a")) == [1, 2]
    assert values(opened(tmp_path / "a", "test")) == [4]
    rows([9]).save_to_disk(tmp_path / "b")
    assert values(opened(tmp_path / "a", "test", test_path=str(tmp_path / "b"))) == [9]
    datasets.DatasetDict({"left": rows([1])}).save_to_disk(tmp_path / "c")
    with pytest.raises(ValueError, match=r"has no split train, only left$"):
        opened(tmp_path / "c")


def test_the_only_column_of_images_is_taken(tmp_path):
    rows([5], column="img").save_to_disk(tmp_path / "a")
    assert values(opened(tmp_path / "a")) == [5]
    rows([5], column="img").add_column("n", [1]).remove_columns("img").save_to_disk(tmp_path / "b")
    with pytest.raises(ValueError, match=r"has no column image, only n: rename the one with the images$"):
        opened(tmp_path / "b")


def test_a_selection_keeps_its_labels(tmp_path):
    rows([3, 1, 2], [0, 1, 2]).select([2, 0]).save_to_disk(tmp_path / "a")
    source = opened(tmp_path / "a")
    assert (values(source), source.labels.tolist(), source.classes) == ([2, 3], [1, 0], ["0", "2"])


def test_a_row_without_an_image_is_named(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": [None]}, features).save_to_disk(tmp_path / "a")
    with pytest.raises(
        UnreadableImageError, match=r"a row 0 cannot be used: its row holds no image bytes: delete or repl"
    ):
        opened(tmp_path / "a").read(0)


@pytest.fixture
def parquet(tmp_path):
    """A folder of three parquet files, as on the hub."""
    for file in range(3):
        (tmp_path / "set").mkdir(exist_ok=True)
        part = rows(range(10 * file, 10 * file + 8), [i % 2 for i in range(8)])
        part.to_parquet(tmp_path / "set" / f"train-{file}.parquet")
    return tmp_path / "set"


def test_a_folder_is_loaded_as_a_name_is(parquet):
    source = opened(parquet)
    assert len(source) == 24
    assert sorted(values(source))[:9] == [*range(8), 10]
    assert count(DataConfig(source="hf", path=str(parquet))) is None


def test_a_set_is_streamed_file_by_file(parquet):
    data = DataConfig(source="hf", path=str(parquet), streaming=True)
    assert open_source(data, 3, "train") is None
    shards = open_shards(data, None)
    assert len(shards.names) == 3
    samples = [sample for shard in range(3) for sample in shards.read(shard)]
    found = [int(np.asarray(Image.open(io.BytesIO(sample.encoded)))[0, 0, 0]) for sample in samples]
    assert found == [*range(8), *range(10, 18), *range(20, 28)]
    assert [sample.label for sample in samples] == [i % 2 for i in range(8)] * 3


@pytest.mark.parametrize("workers", [0, 3])
def test_training_streams_a_set(parquet, workers):
    transform = RandomCrop((4, 4), (0.2, 1.0))
    options = {"source": "hf", "path": str(parquet), "streaming": True, "image_size": 4, "batch_size": 4}
    loader = ImageDataModule(transform, workers=workers, epoch_size=24, seed=0, **options).train_dataloader()
    seen = [index for batch in loader for index in batch["index"].tolist()]
    assert len(set(seen)) == 24
    with pytest.raises(ValueError, match=r"does not say how many images it has: give data.epoch_size$"):
        ImageDataModule(transform, **options).train_dataloader()


def test_a_saved_set_is_not_streamed(tmp_path):
    rows([1]).save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError, match=r"is on this machine, and saved: read it with data.streaming=false$"):
        open_shards(DataConfig(source="hf", path=str(tmp_path / "a"), streaming=True), None)


def test_what_cannot_be_loaded_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^data.path=.*/empty could not be loaded: .*$"):
        opened(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"^data.path= is empty: give a folder that save_to_disk wrote, or a name on"):
        opened("")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"uv sync --extra hf, or pip install 'ssl_vit\[hf\]'"):
        opened(tmp_path)
