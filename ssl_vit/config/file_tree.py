"""The visible files below a folder. Hidden files and folders are not there at all."""

import os
from collections.abc import Iterable, Iterator

_HIDDEN = (b"__MACOSX", b"@eaDir")  # beside all that begin with a dot: macOS's archives, a Synology's thumbnails
File = tuple[bytes | None, bytes]  # first folder below a root, None where there is none, and path below the root


def is_hidden(name: bytes) -> bool:
    """Whether a file or folder of this name does not count."""
    return name[:1] == b"." or name in _HIDDEN


def files_below(root: bytes, without: Iterable[bytes] = ()) -> Iterator[File]:
    """Every visible file below root in the order of the names; each folder once, links last, those of `without` not."""
    seen = {identity(path) for path in without} - {identity(root)}
    stack, links = list[File]([(None, b"")]), list[File]()
    while stack or links:
        top, below = stack.pop() if stack else links.pop(0)
        folder, folders = os.path.join(root, below), []
        if (known := identity(folder)) in seen:
            continue
        seen.add(known)
        for entry in entries_of(folder):
            relative, kind = os.path.join(below, entry.name), kind_of(entry)
            if kind == "folder":
                (links if entry.is_symlink() else folders).append((top or entry.name, relative))
            elif kind == "file":
                yield top, relative
        stack += reversed(folders)


def entries_of(path: bytes) -> list[os.DirEntry[bytes]]:
    """What lies visibly in a folder, by name. ValueError where it cannot be opened."""
    return sorted(unsorted_entries(path), key=lambda entry: entry.name)


def unsorted_entries(path: bytes) -> Iterator[os.DirEntry[bytes]]:
    """The same as it comes, none of it kept."""
    try:
        with os.scandir(path) as entries:
            yield from (entry for entry in entries if not is_hidden(entry.name))
    except OSError as error:
        line = f"{os.fsdecode(path)} cannot be opened: {error.strerror}: make it readable"
        raise ValueError(line) from error


def kind_of(entry: os.DirEntry[bytes]) -> str:
    """folder, file, or other: a pipe, a device, a link that leads nowhere."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:  # a link that leads to itself
        return "other"


def identity(path: bytes) -> tuple[int, int]:
    """What two paths of one file or folder have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
