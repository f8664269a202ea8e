"""Read settings: defaults <- those of an encoder or a run <- recipe <- `key=value` arguments, each with its origin.

A value is text, on the command line and in YAML alike, until its setting's type says what it means: `$`, `=` and `#` in
a path stay what they are. Every error is one line that names the key as typed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

import yaml

from ssl_vit.config.auto_source import AUTO
from ssl_vit.config.checks import ConfigError
from ssl_vit.config.recipes import is_shipped, recipe_folder, recipe_path, recipe_tree, trained
from ssl_vit.config.schema import TrainingRun
from ssl_vit.config.values import AUTOMATIC, build_config, flat, once, settings_of, typed_values

T = TypeVar("T")
Automatic = Callable[[Any, str, dict[str, Any], list[str]], dict[str, Any]]
"""(Default configuration, name of what is trained, values of all settings, keys of those that are `auto`) -> these."""


@dataclass
class Resolved(Generic[T]):
    """A checked configuration, and where each of its values came from."""

    config: T
    origin: dict[str, str]  # dotted key -> default, encoder, run, recipe, command line, or auto
    name: str = ""  # of the method as typed, or of the tokenizer; empty for commands that train neither
    files: dict[str, str] = field(default_factory=dict)  # origin -> file of others that it stands for


def resolve(
    config_class: type[T],
    arguments: Iterable[str],
    lower: Mapping[str, Any] | None = None,
    origin: str = "encoder",
    file: str = "",
    automatic: "Automatic | None" = None,
) -> Resolved[T]:
    """A command's configuration: defaults <- lower <- the recipe, of a training <- the arguments. Raises ConfigError.

    RunConfig and TokenizerRun stand for that of the method or tokenizer named; lower: nested settings, origin: whose,
    file: where they are from; automatic: finds what is `auto`.
    """
    pairs = [arg.partition("=") for arg in arguments]
    for key, equals, text in pairs:
        if not (key and equals):
            raise ConfigError(f"{key}{equals}{text} is not a setting: settings are written key=value")
    args = once((key, text) for key, _, text in pairs)
    found, name, origins = trained(config_class, args)
    base: Any = found()
    settings, foreign = settings_of(base), {origin: file or origin}
    layers = [("command line", "", typed_values("", args.items(), settings))]  # (origin, how its errors begin, values)
    if issubclass(found, TrainingRun):
        section = found.own_section
        if f"{section}.name" in settings:
            raise ConfigError(f"{section}={name}: {found.__name__} cannot have {section}.name, where runs keep that")
        path = recipe_path(recipe_folder(section, name), args.get("recipe", found.recipe))
        foreign |= {} if is_shipped(path) else {"recipe": str(path)}
        pairs = flat(recipe_tree(path, section, name), settings)
        layers.append(("recipe", f"{path}: ", typed_values(f"{path}: ", pairs, settings)))
    layers.append((origin, f"{origin}: ", typed_values(f"{origin}: ", flat(lower or {}, settings), settings)))
    values = {key: setting.default for key, setting in settings.items()}
    origins |= dict.fromkeys(settings, "default")
    for layer, _, given in reversed(layers):
        values |= given
        origins |= dict.fromkeys(given, layer)
    if wanted := [key for key in settings if key in AUTOMATIC and values[key] == AUTO]:
        if automatic is None:
            raise ConfigError(f"{wanted[0]}=auto is of trainings: give a value")
        values |= automatic(base, name, values, wanted)
        origins |= dict.fromkeys(wanted, AUTO)
    try:
        return Resolved(build_config(base, values), origins, name, foreign)
    except ValueError as error:
        key = str(error).partition("=")[0]
        raise ConfigError(f"{next((where for _, where, given in layers if key in given), '')}{error}") from None


def to_yaml(config: TrainingRun, name: str = "") -> str:
    """Text of a run's config.yaml, which serves as a recipe too; name says which method or tokenizer is trained."""
    tree = asdict(config)
    if name:
        tree[config.own_section] = {"name": name, **(tree[config.own_section] or {})}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
