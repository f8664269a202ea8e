"""Files that others may have written: regular ones alone, of a sane size, their metadata as JSON."""

import json
import stat
from pathlib import Path
from typing import Any

LARGEST = 1_000_000  # bytes of JSON; ours has some thousand
DEEPEST = 20  # mappings and lists inside one another; ours have 4


def require_regular(path: Path, key: str = "") -> Path:
    """The path. ValueError unless it is a regular file: to open a FIFO or to read a device may never end.

    key: of the setting that names it. FileNotFoundError: there is nothing.
    """
    where = f"{key}={path}" if key else str(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileNotFoundError(f"{where} cannot be opened: {reason}") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{where} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")
    return path


def read_text(path: Path, largest: int) -> str:
    """The UTF-8 text of a file. ValueError, OSError: it is no regular one, too large, or no text."""
    size = require_regular(path).stat().st_size
    if size > largest:
        raise ValueError(f"{path} has {size:,} bytes, {largest:,} are read at most")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def json_object(text: str, where: Any) -> dict[str, Any]:
    """The object that a JSON text is, its keys given once. ValueError names `where` it is from."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key is given twice")
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}")
        _require_shallow(found)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON object: {error}") from None
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. ValueError, OSError as of read_text and json_object."""
    return json_object(read_text(path, LARGEST), path)


def _require_shallow(value: Any, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _require_shallow(item, depth + 1)
