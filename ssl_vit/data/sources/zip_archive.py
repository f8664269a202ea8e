"""Images in zip archives, read where they lie: nothing is unpacked. Letters: n images.

An archive counts as the folder that it would unpack to, without folders around all folders of its images; archives in
a folder count as unpacked into it, those of a split's name (`train.zip`) into a folder of that name.
"""

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from ssl_vit.config.auto_source import ARRAYS, IMAGES
from ssl_vit.config.file_tree import File, files_below, is_hidden
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import one_line
from ssl_vit.data.sources.folder import Folder, FolderTree
from ssl_vit.data.splits import split_of
from ssl_vit.data.tar import LARGEST
from ssl_vit.data.urls import open_file
from ssl_vit.models.decode import open_encoded

_HEADER, _ENCRYPTED = 30, 1  # bytes before a member's name; bit of its flags
DAMAGED = "a part of the archive is damaged, copy it again"


class ZipMember(NamedTuple):
    """A file in an archive."""

    parts: tuple[bytes, ...]  # of its path in the tree, names of folders and its own
    relative: bytes  # its path below the tree's root, the archive's name in it where there may be several
    archive: bytes
    place: tuple[int, ...]  # header's offset, packed and unpacked bytes, compression, checksum


class ZipTree:
    """What one archive holds, or all of a folder, as a tree of files; see FolderTree."""

    def __init__(self, path: str, root: bytes, members: list[ZipMember]) -> None:
        self.path, self.root, self.members = path, root, members
        self.endings = FolderTree.endings

    @classmethod
    def at(cls, key: str, path: str) -> "ZipTree":
        """The archives at a path. ValueError: there are none, one cannot be read, or its images are encrypted."""
        root = os.fsencode(path)
        if not os.path.exists(path):
            missing = "does not exist" if path else "is empty"
            raise ValueError(f"{key}={path} {missing}: give a zip archive, or a folder of them")
        names = [b""]
        if os.path.isdir(path):
            names = [name for _, name in files_below(root) if name.lower().endswith(b".zip")]
        if not names:
            raise ValueError(f"{key}={path} holds no zip archives, whose names end in .zip")
        splits = dict[str, dict[bytes, ZipMember]]()
        for name in names:
            where = PurePath(os.fsdecode(name))
            found = (*map(split_of, where.parts[:-1]), split_of(where.stem, is_file=True))
            group = splits.setdefault(next(filter(None, found), ""), {})
            group |= ((member.relative, member) for member in _members(key, root, name))  # of two, the one written last
        members = [member for split, group in splits.items() for member in _moved(split, [*group.values()])]
        return cls(path, root, sorted(members, key=_order))

    def folders(self) -> list[bytes]:
        """Names of the folders right in it."""
        return sorted({member.parts[0] for member in self.members if len(member.parts) > 1})

    def below(self, name: bytes) -> "ZipTree":
        """One of its folders."""
        found = [member for member in self.members if len(member.parts) > 1 and member.parts[0] == name]
        inner = [member._replace(parts=member.parts[1:]) for member in found]
        return ZipTree(os.path.join(self.path, os.fsdecode(name)), self.root, inner)

    def files(self, without: Sequence["ZipTree"] = ()) -> Iterable[File]:
        """The files in it, in the order of the folder that they would make; not those of other trees."""
        whole = {_identity(member) for member in self.members}
        others = [{_identity(member) for member in tree.members} for tree in without]
        excluded = set().union(*(other for other in others if other < whole))
        for member in self.members:
            if _identity(member) not in excluded:
                yield member.parts[0] if len(member.parts) > 1 else None, member.relative


class ZipImages(Folder):
    """Image files in archives, by their places."""

    tree_at = ZipTree.at

    def __init__(self, data: DataConfig, channels: int, tree: ZipTree, files: Iterable[File], least: int) -> None:
        super().__init__(data, channels, tree, files, least)
        known = {member.relative: member for member in tree.members}
        images = [known[self.relative(index)] for index in range(len(self))]
        self.archives = sorted({member.archive for member in images})
        numbers = {archive: number for number, archive in enumerate(self.archives)}
        rows = [(numbers[member.archive], *member.place) for member in images]
        self.places = np.array(rows, dtype=np.int64).reshape(-1, 6)

    def open_image(self, index: int) -> Image.Image:
        number, offset, packed_size, size, method, checksum = self.places[index].tolist()
        if max(packed_size, size) > LARGEST:
            raise ValueError(f"its {max(packed_size, size):,} bytes are more than {LARGEST:,}")
        with open_file(os.fsdecode(self.archives[number])) as file:
            file.seek(offset)
            header = file.read(_HEADER)
            if len(header) < _HEADER or header[:4] != b"PK\3\4":
                raise ValueError(DAMAGED)
            file.seek(sum(struct.unpack("<HH", header[26:])), os.SEEK_CUR)
            encoded = file.read(packed_size)
        if method == ZIP_DEFLATED:
            encoded = zlib.decompressobj(-zlib.MAX_WBITS).decompress(encoded, size + 1)  # however much there is
        elif method != ZIP_STORED:
            raise ValueError(f"its compression, method {method} of zip, is not read: pack it by deflate or not at all")
        if len(encoded) != size or zlib.crc32(encoded) != checksum:
            raise ValueError(DAMAGED)
        return open_encoded(encoded)


def _members(key: str, root: bytes, name: bytes) -> Iterator[ZipMember]:
    """The visible files of an archive. ValueError as of ZipTree.at."""
    archive = os.path.realpath(os.path.join(root, name) if name else root)
    try:
        with open_file(os.fsdecode(archive)) as file, ZipFile(file) as opened:
            members = opened.infolist()
    except Exception as error:  # what zipfile raises of damaged files has nothing in common
        line = f"{key}={os.fsdecode(archive)} cannot be read as a zip archive: {one_line(error)}"
        raise ValueError(f"{line}: copy it again") from error
    for member in members:
        parts = [
            part for part in member.filename.encode("utf-8", "surrogateescape").split(b"/") if part not in (b"", b".")
        ]
        if member.is_dir() or not parts or any(map(is_hidden, parts)):
            continue
        if member.flag_bits & _ENCRYPTED and _is_image(parts[-1], (*IMAGES, *ARRAYS)):
            line = f"{key}={os.fsdecode(archive)} holds encrypted images, such as {member.filename}"
            raise ValueError(f"{line}: pack them without a password")
        yield ZipMember(tuple(parts), os.path.join(name, *parts), archive, _place(member))


def _place(member: ZipInfo) -> tuple[int, ...]:
    return member.header_offset, member.compress_size, member.file_size, member.compress_type, member.CRC


def _moved(split: str, members: list[ZipMember]) -> Iterator[ZipMember]:
    """Members out of the folders around all images, and into one of a split."""
    images = [member.parts[:-1] for member in members if _is_image(member.parts[-1], IMAGES)]
    images = images or [member.parts[:-1] for member in members if _is_image(member.parts[-1], ARRAYS)]
    around = images[0] if images else ()
    for folders in images:
        while folders[: len(around)] != around:
            around = around[:-1]
    if around in images and not split_of(os.fsdecode(around[-1] if around else b"")):
        around = around[:-1]  # it may be a class
    for member in members:
        inner = member.parts[len(around) * (member.parts[: len(around)] == around) :]
        yield member._replace(parts=((split.encode(),) if split else ()) + inner)


def _is_image(name: bytes, endings: Iterable[str]) -> bool:
    return name.lower().endswith(tuple(f".{ending}".encode() for ending in endings))


def _order(member: ZipMember) -> list[tuple[bool, bytes]]:
    """As files_below has a folder: its files, then its folders."""
    last = len(member.parts) - 1
    return [(place < last, part) for place, part in enumerate(member.parts)]


def _identity(member: ZipMember) -> tuple[bytes, int]:
    return member.archive, member.place[0]
