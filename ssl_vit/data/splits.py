"""Which files below a path are for training and which for testing, by a name in their names; for files of images."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Split
from ssl_vit.data.sources.folder import TEST_NAMES


@dataclass(frozen=True)
class FileKind:
    """Files that hold many images each."""

    name: str
    """Of one of them, in a message."""
    ending: str
    labeled: Callable[[list[Path]], bool]
    """Whether some files have labels: of several test groups the first such one is taken."""


def split_files(data: DataConfig, kind: FileKind, split: Split) -> list[Path] | None:
    """The files of a split, by the names in their names; None without any for testing.

    Training: data.path itself, or its files whose name contains train; without any, all that are not test files. Test:
    files of data.test_path, or those of data.path whose name contains test, val or validation.

    Raises:
        ValueError: no such path, or no files of this kind for training there.
    """
    if split == "test":
        return _test_files(data, kind)
    groups = _by_split("data.path", data.path, kind)
    if Path(data.path).is_file():
        return groups[""]
    others = [file.resolve() for file in (_test_files(data, kind) if data.test_path else None) or []]
    chosen = [file for file in groups.get("train") or groups.get("", []) if file.resolve() not in others]
    if not chosen:
        names = ", ".join(file.name for group in groups.values() for file in group[:2])
        raise ValueError(f"data.path={data.path} holds no training files, only {names}: give those for training")
    return chosen


def _test_files(data: DataConfig, kind: FileKind) -> list[Path] | None:
    key, path = ("data.test_path", data.test_path) if data.test_path else ("data.path", data.path)
    groups = _by_split(key, path, kind)
    candidates = [groups[name] for name in TEST_NAMES if name in groups]
    if len(candidates) > 1:
        candidates.sort(key=lambda files: not kind.labeled(files))
    if data.test_path and not candidates:
        return [file for group in groups.values() for file in group]
    return candidates[0] if candidates else None


def _by_split(key: str, path: str, kind: FileKind) -> dict[str, list[Path]]:
    """Files of a path by the name in their name (or their own folder's): train, test, val, or nothing.

    A file by itself is what it was given for, whatever its name.

    Raises:
        ValueError: no such path, or no files of this kind there.
    """
    advice = f"give a {kind.name}, or a folder of them"
    if not path:
        raise ValueError(f"{key}= is empty: {advice}")
    root = Path(path)
    if not root.exists():
        raise ValueError(f"{key}={path} does not exist: {advice}")
    if root.is_file():
        return {"": [root]}
    groups: dict[str, list[Path]] = {}
    for file in sorted(root.rglob(f"*{kind.ending}")):
        folder = "" if file.parent == root else file.parent.name.lower()
        names = [name for name in ("train", *TEST_NAMES) if name in file.name.lower() or name == folder]
        groups.setdefault(names[0] if names else "", []).append(file)
    if not groups:
        seen = sum(1 for file in root.rglob("*") if file.is_file())
        raise ValueError(f"{key}={path} holds no {kind.name}s: {seen} files seen, none ends in {kind.ending}")
    return groups
