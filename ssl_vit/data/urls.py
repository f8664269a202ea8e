"""Files by URL, of the schemes listed here alone, each opened without a shell; and the braces that stand for many."""

import importlib.util
import io
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from string import ascii_letters
from typing import Any

from ssl_vit.config.auto_source import PIPE
from ssl_vit.config.checks import ConfigError

TRUSTED = "SSL_VIT_ALLOW_PIPE"  # environment variable that lets a URL be a shell command
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss"), "adlfs"),
    "hf": "huggingface_hub",
}
"""Scheme that fsspec opens -> the package that it needs."""
MOST_NAMES, _MOST_CHARACTERS = 1_000_000, 2**30  # that braces may stand for
_TIMEOUT = 60  # seconds without an answer, or without a byte
_BUSY, _WAITS = (429, 500, 502, 503, 504), (1, 4)  # answers after which one asks again, so many seconds later
_DEEPEST = 20  # braces within one another
_RANGE = re.compile(r"(?:(-?\d{1,18})\.\.(-?\d{1,18})|([a-zA-Z])\.\.([a-zA-Z]))(?:\.\.-?(\d{1,18}))?")
_ALPHABET = ascii_letters.swapcase()
_Names = tuple[int, Callable[[], Iterator[str]]]  # how many, and all of them


def expanded(key: str, path: str) -> list[str]:
    """The names that braces stand for, as in bash. ValueError, before any is made: more than MOST_NAMES, unbalanced."""
    depth = deepest = 0
    for mark in re.findall(r"\\.|[{}]", path, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        deepest = max(deepest, depth if depth >= 0 else _DEEPEST + 1)
    if depth or deepest > _DEEPEST:
        raise ConfigError(f"{key}={path[:200]} has braces without a partner, or over {_DEEPEST} within one another")
    try:
        count, names = _expansion(path)
        if count <= MOST_NAMES and count * len(path) <= _MOST_CHARACTERS:
            return [re.sub(r"\\(.)", r"\1", name, flags=re.DOTALL) if "\\" in name else name for name in names()]
    except RecursionError:  # hundreds of braces one after the other
        pass
    raise ConfigError(f"{key}={path[:200]} stands for too many files: braces may name {MOST_NAMES:,}")


def _expansion(pattern: str) -> _Names:
    depth, start, commas = 0, 0, list[int]()
    for mark in re.finditer(r"\\.|[{},]", pattern, re.DOTALL):
        if mark[0] == "{":
            start, depth = (start, depth + 1) if depth else (mark.end(), 1)
        elif mark[0] == "," and depth == 1:
            commas.append(mark.start())
        elif mark[0] == "}":
            depth -= 1
            if depth == 0:
                break
    else:
        return 1, lambda: iter((pattern,))
    head, inner = pattern[: start - 1], pattern[start : mark.start()]
    ends = [start - 1, *commas, mark.start()]
    options = [_expansion(pattern[first + 1 : end]) for first, end in pairwise(ends)]
    opening = closing = ""
    if found := _RANGE.fullmatch(inner):
        options = [_range(found)]
    elif not commas:  # braces that stand for themselves
        opening, closing = "{", "}"
    others, tails = _expansion(pattern[mark.end() :])
    return others * sum(number for number, _ in options), lambda: (
        f"{head}{opening}{name}{closing}{rest}" for _, names in options for name in names() for rest in tails()
    )


def _range(ends: re.Match[str]) -> _Names:
    first, last, first_letter, last_letter, step = ends.groups()
    by = int(step or 1) or 1
    start, end = (int(first), int(last)) if first else map(_ALPHABET.index, (first_letter, last_letter))
    numbers = range(start, end + 1, by) if start < end else range(start, end - 1, -by)
    if not first:
        return len(numbers), lambda: (_ALPHABET[number] for number in numbers)
    padded = any(re.match(r"-?0\d", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return len(numbers), lambda: (f"{number:0{width}}" for number in numbers)


def require_readable(key: str, url: str) -> None:
    """ConfigError: of another scheme, or a shell command that nobody allowed; ImportError: its package is missing."""
    scheme = _scheme(url)
    if scheme == PIPE and os.environ.get(TRUSTED) != "1":
        raise ConfigError(f"{key}={url} is a shell command: set {TRUSTED}=1 in the environment to run it")
    legal = ("", "file", "http", "https", *PACKAGES)
    if scheme not in (PIPE, *legal):
        raise ConfigError(f"{key}={url} is of a kind that is not opened: one of {', '.join(legal[1:])}, or a path")
    if scheme in PACKAGES and importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise ImportError(f"{key}={url} needs {PACKAGES[scheme]}: pip install {PACKAGES[scheme]}")


def open_url(url: str) -> io.BufferedReader:
    """A file, to be read from its front. Raises as require_readable does, and what a client raises."""
    require_readable("url", url)
    scheme = _scheme(url)
    if scheme == PIPE:
        return _command(url.removeprefix(PIPE))
    if scheme in ("http", "https"):
        return _download(url)
    if scheme in PACKAGES:
        import fsspec

        # Not fsspec.open, which would follow "::" to other schemes.
        return io.BufferedReader(fsspec.filesystem(scheme).open(url, "rb"), 2**17)  # pyright: ignore
    return open_file(url.partition("://")[2] if scheme else url)


def open_file(path: str | Path) -> io.BufferedReader:
    """A file of this machine. OSError: there is none, or it is a device, a pipe or a folder, which is not opened."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise OSError("it is no regular file")
    return open(path, "rb", buffering=2**17)  # pyright: ignore[reportReturnType]


class _Checked(io.RawIOBase):
    """The bytes of a stream. OSError in place of its end where problem() names one."""

    def __init__(self, stream: Any, problem: Callable[[], str], close: Callable[[], Any]) -> None:
        self.stream, self.problem, self._close = stream, problem, close

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.stream.readinto(buffer)
        if not count and (problem := self.problem()):
            raise OSError(problem)
        return count

    def close(self) -> None:
        if not self.closed:
            self._close()
        super().close()


def _download(url: str) -> io.BufferedReader:
    """By a client that knows http and https alone, wherever it is redirected to."""
    from urllib import request
    from urllib.error import HTTPError

    client = request.OpenerDirector()
    for handler in (
        *(request.ProxyHandler, request.HTTPHandler, request.HTTPSHandler, request.UnknownHandler),
        *(request.HTTPDefaultErrorHandler, request.HTTPRedirectHandler, request.HTTPErrorProcessor),
    ):
        client.add_handler(handler())
    answer: Any = None
    for wait in (*_WAITS, 0):
        try:
            answer = client.open(url, timeout=_TIMEOUT)
            break
        except HTTPError as error:
            if not wait or error.code not in _BUSY:
                raise
            time.sleep(wait)

    def problem() -> str:
        return f"the download broke off {answer.length} bytes before its end" if answer.length else ""

    return io.BufferedReader(_Checked(answer, problem, answer.close), 2**17)


def _command(line: str) -> io.BufferedReader:
    process = subprocess.Popen(line, shell=True, stdout=subprocess.PIPE, bufsize=0)

    def problem() -> str:
        return f"its command ended with status {status}" if (status := process.wait()) else ""

    def close() -> None:
        process.stdout.close()  # pyright: ignore[reportOptionalMemberAccess]
        process.terminate()
        process.wait()

    return io.BufferedReader(_Checked(process.stdout, problem, close), 2**17)


def _scheme(url: str) -> str:
    return PIPE if url.startswith(PIPE) else url.partition("://")[0].lower() if "://" in url else ""
