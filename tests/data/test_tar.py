"""Reading tar files: as tarfile does where they are whole, and past what is damaged; never past their end unseen."""

import io
import random
import tarfile
from contextlib import suppress

import pytest

from ssl_vit.data.tar import TarReader

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
FILES = {f"{'long/' * (15 if i % 3 else 0)}{i}é.png": bytes([i]) * (i * 300) for i in range(8)}
LONG = FILES | {f"{'longer/' * 40}{i}.png": bytes([i]) * 700 for i in range(8)}


class Front(io.RawIOBase):
    """Bytes that come in pieces, as over a network."""

    def __init__(self, content: bytes) -> None:
        self.content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.content.readinto(memoryview(buffer)[:700])


def written(files: dict[str, bytes], form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as shard:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            shard.addfile(header, io.BytesIO(content))
    return file.getvalue()


def read(content: bytes) -> list[tuple]:
    """The members, the same by seeking and front to back; their bytes instead of their place."""
    seeking = [(*member, content[member.offset :][: member.size]) for member in TarReader(io.BytesIO(content), True)]
    reader = TarReader(io.BufferedReader(Front(content)), False)
    for member, sought in zip(reader, seeking, strict=True):
        assert sought[:4] == member
        assert member.kind == "damage" or reader.read(member.size) == sought[4]
    return [(name, kind, found) for name, kind, _, _, found in seeking]


def headers(content: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(content)) as shard:
        return [member.offset for member in shard]


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_those_that_were_written(form):
    files = FILES if form == tarfile.USTAR_FORMAT else LONG
    assert read(written(files, form)) == [(name, "file", content) for name, content in files.items()]


@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_bit_loses_at_most_one_member_and_is_seen(form):
    """tarfile takes a header whose checksum is wrong for the end of the file, without a word."""
    files = FILES if form == tarfile.USTAR_FORMAT else LONG
    whole, draw = written(files, form), random.Random(0)
    for start in headers(whole):
        for _ in range(6):
            content = bytearray(whole)
            content[start + draw.randrange(512)] ^= 1 << draw.randrange(8)
            members = read(bytes(content))
            missing = files.keys() - {name for name, _, _ in members}
            damaged = [kind for _, kind, _ in members if kind == "damage"]
            assert len(missing) == len(damaged) <= 1  # none: the bit fills up the checksum


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rest", [0, 1, 511])
def test_a_file_that_is_cut_off_anywhere_does_not_pass_for_a_whole_one(form, rest):
    """At the boundary of two blocks tarfile takes it for whole."""
    whole, complete = written(FILES, form), []
    for cut in range(0, len(whole), 512):
        with suppress(tarfile.ReadError):
            complete.append(len(read(whole[: cut + rest])))
    assert set(complete) == (set() if rest else {len(FILES)})


@pytest.mark.parametrize("rest", [b"x", b"x" * 512, b"x" * 5000])
def test_garbage_after_the_end_is_seen(rest):
    with pytest.raises(tarfile.ReadError, match=r"^after \d+ bytes it does not end as a tar file does$"):
        read(written(FILES, tarfile.USTAR_FORMAT) + rest)
    kinds = [kind for _, kind, _ in read(written(FILES, tarfile.USTAR_FORMAT) + b"x" * 1024 + bytes(1024))]
    assert kinds == ["file"] * len(FILES) + ["damage"]


def test_files_one_after_the_other_are_read_to_the_last_end():
    both = written({"a": b"1"}, tarfile.USTAR_FORMAT) + written({"b": b"2"}, tarfile.PAX_FORMAT)
    assert read(both) == [("a", "file", b"1"), ("b", "file", b"2")]


def test_zeros_in_place_of_what_was_not_downloaded_are_seen():
    """Some programs make a file as long as it will be and then fill it."""
    content = written(FILES, tarfile.USTAR_FORMAT) + bytes(3 * 2**20)
    assert [kind for _, kind, _ in read(content)][-1] == "damage"


def member(kind: bytes, size: int, content: bytes = b"", name: str = "x.png") -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, size
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def test_links_devices_and_sparse_files_are_named_as_what_they_are():
    pax = b"22 GNU.sparse.major=1\n"
    content = b"".join(
        [
            member(tarfile.SYMTYPE, 0), member(tarfile.LNKTYPE, 0), member(tarfile.CHRTYPE, 0),
            member(tarfile.FIFOTYPE, 0), member(tarfile.DIRTYPE, 0), member(tarfile.GNUTYPE_SPARSE, 3, b"abc"),
            member(tarfile.XHDTYPE, len(pax), pax), member(tarfile.REGTYPE, 3, b"abc"), bytes(1024),
        ]
    )  # fmt: skip
    kinds = ["link", "link", "special file", "special file", "folder", "sparse file", "sparse file"]
    assert [kind for _, kind, _ in read(content)] == kinds


ABSURD = {
    "a size of 2^60 bytes": member(tarfile.REGTYPE, 2**60) + bytes(1024),
    "a negative size": member(tarfile.REGTYPE, -1024) + bytes(1024),
    "a name of 2^40 bytes": member(tarfile.GNUTYPE_LONGNAME, 2**40) + bytes(1024),
    "a pax header of 2^60 bytes": member(tarfile.XHDTYPE, 2**60) + bytes(1024),
    "a pax header of negative size": member(tarfile.XHDTYPE, -1024) + bytes(1024),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_sizes_allocate_nothing(name):
    """tarfile goes in circles on some, and asks for all the memory on others."""
    for seekable in (True, False):
        file = io.BytesIO(ABSURD[name]) if seekable else io.BufferedReader(Front(ABSURD[name]))
        with pytest.raises(tarfile.ReadError):
            list(TarReader(file, seekable))


PAX = [
    b"0 path=a\n",
    b"5 path=abc\n",
    b"999 path=a\n",
    b"-4 path=a\n",
    b"x",
    b"\0" * 20,
    b"12 size=abc\n",
    b"99" * 9999,
]


@pytest.mark.parametrize("content", PAX)
def test_pax_headers_that_are_malformed_say_nothing(content):
    whole = member(tarfile.XHDTYPE, len(content), content) + member(tarfile.REGTYPE, 1, b"a") + bytes(1024)
    assert [kind for _, kind, _ in read(whole)] == ["file"]


def test_thousands_of_headers_for_one_member_are_read():
    """tarfile calls itself once for each."""
    content = member(tarfile.GNUTYPE_LONGNAME, 5, b"a.png") * 3000 + member(tarfile.REGTYPE, 1, b"a") + bytes(1024)
    assert read(content) == [("a.png", "file", b"a")]
