"""What a data source is, with PIL and numpy only. Letters: n images, H W pixels, C channels."""

import importlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image, UnidentifiedImageError

from ssl_vit.config.checks import printable
from ssl_vit.config.schema import DataConfig
from ssl_vit.models.decode import pixels, require_sane

Split = Literal["train", "test"]
_T = TypeVar("_T")


class UnreadableImageError(ValueError):
    """An image that cannot be read: which, why, what to do, in one line; in the same process also why alone."""

    def __init__(self, text: str, reason: str = "") -> None:
        # A loader's worker hands an error over as the text of its traceback, which ends in the line wanted.
        super().__init__(text.rsplit("UnreadableImageError: ", 1)[-1].strip())
        self.reason = reason


class Source:
    """Images by number. A kind of source defines `open` and `count`, `open_image` and `name`.

    It holds file names or encoded bytes in one array: each worker would copy every Python object that it touches.
    """

    downloads = False  # Whether opening it may download, which one process of a machine does before the others.
    cacheable = True  # Whether its images may be kept decoded in memory.
    labels: Int64[np.ndarray, " n"]  # Class of each image; -1 where it has none.
    classes: list[str]  # Names of the classes, in the order of the labels; empty without labels.
    label_note = ""  # Where the labels come from; without classes why there are none.

    def __init__(
        self,
        data: DataConfig,
        channels: int,
        labels: Int64[np.ndarray, " n"],
        classes: list[str],
        label_note: str = "",
    ) -> None:
        self.channels, self.white_16bit = channels, data.white_16bit
        if not data.labels:
            labels, classes, label_note = np.full(len(labels), -1), [], "data.labels=false"
        self.labels, self.classes, self.label_note = labels, classes, label_note

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "Source | None":
        """The training or the test images of data; None where there is no test split. ValueError in one line."""
        raise NotImplementedError

    @classmethod
    def count(cls, data: DataConfig) -> int | None:
        """Number of training images, without decoding any; None where that takes opening them. Raises as open."""
        return None

    @classmethod
    def open_labels(cls, data: DataConfig, split: Split) -> "Source | None":
        """What `open` gives, or of it the labels alone; None where that would download. Raises as open."""
        return None if cls.downloads else cls.open(data, len(data.mean), split)

    @classmethod
    def needs_download(cls, data: DataConfig) -> bool:
        """Whether opening it would download, or try to: of a kind that downloads all but what it finds here."""
        return cls.downloads

    @classmethod
    def open_shards(cls, data: DataConfig, images: "Source | None") -> "Shards":
        """The training images as a stream. images: the same by number, where open has them. Raises as open."""
        raise ValueError(f"data.source={data.source} cannot be streamed")

    def __len__(self) -> int:
        return len(self.labels)

    def open_image(self, index: int) -> Image.Image:
        """The image, not yet decoded where the file format allows."""
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What a person finds the image by."""
        raise NotImplementedError

    def read(self, index: int) -> UInt8[np.ndarray, "H W C"]:
        """Decoded pixels, upright. Raises UnreadableImageError, which names the image and what is wrong with it."""
        return self.inspect(index, lambda image: pixels(image, self.channels, self.white_16bit))

    def size(self, index: int) -> tuple[int, int]:
        """(H, W) in pixels, or (W, H) of an image that lies on its side, without decoding. Raises as read does."""
        return self.inspect(index, lambda image: (image.height, image.width))

    def find_labels(self) -> None:
        """Make labels and classes complete, where opening the source has not."""

    def inspect(self, index: int, function: Callable[[Image.Image], _T]) -> _T:
        """function(opened image). Raises UnreadableImageError as read does."""

        def opened() -> _T:
            with self.open_image(index) as image:
                require_sane(image)
                return function(image)

        return self.guarded(index, opened)

    def guarded(self, index: int, function: Callable[[], _T]) -> _T:
        """function(), which reads an image. Raises UnreadableImageError as read does."""
        try:
            return function()
        except MemoryError:
            raise
        except Exception as error:  # damaged files raise anything: OSError, SyntaxError, struct.error, ValueError
            unknown, reason = isinstance(error, UnidentifiedImageError), one_line(error)
            wrong = "is no image that can be read" if unknown else f"cannot be used: {reason}"
            line = f"{printable(self.name(index))} {wrong}: delete or replace it"
            raise UnreadableImageError(line, "no known image format" if unknown else reason) from error


class Sample(NamedTuple):
    """An image of a stream, not yet decoded; label -1: none; name: what a person finds it by."""

    encoded: bytes
    label: int
    name: str
    problem: str = ""  # why it cannot be read


class Shards:
    """Images in shards that are read from the front."""

    names: list[str]
    counts: Int64[np.ndarray, " shards"] | None  # Images of each; None where nobody has counted them.

    def read(self, shard: int) -> Iterator[Sample]:
        """The images of one shard. UnreadableImageError where it cannot be read to its end."""
        raise NotImplementedError


def one_line(error: BaseException) -> str:
    """The text of an error in one line, or its class where it has none."""
    return printable(" ".join(str(error).split())) or type(error).__name__


def import_extra(extra: str, package: str) -> Any:
    """The package that an optional extra of ours installs. ImportError that names the extra where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        advice = f"uv sync --extra {extra}, or pip install 'ssl_vit[{extra}]'"
        raise ImportError(f"data.source={extra} needs {package.partition('.')[0]}: {advice}") from error
