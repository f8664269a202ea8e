"""What a setting may be, said in one line: the key as typed, its value, the rule. Only the standard library."""

import difflib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any


class ConfigError(ValueError):
    """A setting that is not legal. One line: the key as typed, what is legal, the nearest legal key."""


def nearest(arg: str, args: Iterable[str]) -> str:
    """` (did you mean X?)` for the legal arg closest to a mistyped one, or nothing when none is close."""
    close = difflib.get_close_matches(arg, list(args), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def require(legal: bool, key: str, value: Any, rule: str) -> None:
    """Raise ValueError `key=value must be <rule>` unless legal."""
    if not legal:
        raise ValueError(f"{key}={value} must be {rule}")


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise ValueError unless value is one of choices; names the nearest."""
    require(value in choices, key, value, f"one of {', '.join(choices)}{nearest(value, choices)}")


def interval(key: str, value: tuple[float, float], low: float, high: float) -> None:
    """Raise ValueError unless value is an ordered pair inside [low, high]."""
    require(low <= value[0] <= value[1] <= high, key, list(value), f"[low, high] with {low} <= low <= high <= {high}")


def sides_of(key: str, value: Any) -> list[int]:
    """One or two sides of an image. ValueError unless value is a side in pixels, or [height, width]."""
    sides = list(value) if isinstance(value, list | tuple) else [value]
    legal = len(sides) in (1, 2) and all(type(side) is int and side > 0 for side in sides)
    require(legal, key, value, "a side in pixels, or [height, width]")
    return sides


def require_layer(key: str, value: Any) -> None:
    """Raise ValueError unless value says which block is read: last, best, or a number from 1."""
    legal = value in ("last", "best") or (type(value) is int and value > 0)
    require(legal, key, value, "last, best, or a number from 1")


def override(default: Any, given: Any, key: str) -> Any:
    """`default` with the fields of a dict replaced; a dataclass is taken as it is, None changes nothing."""
    if is_dataclass(given):
        return given
    legal = [field.name for field in fields(default)]
    for name in given or {}:
        if name not in legal:
            raise ValueError(f"{key}.{name} is no setting{nearest(name, legal)}; {key} has {', '.join(legal)}")
    return replace(default, **(given or {}))
