"""Which files below a path are for training and which for testing, by a name in their names; for files of images."""

from pathlib import Path

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.sources.base import Source, Split
from ssl_vit.data.sources.folder import TEST_NAMES


class FileSource(Source):
    """The images of files that hold many each. A kind is made of (data, channels, files), and defines what follows."""

    kind: str  # What one of the files is, in a message.
    ending: str

    @classmethod
    def labeled(cls, files: list[Path]) -> bool:
        """Whether some of the files have labels: of several test groups the first such one is taken."""
        raise NotImplementedError

    @classmethod
    def open(cls, data: DataConfig, channels: int, split: Split) -> "FileSource | None":
        files = cls.find(data, split)
        return cls(data, channels, files) if files else None  # pyright: ignore[reportArgumentType, reportCallIssue]

    @classmethod
    def find(cls, data: DataConfig, split: Split) -> list[Path] | None:
        """The files of a split; None without any for testing. ValueError where training has none.

        Training: data.path itself, or its files whose name contains train; without any, all that are not test files.
        Test: files of data.test_path, or those of data.path whose name contains test, val or validation.
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
        chosen = [file for file in groups.get("train") or groups.get("", []) if file.resolve() not in others]
        if not chosen:
            names = ", ".join(file.name for group in groups.values() for file in group[:2])
            raise ValueError(f"data.path={data.path} holds no training files, only {names}: give those for training")
        return chosen

    @classmethod
    def _by_split(cls, key: str, path: str) -> dict[str, list[Path]]:
        """Files by the name in their name or folder's: train, test, ...; a file by itself is what it was given for."""
        root = Path(path)
        if not path or not root.exists():
            missing = "does not exist" if path else "is empty"
            raise ValueError(f"{key}={path} {missing}: give a {cls.kind}, or a folder of them")
        if root.is_file():
            return {"": [root]}
        groups: dict[str, list[Path]] = {}
        for file in sorted(root.rglob(f"*{cls.ending}")):
            folder = "" if file.parent == root else file.parent.name.lower()
            names = (name for name in ("train", *TEST_NAMES) if name in file.name.lower() or name == folder)
            groups.setdefault(next(names, ""), []).append(file)
        if not groups:
            seen = sum(1 for file in root.rglob("*") if file.is_file())
            raise ValueError(f"{key}={path} holds no {cls.kind}s: {seen} files seen, none ends in {cls.ending}")
        return groups
