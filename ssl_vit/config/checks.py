"""Errors in one line: the key as typed, its value, what is legal, the nearest legal one. Only the standard library."""

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any


class ConfigError(ValueError):
    """A setting that is not legal. One line: the key as typed, what is legal, the nearest legal key."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """` (did you mean X?)` for the legal name closest to a mistyped one, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def shown(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def require(legal: bool, key: str, value: Any, rule: str) -> None:
    """Raise ValueError `key=value must be <rule>` unless legal."""
    if not legal:
        raise ValueError(f"{key}={shown(value)} must be {rule}")


def one_of(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ValueError unless value is one of choices; names the nearest."""
    require(value in choices, key, value, f"one of {', '.join(choices)}{nearest(str(value), choices)}")


def override(default: Any, given: Any, key: str) -> Any:
    """`default` with the fields of a dict replaced; a dataclass is taken as it is, None changes nothing."""
    if is_dataclass(given):
        return given
    legal = [field.name for field in fields(default)]
    for name in given or {}:
        if name not in legal:
            raise ValueError(f"{key}.{name} is no setting{nearest(name, legal)}; {key} has {', '.join(legal)}")
    return replace(default, **(given or {}))
