"""data.source=auto: what lies at data.path says which source reads it; where that is not plain, the user does.

Files are told apart by their endings, a single file without a known one by its first bytes. Beside files of a kind,
texts, tables (.csv, .json) and the like do not count, nor arrays, nor a parquet file called metadata, labels or
annotations beside images: it is about them. Two kinds in one folder are refused.
"""

import os
from collections import Counter, deque

from ssl_vit.config.file_tree import identity, kind_of, unsorted_entries

AUTO = "auto"
PIPE = "pipe:"  # begins a URL of WebDataset that is a shell command
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "dcm", "dicom")
ARRAYS = ("npy", "npz")  # images where a folder has no others: beside those they may be masks or features
KINDS = {
    "folder": "image files",
    "parquet": "parquet files",
    "webdataset": "tar shards",
    "zip": "zip archives",
    "hf": "Arrow files of Hugging Face",
}
"""Source -> what it reads, of those that data.path can be found to be."""
_BY_ENDING = dict.fromkeys((*IMAGES, *ARRAYS), "folder") | {
    "parquet": "parquet",
    "tar": "webdataset",
    "tgz": "webdataset",
    "zip": "zip",
    "arrow": "hf",
}
_ABOUT_IMAGES = (b"metadata.parquet", b"labels.parquet", b"annotations.parquet")  # the first is Hugging Face's name
_OWN = b"members.npy"  # of make_shards, beside its shards
_SAVED = ("dataset_dict.json", "state.json", "dataset_info.json")  # one of them in a folder that `datasets` saved
_ENOUGH, _MOST = 10_000, 1_000_000  # files after which a folder's kind is known, and where none was known is not
_MAGIC = {  # (place, bytes) at the beginning of a file
    (0, b"PAR1"): "parquet",
    (0, b"PK\3\4"): "zip",
    (257, b"ustar"): "webdataset",
    (128, b"DICM"): "folder",
    (0, b"\xff\xd8\xff"): "folder",
    (0, b"\x89PNG"): "folder",
    (0, b"GIF8"): "folder",
    (8, b"WEBP"): "folder",
    (0, b"II*\0"): "folder",
    (0, b"MM\0*"): "folder",
    (0, b"\x93NUMPY"): "folder",
}
_LEGAL = "a folder of images, of parquet files, of tar shards or of zip archives, or one such file"


def is_remote(path: str) -> bool:
    """Whether a path of tar shards is a URL that is no file of this machine."""
    return path.startswith(PIPE) or ("://" in path and not path.startswith("file://"))


def source_at(key: str, path: str) -> str:
    """The data.source that reads what a path names, without opening a URL.

    FileNotFoundError where there is nothing; ValueError, which names what was seen, where it is not plain.
    """
    if os.path.isdir(path):
        return _source_in(key, path)
    if os.path.isfile(path):
        return source_of_file(key, path)
    if os.path.exists(path):
        raise ValueError(f"{key}={path} is a pipe or a device: give {_LEGAL}")
    if not (is_remote(path) or "{" in path or path.startswith("file://")):
        names = "a name on the hub takes data.source=hf, CLASS:ROOT data.source=torchvision"
        raise FileNotFoundError(f"{key}={path} does not exist: give {_LEGAL}; {names}")
    if not path.startswith(PIPE) and _by_ending(path.partition("?")[0]) not in ("", "webdataset"):
        raise ValueError(f"{key}={path}: tar shards alone are read by URL or braces: give a file or folder of yours")
    return "webdataset"


def source_of_file(key: str, path: str) -> str:
    """The data.source that reads a file, by its ending, else its first bytes. ValueError where none does."""
    source = _by_ending(path)
    if not source:
        with open(path, "rb") as file:
            head = file.read(512)
        found = (source for (place, magic), source in _MAGIC.items() if head[place:].startswith(magic))
        source = next(found, "")
    if not source or source == "hf":
        advice = "give the folder that it lies in" if source else f"give {_LEGAL}"
        raise ValueError(f"{key}={path} is no file that images are read from: {advice}")
    return source


def _by_ending(path: str) -> str:
    stem, ending = os.path.splitext(path.lower())
    compressed = stem.endswith(".tar") and ending in (".gz", ".bz2", ".xz")
    return "webdataset" if compressed else _BY_ENDING.get(ending[1:], "")


def _source_in(key: str, path: str) -> str:
    """By the names in a folder, level by level, each folder of them whole, until enough files were seen."""
    root = os.fsencode(path)
    counts, others, firsts, seen = Counter[str](), Counter[str](), dict[str, bytes](), set[tuple[int, int]]()
    folders = deque([root])
    while folders and counts.total() + others.total() < (_ENOUGH if counts else _MOST):
        folder, below = folders.popleft(), list[bytes]()
        if (known := identity(folder)) in seen:
            continue
        seen.add(known)
        for entry in unsorted_entries(folder):
            kind = kind_of(entry)
            if kind == "folder":
                below.append(entry.path)
            elif kind == "file":
                ending = os.fsdecode(os.path.splitext(entry.name.lower())[1][1:])
                source = _BY_ENDING.get(ending)
                if ending == "tgz" or source is None:
                    others[f".{ending}" if ending else "no ending"] += 1
                    continue
                source = "arrays" if ending in ARRAYS else source
                source = "tables" if entry.name.lower() in _ABOUT_IMAGES else source
                if entry.name != _OWN:
                    counts[source] += 1
                    firsts[source] = min(entry.path, firsts.get(source, entry.path))
        folders += sorted(below)
    if counts["tables"] and not counts["folder"]:  # then they are the data
        counts["parquet"] += counts["tables"]
        firsts["parquet"] = min(firsts["tables"], firsts.get("parquet", firsts["tables"]))
    found = [source for source in KINDS if counts[source]] or ["folder"] * bool(counts["arrays"])
    if len(found) > 1:
        several = "+" * bool(folders)
        shown = [f"{counts[kind]:,}{several} {KINDS[kind]} ({os.fsdecode(firsts[kind])})" for kind in found]
        advice = ", ".join(f"data.source={kind} for the {KINDS[kind]}" for kind in found)
        raise ValueError(f"{key}={path} holds {' and '.join(shown)}: give {advice}")
    if not found:
        common = ", ".join(f"{number:,} {ending}" for ending, number in others.most_common(3))
        line = f"{key}={path} holds no images: {others.total():,} files seen{f' ({common})' * bool(common)}"
        raise FileNotFoundError(f"{line}; give {_LEGAL}; images end in {', '.join(IMAGES)}")
    if found == ["hf"] and not any(os.path.exists(os.path.join(path, name)) for name in _SAVED):
        saved = os.path.dirname(os.fsdecode(firsts["hf"]))
        line = f"{key}={path} holds Arrow files, but is no folder that save_to_disk of Hugging Face's datasets wrote"
        raise ValueError(f"{line}: give such a one, perhaps {key}={saved}")
    return found[0]
