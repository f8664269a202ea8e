"""Which files below a path are for training and which for testing, by the same rule for every source.

A folder is of a split by its whole name, a file where no letter touches a split's name in its own: `data_val_01.tar` is
of val, `carnival.tar` of none.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ssl_vit.config.file_tree import files_below
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Source, Split

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation", "eval", "evaluation")


def split_of(name: str, is_file: bool = False) -> str:
    """train, or which of TEST_NAMES; "" where a name is of no split."""
    names = re.split(r"[\W\d_]+", name.lower()) if is_file else [name.lower()]
    found = next((split for split in (*TRAIN_NAMES, *TEST_NAMES) if split in names), "")
    return "train" if found in TRAIN_NAMES else found


def require_nothing_hidden(path: str, chosen: str, beside: Iterable[str]) -> None:
    """ValueError where a split to train on would hide images beside it."""
    names = list(dict.fromkeys(beside))
    if names:
        shown = ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
        alone = os.path.join(path, chosen) if os.path.isdir(path) else f"(an archive of {chosen})"
        raise ValueError(
            f"data.path={path}: {chosen} looks like its training split, but there are images beside it ({shown}): give "
            f"data.path={alone} to train on it alone, or data.test_path= to train on all of them"
        )


class FileSource(Source):
    """The images of files that hold many each. A kind is made of (data, channels, files), and defines what follows."""

    kind: str  # What one of the files is, in a message.
    ending: str

    @classmethod
    def labeled(cls, files: list[Path]) -> bool:
        """Whether some of the files have labels: of several test groups the first such one is taken."""
        raise NotImplementedError

    @classmethod
    def holds_images(cls, file: Path) -> bool:
        """Whether a file beside those of a training split is one of images."""
        return True

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "FileSource | None":
        files = cls.find(data, split)
        return cls(data, channels, files) if files else None  # pyright: ignore[reportArgumentType, reportCallIssue]

    @classmethod
    def find(cls, data: DataConfig, split: Split) -> list[Path] | None:
        """The files of a split; None without any for testing. ValueError where training has none, or would hide some.

        Training: data.path itself, or its files of the split train; without any, or with data.test_path, all that are
        not test files. Test: files of data.test_path, or those of data.path of a test split.
        """
        if split == "test":
            key, path = ("data.test_path", data.test_path) if data.test_path else ("data.path", data.path)
            groups = cls._by_split(key, path)
            tests = [groups[name] for name in TEST_NAMES if name in groups]
            if len(tests) > 1:
                tests.sort(key=lambda files: not cls.labeled(files))
            everything = [file for group in groups.values() for file in group] if data.test_path else None
            return tests[0] if tests else everything
        groups = cls._by_split("data.path", data.path)
        if Path(data.path).is_file():
            return groups[""]
        others = [file.resolve() for file in (cls.find(data, "test") if data.test_path else None) or []]
        train, beside = (
            [file for file in groups.get(name, []) if file.resolve() not in others] for name in ("train", "")
        )
        if train and not data.test_path:
            beside = [file for file in beside if cls.holds_images(file)]
            first = train[0].relative_to(data.path).parts[0]
            require_nothing_hidden(data.path, first, (str(file.relative_to(data.path)) for file in beside))
        chosen = sorted([*train, *beside])
        if not chosen:
            names = ", ".join(file.name for group in groups.values() for file in group[:2])
            raise ValueError(f"data.path={data.path} holds no training files, only {names}: give those for training")
        return chosen

    @classmethod
    def _by_split(cls, key: str, path: str) -> dict[str, list[Path]]:
        """Files by their split, by their folder's before their own name's; one by itself is what it was given for."""
        root = Path(path)
        if not path or not root.exists():
            missing = "does not exist" if path else "is empty"
            raise ValueError(f"{key}={path} {missing}: give a {cls.kind}, or a folder of them")
        if root.is_file():
            return {"": [root]}
        seen, groups = [Path(os.fsdecode(name)) for _, name in files_below(os.fsencode(root))], dict[str, list[Path]]()
        for file in seen:
            if file.suffix.lower() == cls.ending:
                splits = (*map(split_of, file.parts[:-1]), split_of(file.stem, is_file=True))
                groups.setdefault(next(filter(None, splits), ""), []).append(root / file)
        if not groups:
            raise ValueError(f"{key}={path} holds no {cls.kind}s: {len(seen)} files seen, none ends in {cls.ending}")
        return {split: sorted(files) for split, files in groups.items()}
