"""From what a data set says of its images to numbered classes, the same for every source."""

import io
import json
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.held_out import eval_splits
from ssl_vit.data.labels import labels_line, labels_of
from ssl_vit.data.sources import open_labels, open_source
from ssl_vit.data.sources.base import Source


def encoded(seed: int = 0) -> bytes:
    stored = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), seed, dtype=np.uint8)).save(stored, "PNG")
    return stored.getvalue()


def numbers_of(values, names=()):
    labels = labels_of(values, names, "x")
    return labels.numbers.tolist(), labels.classes


def test_labels_from_0_on_without_a_gap_stay_what_they_are():
    assert numbers_of(np.array([2, 0, 1, -1, 2])) == ([2, 0, 1, -1, 2], ["0", "1", "2"])
    assert numbers_of(np.array([2, 0, -1]), ["a", "b", "c"]) == ([2, 0, -1], ["a", "b", "c"])


def test_only_labels_that_occur_are_numbered():
    """A date as a label made twenty million names, a time stamp filled the memory."""
    tracemalloc.start()
    assert numbers_of(np.array([20260101, 1_700_000_000, -5])) == ([0, 1, -1], ["20260101", "1700000000"])
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert numbers_of(np.array([3, 2**63 + 9], dtype=np.uint64)) == ([0, 1], ["3", str(2**63 + 9)])
    assert numbers_of([5, 1], ["cat", "dog"]) == ([2, 1], ["cat", "dog", "5"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", None, "", "b"], ([1, 0, -1, -1, 1], ["a", "b"])),
        ([1.0, float("nan"), 0.0], ([1, -1, 0], ["0", "1"])),
        ([True, False], ([1, 0], ["0", "1"])),
        ([None, -1], ([-1, -1], [])),
        (np.array(["10", "9"]), ([0, 1], ["10", "9"])),
        ([np.int64(4), "4", "cat"], ([0, 0, 1], ["4", "cat"])),
    ],
)
def test_texts_whole_floats_and_truth_values_are_classes_and_nothing_is_none(values, expected):
    assert numbers_of(values) == expected


@pytest.mark.parametrize("value", [0.5, float("inf"), [1], {"a": 1}, b"x", (1, 2)])
def test_what_names_no_class_leaves_all_labels_unused_and_says_why(value):
    labels = labels_of([1, value], [], "column label")
    assert (labels.numbers.tolist(), labels.classes) == ([-1, -1], [])
    kind = repr(value) if isinstance(value, float) else type(value).__name__
    assert labels.note == f"column label holds {kind}, which names no class: left unused"


class Plain(Source):
    def __init__(self, values, names=()):
        super().__init__(DataConfig(), 3, *labels_of(values, names, "x"))


def test_splits_share_their_numbers_by_value_and_not_by_place():
    """Test images of the labels 7 and 9 were the second and third class of three, and there the first and second."""
    splits = eval_splits(Plain([3, 7, 9, 3]), Plain([9, 7, -1, 40]), 0)
    assert splits.classes == ["3", "7", "9", "40"]
    assert splits.foreign_classes == ["40"]
    assert splits.train.labels.tolist() == [0, 1, 2, 0]
    assert splits.test.labels[splits.test.index].tolist() == [2, 1, 3]
    assert splits.lines(4, 3)[1:] == [
        "labels        3 classes from x: 3, 7, 9",
        "              1 class from the test images alone: 40",
    ]


def test_two_classes_of_one_name_stay_two():
    """ImageNet has two cranes: test images of the second were counted as the first."""
    names = ["crane", "dog", "crane"]
    splits = eval_splits(Plain([0, 1, 2], names), Plain([2, 0, 1], names), 0)
    assert splits.test.labels.tolist() == [2, 0, 1]


def test_many_labels_are_matched_in_no_time():
    """Each name was looked for in the list of all: minutes for a label of its own in every image."""
    splits = eval_splits(Plain(np.arange(200_000)), Plain(np.arange(200_000)[::-1]), 0)
    assert splits.test.labels[0] == 199_999


def test_a_line_names_the_classes_and_where_they_come_from():
    assert labels_line([], "") == "none"
    assert labels_line([], "data.labels=false") == "none: data.labels=false"
    assert labels_line(["cat"], "folder names") == "1 class from folder names: cat"
    hostile = labels_line(["a", "\x1b[31m", "c\udcff", "d"], "column label")
    assert hostile == "4 classes from column label: a, \\x1b[31m, c\\udcff, ..."


COLUMNS = {
    "dates": ([20260101, 20260102, None, 20260101], ([0, 1, -1, 0], ["20260101", "20260102"])),
    "texts": (["dog", "cat", None, "dog"], ([1, 0, -1, 1], ["cat", "dog"])),
    "floats": ([0.0, 1.0, None, 0.0], ([0, 1, -1, 0], ["0", "1"])),
    "fractions": ([0.5, 1.0, None, 0.0], ([-1] * 4, [])),
    "lists": ([[1, 2], [3], None, []], ([-1] * 4, [])),
    "nothing": ([None] * 4, ([-1] * 4, [])),
}


def saved(tmp_path, kind, values):
    pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
    table = pa.table({"image": [encoded(i) for i in range(len(values))], "label": values})
    if kind == "parquet":
        from pyarrow import parquet

        parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        return tmp_path / "a.parquet"
    datasets = pytest.importorskip("datasets", reason="needs the extra hf")
    datasets.disable_progress_bars()
    features = datasets.Features(datasets.Features.from_arrow_schema(table.schema) | {"image": datasets.Image()})
    images = [{"bytes": encoded(i), "path": None} for i in range(len(values))]
    datasets.Dataset.from_dict({"image": images, "label": values}, features).save_to_disk(tmp_path / "a")
    return tmp_path / "a"


@pytest.mark.parametrize("kind", ["parquet", "hf"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_of_any_kind_stops_no_pretraining(tmp_path, kind, column):
    values, expected = COLUMNS[column]
    data = DataConfig(source=kind, path=str(saved(tmp_path, kind, values)))
    for source in (open_source(data, 3, "train"), open_labels(data, "train")):
        assert (source.labels.tolist(), source.classes) == expected
        assert ("left unused" in source.label_note) == (column in ("fractions", "lists"))
    module = ImageDataModule(data=data, image_size=8, seed=0)
    assert module.has_labels == bool(expected[1])


def test_labels_are_known_without_reading_an_image(tmp_path, monkeypatch):
    file = saved(tmp_path, "parquet", ["b", "a", "b"])
    monkeypatch.setattr("ssl_vit.data.sources.parquet._encoded", lambda column: 1 / 0)
    labels = open_labels(DataConfig(source="parquet", path=str(file)), "train")
    assert labels.labels.tolist() == [1, 0, 1]
    assert open_labels(DataConfig(source="parquet", path=str(file)), "test") is None


class Items(list):
    """(image, label) of every label that it is given."""

    def __init__(self, labels, **attributes):
        super().__init__((np.zeros((8, 8, 3), np.uint8), label) for label in labels)
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (Items(["dog", "cat", None]), ([1, 0, -1], ["cat", "dog"])),
        (Items([torch.tensor(70), np.int64(5), torch.tensor([5])]), ([1, 0, 0], ["5", "70"])),
        (Items([[1, 0], [0, 1]]), ([-1, -1], [])),
        (Items([torch.tensor([0, 1]), torch.tensor([1, 0])]), ([-1, -1], [])),
        (Items([0, 1], targets=["x", "y"]), ([0, 1], ["x", "y"])),
        (Items([0, 1], targets=torch.tensor([8, 3])), ([1, 0], ["3", "8"])),
        (Items([0, 1], targets=[0.25, 0.5]), ([-1, -1], [])),
    ],
)
def test_labels_of_a_data_set_are_numbered_likewise(dataset, expected):
    module = ImageDataModule(source=dataset, image_size=8, seed=0)
    assert module.has_labels == bool(expected[1])
    source = module._source()
    assert (source.labels.tolist(), source.classes) == expected
    assert ("left unused" in module.splits.label_note) == (not expected[1])


def test_nobody_uses_labels_that_are_not_wanted(tmp_path, write):
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        write(tmp_path / "folder" / name)
    whole = [
        ImageDataModule(source="folder", path=str(tmp_path / "folder"), labels=False, image_size=8),
        ImageDataModule(source="digits", labels=False, image_size=8),
        ImageDataModule(source=Items([0, 1]), labels=False, image_size=8),
        ImageDataModule(source=Items([0, 1], targets=[0, 1]), labels=False, image_size=8),
        ImageDataModule(source="parquet", path=str(saved(tmp_path, "parquet", [0, 1])), labels=False, image_size=8),
    ]
    for module in whole:
        assert not module.has_labels
        assert module.splits.lines(1, 1)[1] == "labels        none: data.labels=false"
        assert set(module.labels("train").tolist()) == {-1}


def test_shards_say_which_labels_occur(tmp_path):
    pytest.importorskip("webdataset", reason="needs the extra webdataset")
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for i, label in enumerate((b"1700000000", b"20260101")):
            for name, content in ((f"{i}.png", encoded(i)), (f"{i}.cls", label)):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                shard.addfile(header, io.BytesIO(content))
    source = open_source(DataConfig(source="webdataset", path=str(tmp_path)), 3, "train")
    assert (source.labels.tolist(), source.classes) == ([1, 0], ["20260101", "1700000000"])
    assert json.dumps(source.label_note) == '".cls files"'
