"""The settings of a configuration by dotted keys, and values of text or of a file's metadata in their types.

Every error is one line that names the key as typed.
"""

import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from ssl_vit.config.auto_source import AUTO
from ssl_vit.config.checks import UNIONS, ConfigError, hints_of, kind, shown

AUTOMATIC = (
    *("data.mean", "data.std", "data.white_16bit", "data.eval_crop", "data.batch_size"),
    *("encoder.channels", "encoder.image_size", "encoder.patch_size"),
    *("encoder.embed_dim", "encoder.depth", "encoder.num_heads"),
    *("tokenizer.channels", "tokenizer.image_size", "tokenizer.patch_size", "method.local_size"),
    *("optim.base_lr", "optim.warmup_epochs", "trainer.max_epochs", "monitor.every_epochs"),
)
"""Settings that a training finds out for itself where they are `auto`; docs/auto.md has the rules."""
# What other toolkits call a setting, where its spelling alone would suggest another one.
NICKNAMES = {"lr": "base_lr", "learning_rate": "base_lr", "wd": "weight_decay", "gpus": "devices", "root": "path"}


class Setting(NamedTuple):
    """One leaf of a configuration."""

    hint: Any
    default: Any
    owner: type  # dataclass that has the field


def settings_of(config: Any, prefix: str = "") -> dict[str, Setting]:
    """Every setting of a configuration by its dotted key, in the order of the dataclasses."""
    hints, settings = hints_of(type(config)), {}
    for item in fields(config):
        key, default = prefix + item.name, getattr(config, item.name)
        if is_dataclass(default):
            settings |= settings_of(default, f"{key}.")
        elif item.init:
            settings[key] = Setting(hints[item.name], default, type(config))
    return settings


def usual_values(base: Any, keys: Iterable[str]) -> dict[str, Any]:
    """The defaults of settings, by dotted key."""
    settings = settings_of(base)
    return {key: settings[key].default for key in keys}


def brief(value: Any) -> str:
    """A value as one types it, cut where it is long."""
    text = shown(value)
    return text if len(text) <= 500 else f"{text[:500]}..."


def convert(value: Any, hint: Any) -> Any:
    """A value, or its text, in the type of the hint; 1% is 0.01, and a list needs no brackets.

    Raises TypeError, ValueError or LookupError where it is of another type.
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
        return _plain(value) if isinstance(value, str) else value
    elif origin not in (list, tuple) and not isinstance(value, dict | list | tuple):
        return _scalar(value if isinstance(value, str) else shown(value), hint)
    elif isinstance(value, origin or hint):
        return value
    raise TypeError(f"{value!r} is not {kind(hint)}")


def _plain(text: str) -> Any:
    import yaml  # which few need: such a setting is a method of your own's

    from ssl_vit.config.plain_yaml import PlainLoader

    try:
        return yaml.load(text, PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


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


def once(pairs: Iterable[tuple[str, Any]], where: str = "") -> dict[str, Any]:
    """The pairs as a dict; ConfigError where a key has two values."""
    values = {}
    for key, value in pairs:
        if key in values and values[key] != value:
            raise ConfigError(f"{where}{key} is given twice: {brief(values[key])} and {brief(value)}")
        values[key] = value
    return values


def flat(tree: Mapping[str, Any], settings: Mapping[str, Setting], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values. A section whose lines are all commented out has none."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and key not in settings:
            yield from flat(value, settings, f"{key}.")
        elif not (_is_section(key, settings) and value in (None, "", {})):
            yield key, value


def _is_section(key: str, settings: Mapping[str, Setting]) -> bool:
    return any(name.startswith(f"{key}.") for name in settings)


def typed_values(where: str, pairs: Iterable[tuple[str, Any]], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """Values of settings by dotted key, each in its type; ConfigError, which `where` begins."""
    values = once(pairs, where)
    for key, value in values.items():
        if key not in settings:
            raise ConfigError(f"{where}{brief(key)}={brief(value)} is not a setting; {_legal(key, settings)}")
        if value == AUTO and key in AUTOMATIC:
            continue
        hint, default, _ = settings[key]
        try:
            values[key] = convert(value, hint)
        except (TypeError, ValueError, LookupError):
            example = f", such as {shown(default)}" if isinstance(default, list | tuple) and default else ""
            raise ConfigError(f"{where}{key}={brief(value)} must be {kind(hint, bounds=False)}{example}") from None
    return values


def _legal(key: str, settings: Mapping[str, Setting]) -> str:
    """What a mistyped key could have been: the settings of its section, and the one spelled most like it."""
    section = key
    while section and not _is_section(section, settings):
        section = section.rpartition(".")[0]
    inside = [name.removeprefix(f"{section}.") for name in settings if not section or name.startswith(f"{section}.")]
    names = dict.fromkeys(name.partition(".")[0] + ".*" * ("." in name) for name in inside)
    own, _, last = key[-100:].rpartition(".")
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


def build_config(base: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    """A configuration like `base`, with values by dotted key; ValueError as of its class."""

    def made(key: str, default: Any) -> Any:
        return build_config(default, values, f"{key}.") if is_dataclass(default) else values[key]

    return type(base)(**{f.name: made(prefix + f.name, getattr(base, f.name)) for f in fields(base) if f.init})


def described(base: Any, tree: Any, where: Any) -> Any:
    """A configuration as a file's metadata has it, `base` where that is silent; ConfigError names where it is from."""
    prefix = f"{base.section}." if base.section else ""
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{where}: {base.section}={shown(tree)} must be an object of settings")
    settings = settings_of(base, prefix)
    values = {key: setting.default for key, setting in settings.items()}
    values |= typed_values(f"{where}: ", flat(tree, settings, prefix), settings)
    try:
        return build_config(base, values, prefix)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
