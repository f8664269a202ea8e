"""Read settings: defaults <- those of an encoder or a run <- recipe <- `key=value` arguments, each with its origin.

A value is text, on the command line and in YAML alike, until its setting's type says what it means: `$`, `=` and `#` in
a path stay what they are. Every error is one line that names the key as typed.
"""

import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Annotated, Any, Generic, NamedTuple, TypeVar, get_args, get_origin

import yaml

from ssl_vit.config.checks import UNIONS, ConfigError, hints_of, kind, shown
from ssl_vit.config.recipes import recipe_folder, recipe_path, recipe_tree, trained
from ssl_vit.config.schema import TrainingRun

T = TypeVar("T")
# What other toolkits call a setting, where its spelling alone would suggest another one.
NICKNAMES = {"lr": "base_lr", "learning_rate": "base_lr", "wd": "weight_decay", "gpus": "devices", "root": "path"}


@dataclass
class Resolved(Generic[T]):
    """A checked configuration, and where each of its values came from."""

    config: T
    origin: dict[str, str]  # dotted key -> default, encoder, run, recipe or command line
    name: str = ""  # of the method as typed, or of the tokenizer; empty for commands that train neither


class Setting(NamedTuple):
    """One leaf of a configuration."""

    hint: Any
    default: Any
    owner: type  # dataclass that has the field


def resolve(
    config_class: type[T], arguments: Iterable[str], lower: Mapping[str, Any] | None = None, origin: str = "encoder"
) -> Resolved[T]:
    """A command's configuration: defaults <- lower <- the recipe, of a training <- the arguments. Raises ConfigError.

    RunConfig and TokenizerRun stand for that of the method or tokenizer named; lower: nested settings, origin: whose.
    """
    pairs = [arg.partition("=") for arg in arguments]
    for key, equals, text in pairs:
        if not (key and equals):
            raise ConfigError(f"{key}{equals}{text} is not a setting: settings are written key=value")
    args = _once((key, text) for key, _, text in pairs)
    found, name, origins = trained(config_class, args)
    base: Any = found()
    settings = settings_of(base)
    layers = [("command line", "", _typed("", args.items(), settings))]  # (origin, what begins its errors, values)
    if issubclass(found, TrainingRun):
        section = found.own_section
        if f"{section}.name" in settings:
            raise ConfigError(f"{section}={name}: {found.__name__} cannot have {section}.name, where runs keep that")
        path = recipe_path(recipe_folder(section, name), args.get("recipe", found.recipe))
        pairs = _flat(recipe_tree(path, section, name), settings)
        layers.append(("recipe", f"{path}: ", _typed(f"{path}: ", pairs, settings)))
    layers.append((origin, f"{origin}: ", _typed(f"{origin}: ", _flat(lower or {}, settings), settings)))
    values = {key: setting.default for key, setting in settings.items()}
    origins |= dict.fromkeys(settings, "default")
    for layer, _, given in reversed(layers):
        values |= given
        origins |= dict.fromkeys(given, layer)
    try:
        return Resolved(_build(base, values), origins, name)
    except ValueError as error:
        key = str(error).partition("=")[0]
        raise ConfigError(f"{next((where for _, where, given in layers if key in given), '')}{error}") from None


def to_yaml(config: TrainingRun, name: str = "") -> str:
    """Text of a run's config.yaml, which serves as a recipe too; name says which method or tokenizer is trained."""
    tree = asdict(config)
    if name:
        tree[config.own_section] = {"name": name, **(tree[config.own_section] or {})}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def settings_of(config: Any, prefix: str = "") -> dict[str, Setting]:
    """Every setting of a configuration by its dotted key, in the order of the dataclasses."""
    hints, settings = hints_of(type(config)), {}
    for field in fields(config):
        key, default = prefix + field.name, getattr(config, field.name)
        if is_dataclass(default):
            settings |= settings_of(default, f"{key}.")
        elif field.init:
            settings[key] = Setting(hints[field.name], default, type(config))
    return settings


def convert(value: Any, hint: Any) -> Any:
    """A value, or its text, in the type of the hint; 1% is 0.01, and a list needs no brackets.

    Raises TypeError, ValueError, LookupError or YAMLError where it is of another type.
    """
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return convert(value, members[0])
    if origin in UNIONS:
        for member in members:
            with suppress(TypeError, ValueError, LookupError):
                return convert(value, member)
    elif origin in (list, tuple) and isinstance(value, str | list | tuple):
        items = value
        if isinstance(value, str):
            items = [item.strip() for item in value.removeprefix("[").removesuffix("]").split(",") if item.strip()]
        any_length = origin is list or members[-1] is Ellipsis
        if any_length or len(items) == len(members):
            return origin(convert(item, members[0 if any_length else i]) for i, item in enumerate(items))
    elif hint is Any:
        return yaml.safe_load(value) if isinstance(value, str) else value
    elif not isinstance(value, dict | list | tuple):
        return _scalar(value if isinstance(value, str) else shown(value), hint)
    elif isinstance(value, origin or hint):
        return value
    raise TypeError(f"{value!r} is not {kind(hint)}")


def _scalar(text: str, hint: Any) -> Any:
    if (text == "null") != (hint is types.NoneType):
        raise TypeError(f"{text} is not {kind(hint)}")
    if text == "null":
        return None
    if hint is bool:
        return {"true": True, "false": False}[text.lower()]
    if hint is float:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is not finite")
        return number
    return int(text) if hint is int else text  # of a choice its bound knows whether it is one


def _once(pairs: Iterable[tuple[str, Any]], where: str = "") -> dict[str, Any]:
    values = {}
    for key, value in pairs:
        if values.setdefault(key, value) != value:
            raise ConfigError(f"{where}{key} is given twice: {shown(values[key])} and {shown(value)}")
    return values


def _flat(tree: Mapping[str, Any], settings: Mapping[str, Setting], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values. A section whose lines are all commented out has none."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key not in settings:
            yield from _flat(value, settings, f"{key}.")
        elif not (_is_section(key, settings) and value in (None, "", {})):
            yield key, value


def _is_section(key: str, settings: Mapping[str, Setting]) -> bool:
    return any(name.startswith(f"{key}.") for name in settings)


def _typed(where: str, pairs: Iterable[tuple[str, Any]], settings: Mapping[str, Setting]) -> dict[str, Any]:
    values = _once(pairs, where)
    for key, value in values.items():
        if key not in settings:
            raise ConfigError(f"{where}{key}={shown(value)} is not a setting; {_legal(key, settings)}")
        hint, default, _ = settings[key]
        try:
            values[key] = convert(value, hint)
        except (TypeError, ValueError, LookupError, yaml.YAMLError):
            example = f", such as {shown(default)}" if isinstance(default, list | tuple) and default else ""
            raise ConfigError(f"{where}{key}={shown(value)} must be {kind(hint, bounds=False)}{example}") from None
    return values


def _legal(key: str, settings: Mapping[str, Setting]) -> str:
    """What a mistyped key could have been: the settings of its section, and the one spelled most like it."""
    section = key
    while section and not _is_section(section, settings):
        section = section.rpartition(".")[0]
    inside = [name.removeprefix(f"{section}.") for name in settings if not section or name.startswith(f"{section}.")]
    names = dict.fromkeys(name.partition(".")[0] + ".*" * ("." in name) for name in inside)
    own, _, last = key.rpartition(".")
    last = NICKNAMES.get(last, last)

    def likeness(legal: str) -> float:
        legal_section, _, legal_name = legal.rpartition(".")
        ratio = difflib.SequenceMatcher(None, last, legal_name).ratio()
        if set(last.split("_")) <= set(legal_name.split("_")):
            ratio = 0.9 + 0.1 * ratio
        return ratio - 0.05 * (own != legal_section)

    best = max(settings, key=likeness)
    hint = f" (did you mean {best}?)" if likeness(best) >= 0.6 else ""
    return f"{section or 'the settings'} {'has' if section else 'are'} {', '.join(names)}{hint}"


def _build(base: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    def made(key: str, default: Any) -> Any:
        return _build(default, values, f"{key}.") if is_dataclass(default) else values[key]

    return type(base)(**{f.name: made(prefix + f.name, getattr(base, f.name)) for f in fields(base) if f.init})
