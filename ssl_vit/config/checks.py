"""What a value may be: bounds in its type, as in `Annotated[int, at_least(2)]`, and errors about it in one line."""

import difflib
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

UNIONS = (Union, types.UnionType)
KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
PLURALS = {int: "integers", float: "numbers", str: "strings"}


class ConfigError(ValueError):
    """A setting that is not legal. One line: the key as typed, what is legal, the nearest legal key."""


def nearest(name: str, legal: Iterable[str]) -> str:
    """` (did you mean X?)` for the legal name closest to a mistyped one, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(legal), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def shown(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def require(legal: bool, key: str, value: Any, rule: str, error: type[ValueError] = ValueError) -> None:
    """Raise an error `key=value must be <rule>` unless legal; ConfigError where it can only have been typed."""
    if not legal:
        raise error(f"{key}={shown(value)} must be {rule}")


def printable(text: object) -> str:
    """Text in one line of printable characters: a line break, or a byte that is no UTF-8, as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


@contextmanager
def given_as(key: str, value: str) -> Iterator[None]:
    """Errors of what a setting names begin with its key as typed, whoever reads the file."""
    try:
        yield
    except (OSError, ValueError) as error:
        line = str(error).removeprefix(f"encoder={value}: ")
        kind = next(kind for kind in (FileNotFoundError, OSError, ConfigError, ValueError) if isinstance(error, kind))
        raise kind(line if line.startswith(f"{key}=") else f"{key}={value}: {line}") from error


def one_of(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raise ValueError unless value is one of choices; names the nearest."""
    require(value in choices, key, value, f"one of {', '.join(choices)}{nearest(str(value), choices)}")


def plain(given: Any) -> Any:
    """A container of OmegaConf's as Python's own, its interpolations resolved; all else as it is."""
    if omegaconf := sys.modules.get("omegaconf"):  # or nobody can have made one
        return omegaconf.OmegaConf.to_container(given, resolve=True) if omegaconf.OmegaConf.is_config(given) else given
    return given


def override(default: Any, given: Any, key: str) -> Any:
    """`default` with the fields of a dict replaced; a dataclass is taken as it is, None changes nothing."""
    given = plain(given)
    if is_dataclass(given):
        return given
    legal = [field.name for field in fields(default)]
    for name in given or {}:
        if name not in legal:
            raise ValueError(f"{key}.{name} is no setting{nearest(name, legal)}; {key} has {', '.join(legal)}")
    return replace(default, **(given or {}))


class Bound(NamedTuple):
    """A rule that a value keeps to."""

    rule: str  # as it reads after `key=value must be`
    holds: Callable[[Any], bool]
    says_type: bool = False  # whether the rule names the value's type too

    def __repr__(self) -> str:
        return self.rule


def at_least(low: int) -> Bound:
    """low or more."""
    return Bound(f"{low} or more", lambda value: value >= low)


def inside(interval: str) -> Bound:
    """In an interval as it is written: without its end beside a round bracket, with it beside a square one."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = operator.lt if interval[0] == "(" else operator.le
    below = operator.lt if interval[-1] == ")" else operator.le
    return Bound(f"in {interval}", lambda value: above(low, value) and below(value, high))


def each(bound: Bound, how_many: str = "") -> Bound:
    """Of a list: a bound that each item keeps to."""
    return Bound(f"{how_many} {bound.rule}".lstrip(), lambda items: all(map(bound.holds, items)), bool(how_many))


def either(choices: Sequence[str], bound: Bound) -> Bound:
    """One of the choices, or an integer that keeps to a bound."""
    rule = f"{', '.join(choices)}, or {bound.rule}"
    return Bound(rule, lambda value: value in choices or (type(value) is int and bound.holds(value)), True)


def interval(low: float, high: float) -> Bound:
    """An ordered pair of numbers between low and high."""
    rule = f"[low, high] with {low} <= low <= high <= {high}"
    return Bound(rule, lambda pair: low <= pair[0] <= pair[1] <= high, True)


def _are_sides(value: Any) -> bool:
    sides = value if isinstance(value, list | tuple) else [value]
    return len(sides) in (1, 2) and all(type(side) is int and side > 0 for side in sides)


POSITIVE = Bound("positive", lambda value: value > 0)
POSITIVE_INT = Bound("a positive integer", POSITIVE.holds, True)
PositiveInt = Annotated[int, POSITIVE_INT]
PositiveFloat = Annotated[float, POSITIVE]
NonNegativeInt = Annotated[int, at_least(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
Fraction = Annotated[float, inside("[0, 1]")]
Strength = Annotated[float, inside("[0, 100]")]
Temperature = Annotated[float, inside("[0.001, 1000]")]
Depth = Annotated[int, inside("[1, 1000]")]
Seed = Annotated[int, inside("[0, 4294967295]")]
CropScale = Annotated[tuple[float, float], interval(0.01, 1.0)]
CropRatio = Annotated[tuple[float, float], interval(0.01, 100)]
ImageSize = Annotated[
    int | list[int] | tuple[int, ...], Bound("a side in pixels, or [height, width]", _are_sides, True)
]
BlockNumber = Annotated[
    int | Literal["last", "best"], either(["last", "best"], Bound("a number from 1", POSITIVE.holds))
]
Rules = Iterator[tuple[bool, str, str]]
Unread = Iterator[tuple[bool, str, str, str]]


@dataclass(kw_only=True)
class Bounded:
    """A configuration whose values keep to the bounds in their types, or ValueError in one line."""

    section: ClassVar[str] = ""  # optim, for optim.base_lr; a subclass's is that of its base

    def __init_subclass__(cls, section: str | None = None) -> None:
        cls.section = cls.section if section is None else section

    def __post_init__(self) -> None:
        for name, hint in hints_of(type(self)).items():
            check(self.key(name), getattr(self, name), hint)
        for legal, name, rule in self.rules():
            require(legal, self.key(name), operator.attrgetter(name)(self), rule)

    def rules(self) -> Rules:
        """Rules across fields: (whether it is kept, name of the field at fault, what it must be)."""
        yield from ()

    def unread(self) -> Unread:
        """Settings that others leave without effect: (whether they do, its fields, the field that does it, why)."""
        yield from ()

    def key(self, name: str) -> str:
        """A field's name on the command line."""
        return f"{self.section}.{name}" if self.section else name


def fresh(factory: Callable[..., Any], **defaults: Any) -> Any:
    """A dataclass's field whose default is made anew: a list, or a section with other defaults than its own."""
    return field(default_factory=partial(factory, **defaults))


@cache
def hints_of(config_class: type) -> dict[str, Any]:
    """The types of a dataclass's fields, bounds included."""
    hints = get_type_hints(config_class, include_extras=True)
    return {item.name: hints[item.name] for item in fields(config_class)}


def check(key: str, value: Any, hint: Any) -> None:
    """ValueError unless a value keeps to the bounds, or is one of the choices, of its type."""
    members = get_args(hint) if get_origin(hint) in UNIONS else (hint,)
    nullable = type(None) in members
    if value is None and nullable:
        return
    for member in members:
        if get_origin(member) is Literal:
            one_of(key, value, get_args(member))  # null is seldom what a mistyped choice meant
        for bound in getattr(member, "__metadata__", ()):
            require(bound.holds(value), key, value, bound.rule + " or null" * nullable)


def kind(hint: Any, bounds: bool = True) -> str:
    """A type in plain English: a positive integer, a list of 2 numbers, cls | mean | both, a string or null."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        if not bounds and get_origin(members[0]) not in UNIONS:
            return kind(members[0])
        rules = [bound.rule for bound in members[1:]]
        return ", ".join(rules if members[1].says_type else [kind(members[0]), *rules])
    if origin is Literal:
        return " | ".join(members)
    if origin in UNIONS:
        return " or ".join(kind(member, bounds) for member in members)
    if origin in (list, tuple):
        count = f"{len(members)} " if origin is tuple and members[-1] is not Ellipsis else ""
        return f"a list of {count}{PLURALS.get(members[0], 'values')}"
    return "anything" if hint is Any else KINDS.get(hint, f"a {getattr(origin or hint, '__name__', hint)}")
