"""Where recipes lie and what is in them, and the class that a name on the command line stands for."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_vit.config.checks import ConfigError, nearest, shown
from ssl_vit.config.plain_yaml import read_yaml
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.reading import require_regular
from ssl_vit.config.schema import RunConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import TOKENIZERS, TokenizerRun

LEGAL_METHODS = f"one of {', '.join(METHODS)}, or package.module:Class"
TOKENIZER, FINETUNE = "tokenizer", "finetune"
"""Sections, and folders of recipes, of the trainings that are not pretrainings; the latter's runs begin with it too."""
CUSTOM = "custom"
"""Folder of recipes for methods that live elsewhere and extend none of ours."""
OF_ONE_RUN = ("recipe", "run_dir", "resume")  # only a run's config.yaml has them; as a recipe it keeps them back


def family(section: str, name: str) -> str:
    """What the names of a training's runs begin with: a method, TOKENIZER or FINETUNE."""
    return name if section == RunConfig.own_section else section


def recipe_folder(section: str, name: str) -> str:
    """Where a training's recipes lie: of your own method those of one of ours whose Config it extends, or CUSTOM."""
    if section != RunConfig.own_section:
        return section
    config = method_class(name)
    return next((method for method, row in METHODS.items() if issubclass(config, row.config)), CUSTOM)


def trained(config_class: type, args: dict[str, str]) -> tuple[type, str, dict[str, str]]:
    """(class, name, origin of the name) of what a command trains; takes that out of the args. Raises ConfigError."""
    if issubclass(config_class, RunConfig):
        if "method" not in args:
            raise ConfigError(f"method= is missing: {LEGAL_METHODS}")
        return method_class(args["method"]), args.pop("method"), {"method": "command line"}
    if not issubclass(config_class, TokenizerRun):
        return config_class, "", {}
    origin, name, advice = "command line", args.pop(TOKENIZER, None), ""
    if name is None:
        path = recipe_path(TOKENIZER, args.get("recipe", config_class.recipe))
        origin, name = "recipe", pop_name(read_yaml(path), TOKENIZER)
        advice = f": give it, or let {path} have tokenizer.name"
    if name not in TOKENIZERS:
        legal = f"one of {', '.join(TOKENIZERS)}{nearest(name, TOKENIZERS)}{advice}"
        raise ConfigError(f"tokenizer={name} must be {legal}")
    return TOKENIZERS[name].config, name, {TOKENIZER: origin}


def method_class(method: str) -> type[TrainingRun]:
    """The RunConfig of a method by name, or of a class given as `package.module:Class`. Raises ConfigError."""
    if method in METHODS:
        return METHODS[method].config
    if ":" not in method:
        raise ConfigError(f"method={method} is not a method: {LEGAL_METHODS}{nearest(method, METHODS)}")
    given = imported("method", method, LEGAL_METHODS)
    found = getattr(given, "Config", None)
    if not (isinstance(found, type) and issubclass(found, RunConfig)):
        raise ConfigError(f"method={method}: {given.__name__} must be a subclass of ssl_vit.Method")
    try:
        found()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the defaults of {found.__module__}.{found.__name__} fail: {error}") from error
    return found


def imported(key: str, path: str, legal: str = "a name, or package.module:Name") -> Any:
    """What `package.module:Name`, given as the setting `key`, names outside of this package. Raises ConfigError."""
    module_name, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise ConfigError(f"{key}={path} must be {legal}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key}={path}: {error} (is it installed, or on PYTHONPATH?)") from error
    if not hasattr(module, name):
        raise ConfigError(f"{key}={path}: {module_name} has no {name}{nearest(name, vars(module))}")
    return getattr(module, name)


def load_class(home: str) -> Any:
    """The class that `module:Class` names."""
    module, _, name = home.partition(":")
    return getattr(importlib.import_module(module), name)


def recipes(folder: str) -> dict[str, Path]:
    """Recipes in a folder of those that the project brings along: name -> file."""
    return {path.stem: path for path in sorted((_configs() / folder).glob("*.yaml"))}


def is_shipped(path: Path) -> bool:
    """Whether a recipe is one that the project brings along."""
    return path.resolve().is_relative_to(_configs())


def _configs() -> Path:
    package = Path(__file__).resolve().parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def recipe_path(folder: str, recipe: str) -> Path:
    """File of a recipe, by name or as a path that ends in .yaml or .yml. Raises ConfigError."""
    if recipe.endswith((".yaml", ".yml")):
        try:
            if not Path(recipe).expanduser().exists():
                raise ConfigError(f"recipe={recipe} is not a file")
            return require_regular(Path(recipe).expanduser(), "recipe")
        except (OSError, ValueError, RuntimeError) as error:  # the last of a home that nobody has
            raise ConfigError(str(error)) from None
    legal = recipes(folder)
    if recipe not in legal:
        owner = f"method={folder}" if folder in METHODS else "there"
        rule = f"{owner} has {', '.join(legal) or 'none'}, or give a path that ends in .yaml"
        raise ConfigError(f"recipe={recipe} is not a recipe: {rule}{nearest(recipe, legal)}")
    return legal[recipe]


def pop_name(tree: dict[str, Any], section: str) -> str:
    """Take `<section>.name`, which says what is trained and is no setting, out of a recipe; empty where it has none."""
    own = tree.get(section)
    if not isinstance(own, dict) or not isinstance(own.get("name"), str):
        return ""
    if len(own) == 1:
        del tree[section]
    return own.pop("name")


def recipe_tree(path: Path, section: str, name: str) -> dict[str, Any]:
    """What a recipe sets for a run whose own section is that. A run's config.yaml will do. Raises ConfigError."""
    tree = read_yaml(path)
    for key in (RunConfig.own_section, TOKENIZER, FINETUNE):
        other = pop_name(tree, key)
        if (other and (key, other) != (section, name)) or (key != section and isinstance(tree.get(key), Mapping)):
            found, wanted = (f"{key}={other}".rstrip("="), f"{section}={name}".rstrip("="))
            raise ConfigError(f"{path} is a recipe for {found}, not for {wanted}")
    of_a_run = tree.keys() >= set(OF_ONE_RUN)
    for key in OF_ONE_RUN:
        if key in tree and not of_a_run:
            raise ConfigError(f"{path}: {key}={shown(tree[key])} belongs on the command line, not in a recipe")
        tree.pop(key, None)
    return tree
