"""The members of a tar file (POSIX.1-2001 pax and GNU) from its front: links are not followed, damage is passed over.

Python's tarfile takes a header whose checksum is wrong for the end of the file, so one flipped bit hides all that
follows. Here what cannot be read is a member of the kind damage, up to the next header whose checksum is right.
"""

import io
import re
import tarfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

BLOCK = 512
LARGEST = 2**30  # bytes of a member that is read
_ZEROS = bytes(BLOCK)
_LONGEST = 2**20  # bytes of a long name or a pax header
_LONGEST_END = 2**21  # bytes of the zeros at the end; more were never written, such as by a download that was cut off
_PIECE = 2**20  # bytes read at once, whatever size a header claims
_PAX, _GNU_NAME, _IGNORED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.GNUTYPE_LONGNAME, (b"K", b"g")
_SPARSE = b"GNU.sparse"
Kind = Literal["file", "folder", "link", "sparse file", "special file", "damage"]


class Member(NamedTuple):
    """A member of a tar file, or a part of it that is damaged."""

    name: str
    kind: Kind
    offset: int  # of its bytes, or of the damaged ones
    size: int


class TarReader:
    """The members of an open file, each once. tarfile.ReadError where it does not end as a tar file does."""

    def __init__(self, file: io.BufferedIOBase, seekable: bool) -> None:
        self.file, self.at = file, 0
        self.end = file.seek(0, 2) if seekable else None
        if seekable:
            file.seek(0)

    def __iter__(self) -> Iterator[Member]:
        extended: dict[bytes, bytes] = {}  # what a header says of the next one
        damaged, zeros = -1, -1  # where they begin; -1: the last block is none
        while len(block := self._take(BLOCK)) == BLOCK:
            start = self.at - BLOCK
            if block == _ZEROS:
                zeros = start if zeros < 0 else zeros
                continue
            zeros = -1
            try:
                header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                damaged = start if damaged < 0 else damaged
                continue
            if damaged >= 0:
                yield Member("", "damage", damaged, start - damaged)
                damaged, extended = -1, {}
            size = int(extended.get(b"size", header.size))
            if header.type in (*_PAX, _GNU_NAME, *_IGNORED):
                extended |= _extension(header.type, self.read(size, _LONGEST))
                self._pass_to(start + BLOCK + _padded(size))
                continue
            more = header.type == tarfile.GNUTYPE_SPARSE and block[482]
            while more:
                more = self.read(BLOCK)[504]
            held = size if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES else 0
            following = self.at + _padded(held)
            if held < 0 or (self.end is not None and following > self.end):
                raise self._cut_off()
            name = extended.get(_SPARSE + b".name", extended.get(b"path"))
            shown = header.name if name is None else name.decode("utf-8", "surrogateescape")
            yield Member(shown, _kind(header, extended), self.at, held)
            extended = {}
            self._pass_to(following)
        if block or zeros < 0:
            raise self._cut_off()
        if damaged >= 0 or self.at - zeros > _LONGEST_END:
            start = damaged if damaged >= 0 else zeros
            yield Member("", "damage", start, self.at - start)

    def read(self, size: int, largest: int = LARGEST) -> bytes:
        """The first bytes of the member that came last. tarfile.ReadError: it has fewer, or more than is sane."""
        if not 0 <= size <= largest:
            raise tarfile.ReadError(f"a member of it claims to have {size} bytes")
        content = self._take(size)
        if len(content) < size:
            raise self._cut_off()
        return content

    def _take(self, size: int) -> bytes:
        pieces, left = [], size
        while left and (piece := self.file.read(min(left, _PIECE))):
            pieces.append(piece)
            left -= len(piece)
        self.at += size - left
        return b"".join(pieces)

    def _pass_to(self, offset: int) -> None:
        if self.end is not None:
            self.at = self.file.seek(offset)
        while self.at < offset:
            if not self._take(min(offset - self.at, _PIECE)):
                raise self._cut_off()

    def _cut_off(self) -> tarfile.ReadError:
        return tarfile.ReadError(f"after {self.at} bytes it does not end as a tar file does")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _kind(header: tarfile.TarInfo, extended: dict[bytes, bytes]) -> Kind:
    if header.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(_SPARSE) for key in extended):
        return "sparse file"
    if header.isreg():
        return "file"
    return "folder" if header.isdir() else "link" if header.issym() or header.islnk() else "special file"


def _extension(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """What a long name or a pax header says of the next member; nothing where it is malformed."""
    if kind == _GNU_NAME:
        return {b"path": content.partition(b"\0")[0]}
    found, start = {}, 0
    while kind in _PAX and (record := re.compile(rb"(\d{1,9}) ([^=]+)=").match(content, start)):
        end = start + int(record[1])
        if end <= record.end() or end > len(content):
            break
        found[record[2]] = content[record.end() : end - 1]
        start = end
    if not re.fullmatch(rb"\d{1,18}", found.get(b"size", b"0")):
        del found[b"size"]
    return found
