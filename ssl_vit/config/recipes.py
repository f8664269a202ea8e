"""Where the settings of a method, its recipes and those of the tokenizers are found."""

import importlib
from pathlib import Path

from ssl_vit.config.checks import ConfigError, nearest
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.schema import RunConfig

LEGAL_METHODS = f"one of {', '.join(METHODS)}, or package.module:Class"
TOKENIZER = "tokenizer"
"""Folder of the tokenizers' recipes, each of which names its method."""
FINETUNE = "finetune"
"""Folder of the fine-tunings' recipes, and the name that their runs begin with."""


def method_class(method: str) -> type[RunConfig]:
    """The RunConfig of a method by name, or of a class given as `package.module:Class`. Raises ConfigError."""
    if method in METHODS:
        return METHODS[method]
    module_name, colon, class_name = method.partition(":")
    if not colon:
        raise ConfigError(f"method={method} is not a method: {LEGAL_METHODS}{nearest(method, METHODS)}")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise ConfigError(f"method={method} must be {LEGAL_METHODS}")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"method={method}: {error} (is it installed, or on PYTHONPATH?)") from error
    if not hasattr(module, class_name):
        raise ConfigError(f"method={method}: {module_name} has no {class_name}{nearest(class_name, vars(module))}")
    config_class = getattr(getattr(module, class_name), "Config", None)
    if not (isinstance(config_class, type) and issubclass(config_class, RunConfig)):
        raise ConfigError(f"method={method}: {class_name}.Config must be a subclass of ssl_vit.config.schema.RunConfig")
    return config_class


def recipes(folder: str) -> dict[str, Path]:
    """Recipes that a method, TOKENIZER or FINETUNE brings along: name -> file."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    root = installed if installed.is_dir() else package.parent / "configs"
    return {path.stem: path for path in sorted((root / folder).glob("*.yaml"))}


def recipe_path(folder: str, recipe: str) -> Path:
    """File of a recipe, by name or as a path that ends in .yaml or .yml. Raises ConfigError."""
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe).expanduser()
        if not path.is_file():
            raise ConfigError(f"recipe={recipe} is not a file")
        return path
    if folder not in (*METHODS, TOKENIZER, FINETUNE):
        raise ConfigError(f"recipe={recipe} must be a path for method={folder}, such as recipe=path/to.yaml")
    legal = recipes(folder)
    if recipe not in legal:
        owner = "there" if folder in (TOKENIZER, FINETUNE) else f"method={folder}"
        rule = f"{owner} has {', '.join(legal) or 'none'}, or give a path that ends in .yaml"
        raise ConfigError(f"recipe={recipe} is not a recipe: {rule}{nearest(recipe, legal)}")
    return legal[recipe]
