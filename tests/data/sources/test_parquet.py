import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources import count, open_source, parquet
from ssl_vit.data.sources.base import UnreadableImageError

pa = pytest.importorskip("pyarrow", reason="needs the extra parquet")
from pyarrow import parquet as pq  # noqa: E402


def encoded(seed: int, height: int = 4, width: int = 6) -> bytes:
    stored = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stored, "PNG")
    return stored.getvalue()


def decoded(seed: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded(seed))))


def store(path, images, labels=None, metadata=None, **columns):
    data = {"image": images} | ({} if labels is None else {"label": labels}) | columns
    table = pa.table(data).replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3)
    return path


def opened(path, split="train", **options):
    return open_source(DataConfig(source="parquet", path=str(path), **options), 3, split)


@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_rows_come_back_in_order(tmp_path, kind):
    images = [encoded(i) for i in range(7)]
    column = {
        "binary": lambda: pa.array(images),
        "large_binary": lambda: pa.array(images, pa.large_binary()),
        "struct": lambda: pa.array([{"bytes": image, "path": f"{i}.png"} for i, image in enumerate(images)]),
    }[kind]()
    file = store(tmp_path / "a.parquet", column, pa.array([2, 0, 1, None, 0, 1, 2], pa.int32()))
    source = opened(file)
    assert len(source) == count(DataConfig(source="parquet", path=str(file))) == 7
    assert source.labels.tolist() == [2, 0, 1, -1, 0, 1, 2]
    assert source.classes == ["0", "1", "2"]
    for i in range(7):
        assert np.array_equal(source.read(i), decoded(i))
        assert source.size(i) == (4, 6)


def test_a_source_holds_its_bytes_in_arrays(tmp_path):
    source = opened(store(tmp_path / "a.parquet", [encoded(i) for i in range(7)]))
    arrays = {name for name, value in vars(source).items() if isinstance(value, np.ndarray)}
    assert arrays == {"values", "offsets", "first_rows", "labels"}
    assert source.values.nbytes == sum(len(encoded(i)) for i in range(7))


def test_much_data_is_mapped_from_a_file(tmp_path, monkeypatch):
    file = store(tmp_path / "a.parquet", [encoded(i) for i in range(5)])
    monkeypatch.setattr(parquet, "MEMORY_LIMIT", 100)
    source = opened(file)
    assert isinstance(source.values, np.memmap)
    assert np.array_equal(source.read(4), decoded(4))


def test_without_labels_every_label_is_none(tmp_path):
    source = opened(store(tmp_path / "a.parquet", [encoded(0)]))
    assert source.labels.tolist() == [-1]
    assert source.classes == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"classes": json.dumps(["cat", "dog"])},
        {
            "huggingface": json.dumps(
                {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
            )
        },
    ],
)
def test_class_names_come_from_the_metadata(tmp_path, metadata):
    source = opened(store(tmp_path / "a.parquet", [encoded(0), encoded(1)], [1, 0], metadata))
    assert source.classes == ["cat", "dog"]


@pytest.mark.parametrize("names", ["train-{}.parquet", "train/{}.parquet", "set-train-{}.parquet", "{}.parquet"])
@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_files_are_split_by_name(tmp_path, names, name):
    for i in range(2):
        store(tmp_path / names.format(i), [encoded(i)], [i])
    store(tmp_path / f"set-{name}.parquet", [encoded(7)], [0])
    train, test = opened(tmp_path), opened(tmp_path, "test")
    assert [np.array_equal(train.read(i), decoded(i)) for i in range(len(train))] == [True, True]
    assert train.name(1) == f"{tmp_path / names.format(1)} row 0"
    assert len(test) == 1
    assert np.array_equal(test.read(0), decoded(7))


def test_of_several_test_splits_the_labeled_one_is_taken(tmp_path):
    store(tmp_path / "train.parquet", [encoded(0)], [0])
    store(tmp_path / "test.parquet", [encoded(1)], [-1])
    store(tmp_path / "validation.parquet", [encoded(2)], [0])
    assert np.array_equal(opened(tmp_path, "test").read(0), decoded(2))


def test_a_file_given_by_name_is_what_it_was_given_for(tmp_path):
    file = store(tmp_path / "test.parquet", [encoded(0)])
    other = store(tmp_path / "train.parquet", [encoded(1)])
    assert len(opened(file)) == 1
    assert opened(file, "test") is None
    assert np.array_equal(opened(file, "test", test_path=str(other)).read(0), decoded(1))


def test_files_to_test_on_are_not_trained_on(tmp_path):
    files = [store(tmp_path / f"{i}.parquet", [encoded(i)]) for i in range(3)]
    train = opened(tmp_path, test_path=str(files[1]))
    assert [train.name(i) for i in range(2)] == [f"{files[0]} row 0", f"{files[2]} row 0"]
    assert len(train) == 2


def test_a_damaged_row_is_named(tmp_path):
    files = [
        store(tmp_path / "a.parquet", [encoded(0)] * 2),
        store(tmp_path / "b.parquet", [encoded(0), b"no image", encoded(0)[:60]]),
    ]
    source = opened(tmp_path)
    with pytest.raises(
        UnreadableImageError, match=f"^{files[1]} row 1 is no image that can be read: delete or replace it$"
    ):
        source.read(3)
    with pytest.raises(UnreadableImageError, match=f"^{files[1]} row 2 cannot be used: .*: delete or replace it$"):
        source.read(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda file: store(file, [encoded(0)], other=[1]).rename(file.with_name("x")),
            "does not exist: give a parq",
        ),
        (
            lambda file: pq.write_table(pa.table({"img": [b"x"], "label": [0]}), file),
            "has no column image, only img, label:",
        ),
        (lambda file: store(file, ["a.png"]), "has a column image of type string: it must hold encoded bytes (binary)"),
        (lambda file: file.write_bytes(b"no parquet"), "cannot be read as parquet: Parquet magic bytes not found"),
    ],
    ids=["missing", "no column", "paths", "no parquet"],
)
def test_a_wrong_file_is_said(tmp_path, make, message):
    file = tmp_path / "a.parquet"
    make(file)
    with pytest.raises(ValueError, match=r"^data.path=") as caught:
        opened(file)
    assert str(caught.value).startswith(f"data.path={file} {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [[encoded(0), None, encoded(1)], [{"bytes": encoded(0), "path": ""}, {"bytes": None, "path": "a.png"}]],
    ids=["null", "null in struct"],
)
def test_a_row_without_bytes_is_an_image_that_cannot_be_read(tmp_path, images):
    file = store(tmp_path / "a.parquet", images)
    assert opened(file).read(0).shape == (4, 6, 3)
    with pytest.raises(
        UnreadableImageError, match=f"^{file} row 1 cannot be used: it holds no image bytes, embed them: "
    ):
        opened(file).read(1)
    with pytest.raises(ValueError, match=f"^data.path={file} row 1 holds no image bytes: embed them, or drop the ro"):
        opened(file, on_error="raise")


def test_damage_inside_a_file_is_said(tmp_path):
    file = store(tmp_path / "a.parquet", [encoded(i, 64, 64) for i in range(9)])
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^data.path=.*a\.parquet cannot be read to its end: .*: copy it again$"):
        opened(file)


def test_a_file_without_rows_is_said(tmp_path):
    file = store(tmp_path / "a.parquet", pa.array([], pa.binary()))
    with pytest.raises(ValueError, match=f"^data.path={file} holds no images: 1 parquet files without a row$"):
        opened(file)


def test_a_folder_without_parquet_or_without_training_files_is_said(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"holds no parquet files: 1 files seen, none ends in .parquet"):
        opened(tmp_path)
    store(tmp_path / "val.parquet", [encoded(0)])
    with pytest.raises(ValueError, match=r"holds no training files, only val.parquet: give those for training"):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"^data.path= is empty: give a parquet file, or a folder of them$"):
        opened("")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    file = store(tmp_path / "a.parquet", [encoded(0)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"uv sync --extra parquet, or pip install 'ssl_vit\[parquet\]'"):
        opened(file)


def test_real_sets_are_read(real_data):
    train, test = opened(real_data / "imagenette128"), opened(real_data / "imagenette128", "test")
    assert (len(train), len(test)) == (9469, 3925)
    assert train.classes == test.classes
    assert train.classes[0] == "tench"
    assert train.read(9468).shape == (128, 128, 3)
    assert count(DataConfig(source="parquet", path=str(real_data / "cifar10"))) == 50_000
