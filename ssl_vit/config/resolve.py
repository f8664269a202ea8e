"""Read settings: defaults <- recipe file <- `key=value` args, checked before anything is built.

A value is data: `$`, `=` and `#` in a path stay what they are, and nothing is interpolated. OmegaConf reads and writes
the YAML; the layers are merged here, setting by setting, so that each knows where it came from and every error is one
line that names the key as typed. Neither torch nor Lightning is imported: a typo is answered at once.
"""

import difflib
import math
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ssl_vit.config.checks import ConfigError, one_of
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.recipes import FINETUNE, LEGAL_METHODS, TOKENIZER, method_class, recipe_path
from ssl_vit.config.schema import RunConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import TOKENIZERS, TokenizerRun

T = TypeVar("T")
KINDS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
PLURALS = {int: "integers", float: "numbers", str: "strings", bool: "booleans"}
# What other toolkits call a setting, where its spelling alone would suggest another one.
NICKNAMES = {"lr": "base_lr", "learning_rate": "base_lr", "wd": "weight_decay", "gpus": "devices", "root": "path"}
# Say where one run writes and goes on, so a run's config.yaml that serves as a recipe does not hand them on.
OF_ONE_RUN = ("recipe", "run_dir", "resume")
# From Unicode's private area: stands for `$` while OmegaConf, to which `${...}` is an interpolation, holds a value.
DOLLAR = "\uefd4"


@dataclass
class Resolved(Generic[T]):
    """A checked configuration, and where each of its values came from."""

    config: T
    origin: dict[str, str]
    """Dotted key -> default, encoder, run, recipe or command line."""
    method: str = ""
    """Name of a pretraining method as typed, of a tokenizer, or finetune; empty for other commands."""


@dataclass(frozen=True)
class Setting:
    """One leaf of a configuration."""

    hint: Any
    default: Any
    owner: type
    """Dataclass that has the field."""


def read_run(arguments: Iterable[str]) -> Resolved[RunConfig]:
    """A pretraining run from `key=value` args: the method's defaults <- its recipe <- the args.

    `method=` is required: a key of schema.METHODS, or `package.module:Class` where Class.Config is its RunConfig.
    `recipe=` names a file of configs/<method>/ or is a path that ends in .yaml. Raises ConfigError.
    """
    args = _split(arguments)
    if "method" not in args:
        raise ConfigError(f"method= is missing: {LEGAL_METHODS}")
    method = args.pop("method")
    base = _defaults(method_class(method))
    if "method.name" in settings_of(base):
        name = method.partition(":")[2]
        raise ConfigError(f"method={method}: {name}.Config cannot have method.name, where runs keep their method")
    return _resolve(base, args, method, method)


def read_tokenizer(arguments: Iterable[str]) -> Resolved[TokenizerRun]:
    """A tokenizer's training from `key=value` args: defaults <- recipe <- the args.

    `recipe=` names a file of configs/tokenizer/ or is a path that ends in .yaml; its method.name says which kind of
    tokenizer it is for, unless `method=` does. Raises ConfigError.
    """
    args = _split(arguments)
    path = recipe_path(TOKENIZER, args.get("recipe", TokenizerRun.recipe))
    kind = args.pop("method", None) or _pop_name(_read_tree(path))
    try:
        one_of("method", str(kind), TOKENIZERS)
    except ValueError as error:
        raise ConfigError(f"{error}: give it, or let {path} have method.name") from None
    return _resolve(_defaults(TOKENIZERS[str(kind)]), args, str(kind), TOKENIZER)


def read_finetune(arguments: Iterable[str], lower: Mapping[str, Any] | None = None) -> Resolved[FinetuneRun]:
    """A fine-tuning from `key=value` args: defaults <- lower, which is from its encoder <- recipe <- the args.

    `recipe=` names a file of configs/finetune/ or is a path that ends in .yaml. Raises ConfigError.
    """
    resolved = _resolve(_defaults(FinetuneRun), _split(arguments), FINETUNE, FINETUNE, lower or {})
    resolved.origin["method"] = "default"  # it is this command's one
    return resolved


def _resolve(
    base: T, args: Mapping[str, str], method: str, folder: str, lower: Mapping[str, Any] | None = None
) -> Resolved[T]:
    """Defaults in base <- lower, from an encoder <- the recipe that the args name <- the args."""
    settings = settings_of(base)
    command = _typed_args(args, settings)
    path = recipe_path(folder, command.get("recipe", settings["recipe"].default))
    recipe = _typed_tree(_recipe_tree(path, method), settings, f"{path}: ")
    below = ("encoder", "encoder: ", _typed_tree(lower or {}, settings, "encoder: "))
    config, origin = _merge(base, settings, below, ("recipe", f"{path}: ", recipe), ("command line", "", command))
    return Resolved(config, origin, method)


def read(
    config_class: type[T], arguments: Iterable[str], lower: Mapping[str, Any] | None = None, origin: str = "run"
) -> Resolved[T]:
    """A command's configuration from `key=value` args: defaults <- lower <- the args.

    lower is a nested plain dict, such as a run's own data settings; its values carry the name `origin`.
    Raises ConfigError.
    """
    base = _defaults(config_class)
    settings = settings_of(base)
    command = _typed_args(_split(arguments), settings)
    below = _typed_tree(lower or {}, settings, f"{origin}: ")
    return Resolved(*_merge(base, settings, (origin, f"{origin}: ", below), ("command line", "", command)))


def to_yaml(config: TrainingRun, method: str) -> str:
    """Text of a run's config.yaml; from_yaml reads it back, and it serves as a recipe."""
    tree = asdict(config)
    tree["method"] = {"name": method, **(tree["method"] or {})}
    return OmegaConf.to_yaml(OmegaConf.create(_swap(tree, "$", DOLLAR))).replace(DOLLAR, "$")


def from_yaml(text: str, where: str = "config.yaml") -> tuple[str, RunConfig]:
    """(method, config) of a run's config.yaml; `where` names the file in errors. Raises ConfigError."""
    tree = _parse(text, where)
    method = _pop_name(tree)
    if method is None:
        raise ConfigError(f"{where} has no method.name: {LEGAL_METHODS}")
    base = _defaults(method_class(method))
    settings = settings_of(base)
    values = _typed_tree(tree, settings, f"{where}: ")
    return method, _merge(base, settings, ("run", f"{where}: ", values))[0]


def settings_of(config: Any, prefix: str = "") -> dict[str, Setting]:
    """Every setting of a configuration by its dotted key, in the order of the dataclasses."""
    hints = get_type_hints(type(config))
    settings = {}
    for field in fields(config):
        key, default = prefix + field.name, getattr(config, field.name)
        if is_dataclass(default):
            settings |= settings_of(default, f"{key}.")
        elif field.init:
            settings[key] = Setting(hints[field.name], default, type(config))
    return settings


def kind(hint: Any) -> str:
    """A type in args: an integer, a list of 2 numbers, a string or null."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(member) for member in members)
    if origin in (list, tuple):
        count = f"{len(members)} " if origin is tuple and members[-1] is not Ellipsis else ""
        return f"a list of {count}{PLURALS.get(members[0], 'values')}"
    return "anything" if hint is Any else KINDS.get(hint, f"a {getattr(origin or hint, '__name__', hint)}")


def shown(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _defaults(config_class: type[T]) -> T:
    try:
        return config_class()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the defaults of {config_class.__module__}.{config_class.__name__} fail: {error}") from error


def _split(arguments: Iterable[str]) -> dict[str, str]:
    pairs = []
    for arg in arguments:
        key, equals, text = arg.partition("=")
        if not (key and equals):
            raise ConfigError(f"{arg} is not a setting: settings are written key=value")
        pairs.append((key, text))
    return _once(pairs)


def _once(pairs: Iterable[tuple[str, Any]], where: str = "") -> dict[str, Any]:
    """The pairs as a dict; a key that has two different values is an error."""
    values = {}
    for key, value in pairs:
        if values.setdefault(key, value) != value:
            raise ConfigError(f"{where}{key} is given twice: {shown(values[key])} and {shown(value)}")
    return values


def _typed_args(args: Mapping[str, str], settings: Mapping[str, Setting]) -> dict[str, Any]:
    values = {}
    for key, text in args.items():
        value = _value(text, settings[key].hint) if key in settings else text
        values[key] = _check(key, value, text, settings)
    return values


def _value(text: str, hint: Any) -> Any:
    """What a arg's text means for a setting of this type: text stays text, the rest is read as YAML.

    A list of any length needs no brackets: shots=1,5 is shots=[1, 5].
    """
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if get_origin(hint) is list and not text.startswith("["):
        text = f"[{text}]"
    if text == "null":
        return None
    if set(members) <= {str, type(None)}:
        return text
    try:
        value = _parse(f"value: {text}", "")["value"]
    except ConfigError:
        return text
    return text if value is None else value


def _typed_tree(tree: Mapping[str, Any], settings: Mapping[str, Setting], where: str) -> dict[str, Any]:
    pairs = _once(_flatten(tree, settings), where)
    return {key: _check(key, value, shown(value), settings, where) for key, value in pairs.items()}


def _flatten(tree: Mapping[str, Any], settings: Mapping[str, Setting], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key not in settings:
            yield from _flatten(value, settings, f"{key}.")
        # A section whose lines are all commented out changes nothing.
        elif not (_is_section(key, settings) and value in (None, {})):
            yield key, value


def _is_section(key: str, settings: Mapping[str, Setting]) -> bool:
    return any(name.startswith(f"{key}.") for name in settings)


def _check(key: str, value: Any, text: str, settings: Mapping[str, Setting], where: str = "") -> Any:
    """The value in the type of its setting; raises ConfigError for an unknown key or another type."""
    if key not in settings:
        raise ConfigError(where + _unknown(key, text, settings))
    hint, default = settings[key].hint, settings[key].default
    try:
        return _convert(value, hint)
    except (TypeError, OverflowError):
        example = f", such as {shown(default)}" if isinstance(default, list | tuple) and default else ""
        quotes = " in quotes" if where and hint is str else ""
        raise ConfigError(f"{where}{key}={text} must be {kind(hint)}{quotes}{example}") from None


def _convert(value: Any, hint: Any) -> Any:
    """The value in the type of the hint, without loss; raises TypeError where it is of another type. 1% is 0.01."""
    origin, members = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for member in members:
            try:
                return _convert(value, member)
            except TypeError:
                continue
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        any_length = origin is list or members[-1] is Ellipsis
        if any_length or len(value) == len(members):
            return origin(_convert(item, members[0 if any_length else i]) for i, item in enumerate(value))
    elif hint is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
        if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?%", value):
            return float(value[:-1]) / 100
    elif hint is Any or (type(value) is int if hint is int else isinstance(value, origin or hint)):
        return value
    raise TypeError(f"{value!r} is not {kind(hint)}")


def _unknown(key: str, text: str, settings: Mapping[str, Setting]) -> str:
    section = key
    while section and not _is_section(section, settings):
        section = section.rpartition(".")[0]
    inside = [name[len(section) :].lstrip(".") for name in settings if not section or name.startswith(f"{section}.")]
    names = dict.fromkeys(name.partition(".")[0] + (".*" if "." in name else "") for name in inside)
    legal = f"{section} has {', '.join(names)}" if section else f"the settings are {', '.join(names)}"
    return f"{key}={text} is not a setting; {legal}{_nearest_setting(key, settings)}"


def _nearest_setting(key: str, settings: Mapping[str, Setting]) -> str:
    """` (did you mean X?)`: the setting whose last part is spelled most like key's, rather one of its section."""
    section, _, name = key.rpartition(".")
    name = NICKNAMES.get(name, name)

    def likeness(legal: str) -> float:
        legal_section, _, legal_name = legal.rpartition(".")
        ratio = difflib.SequenceMatcher(None, name, legal_name).ratio()
        if set(name.split("_")) <= set(legal_name.split("_")):
            ratio = 0.9 + 0.1 * ratio
        return ratio - 0.05 * (section != legal_section)

    best = max(settings, key=likeness)
    return f" (did you mean {best}?)" if likeness(best) >= 0.6 else ""


def _parse(text: str, where: str) -> dict[str, Any]:
    """The mapping that a YAML text holds; raises ConfigError with the line of what cannot be read."""
    try:
        tree = OmegaConf.to_container(OmegaConf.create(text.replace("$", DOLLAR)))
    except (YAMLError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{where}{line}: {problem}".replace(DOLLAR, "$")) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: settings are written key: value, this is a list")
    return _swap(tree, DOLLAR, "$")


def _swap(tree: Any, old: str, new: str) -> Any:
    """The tree with one character replaced by another in every string and key."""
    if isinstance(tree, dict):
        return {_swap(key, old, new): _swap(value, old, new) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_swap(item, old, new) for item in tree]
    return tree.replace(old, new) if isinstance(tree, str) else tree


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None


def _recipe_tree(path: Path, method: str) -> dict[str, Any]:
    """What a recipe sets. A run's config.yaml will do: it names its method, which must be the one asked for."""
    tree = _read_tree(path)
    name = _pop_name(tree)
    if name not in (None, method):
        raise ConfigError(f"{path} is a recipe for method={name}, not for method={method}")
    for key in OF_ONE_RUN:
        if key in tree and name is None:
            raise ConfigError(f"{path}: {key}={shown(tree[key])} belongs on the command line, not in a recipe")
        tree.pop(key, None)
    return tree


def _pop_name(tree: dict[str, Any]) -> str | None:
    """Take method.name, which is not a setting, out of a run's tree."""
    options = tree.get("method")
    if not isinstance(options, dict) or "name" not in options:
        return None
    name = options.pop("name")
    if not options:
        del tree["method"]
    return str(name)


def _merge(
    base: T, settings: Mapping[str, Setting], *layers: tuple[str, str, Mapping[str, Any]]
) -> tuple[T, dict[str, str]]:
    """(config, origin): the defaults in base under the layers, lowest first: (name, prefix of its errors, values).

    A value that its dataclass refuses is reported in the dataclass's args, after the prefix of the layer it is from.
    """
    values = {key: setting.default for key, setting in settings.items()}
    origin, prefix = dict.fromkeys(settings, "default"), {}
    for name, where, layer in layers:
        values.update(layer)
        origin.update(dict.fromkeys(layer, name))
        prefix.update(dict.fromkeys(layer, where))
    try:
        return _build(base, values), origin
    except ValueError as error:
        key = str(error).partition("=")[0]
        raise ConfigError(f"{prefix.get(key, '')}{error}") from None


def _build(base: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A dataclass of base's type from the values of its dotted keys."""
    parts = {}
    for field in fields(base):
        key, default = prefix + field.name, getattr(base, field.name)
        if is_dataclass(default):
            parts[field.name] = _build(default, values, f"{key}.")
        elif field.init:
            parts[field.name] = values[key]
    return type(base)(**parts)
