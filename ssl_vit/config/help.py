"""Say what can be set and what was: `--help` pages and the table of resolved values, from the dataclasses' own text."""

import ast
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.recipes import FINETUNE, TOKENIZER, method_class, recipes
from ssl_vit.config.resolve import Resolved, Setting, kind, read_tokenizer, settings_of, shown
from ssl_vit.config.schema import RunConfig

# What most runs set; the rest is on the method's own page.
COMMON = (
    "data.source",
    "data.path",
    "data.batch_size",
    "data.workers",
    "encoder.size",
    "encoder.patch_size",
    "encoder.image_size",
    "optim.base_lr",
    "trainer.max_epochs",
    "trainer.max_minutes",
    "trainer.devices",
    "trainer.precision",
    "run_dir",
    "seed",
    "resume",
    "init_from",
)


def run_help(arguments: Iterable[str], usage: str) -> str:
    """The page of the method that `method=` names among the arguments, else the overview. Raises ConfigError."""
    method = next((arg.partition("=")[2] for arg in arguments if arg.startswith("method=")), "")
    if not method:
        return overview(usage)
    names = ", ".join(recipes(method)) or "path/to.yaml"
    note = f"Recipes: {names}. A recipe changes some of the defaults below; --dry-run shows what a run resolves to."
    return help_text(method_class(method), f"{usage}\n\n{_wrap(note)}")


def tokenizer_help(arguments: Iterable[str], usage: str) -> str:
    """The settings of the tokenizer that recipe= or method= names among the arguments, after the recipes there are."""
    args = [arg for arg in arguments if arg.startswith(("recipe=", "method="))]
    config = read_tokenizer(args).config
    lines = [_wrap(_headline(path), f"  recipe={name}") for name, path in recipes(TOKENIZER).items()]
    return help_text(type(config), "\n".join([usage, "", "recipes", *lines]))


def finetune_help(usage: str) -> str:
    """Every setting of a fine-tuning, after the recipes there are."""
    lines = [_wrap(_headline(path), f"  recipe={name}") for name, path in recipes(FINETUNE).items()]
    return help_text(FinetuneRun, "\n".join([usage, "", "recipes", *lines]))


def overview(usage: str) -> str:
    """The methods, their recipes and the settings that most runs change."""
    methods = []
    for method, config_class in METHODS.items():
        methods.append(_wrap(_summary(config_class), f"  method={method}"))
        methods += [_wrap(_headline(path), f"    recipe={name}") for name, path in recipes(method).items()]
    methods.append(_wrap("Your own, with recipe=path/to.yaml.", "  method=package.module:Class"))
    settings = settings_of(RunConfig())
    common = [_wrap(_meaning(key, settings[key]), f"  {key}=") for key in COMMON]
    more = _wrap("method=NAME --help shows all settings of a method, with their defaults.")
    return "\n".join([usage, "", "methods", *methods, "", "common settings", *common, "", more])


def help_text(config_class: type, usage: str) -> str:
    """Every setting of a configuration as `key=default`, its type and its meaning, section by section."""
    sections = {"": [_wrap(_summary(config_class))]}
    for key, setting in settings_of(config_class()).items():
        section = key.rpartition(".")[0]
        lines = sections.setdefault(section, ["", _wrap(f"{section}: {_summary(setting.owner)}")])
        lines.append(_wrap(_meaning(key, setting), f"  {key}={shown(setting.default)}"))
    return "\n".join([usage, "", *(line for lines in sections.values() for line in lines)])


def resolved_table(resolved: Resolved) -> str:
    """Every value and where it came from: `*` marks what is not a default; on a terminal it is bold as well."""
    rows = [("method", resolved.origin.get("method", "command line"), resolved.method)] if resolved.method else []
    for key, setting in settings_of(resolved.config).items():
        rows.append((key, resolved.origin[key], shown(setting.default)))
    key_width, origin_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = []
    for key, origin, value in rows:
        changed = origin != "default"
        line = f"{'*' if changed else ' '} {key:<{key_width}}  {origin:<{origin_width}}  {value}".rstrip()
        lines.append(f"\x1b[1m{line}\x1b[0m" if changed and bold else line)
    return "\n".join(lines)


def field_doc(owner: type, name: str) -> str:
    """The string under a dataclass's field, or under the field that it inherits or overrides; empty without one."""
    docs = (_module_docs(base.__module__).get(base.__qualname__, {}).get(name) for base in owner.__mro__)
    return next((doc for doc in docs if doc), "")


@cache
def _module_docs(module: str) -> dict[str, dict[str, str]]:
    """Qualified class name -> field -> the string under it, from the module's source; empty where it has none."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return {}
    return dict(_class_docs(ast.parse(source)))


def _class_docs(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield prefix + child.name, _docs_in(child.body)
            yield from _class_docs(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef):
            yield from _class_docs(child, f"{prefix}{child.name}.<locals>.")


def _docs_in(body: list[ast.stmt]) -> dict[str, str]:
    docs = {}
    for statement, below in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                docs[statement.target.id] = " ".join(text.value.split())
    return docs


def _meaning(key: str, setting: Setting) -> str:
    doc = field_doc(setting.owner, key.rpartition(".")[2])
    return doc if setting.hint is Any else f"({kind(setting.hint)}) {doc}"


def _summary(config_class: type) -> str:
    """The class's docstring on one line, but not the signature that dataclass puts where there is none."""
    text = " ".join((config_class.__doc__ or "").split())
    return "" if text.startswith(f"{config_class.__name__}(") else text


def _headline(recipe: Path) -> str:
    """The comment in a recipe's first line."""
    first = recipe.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def _wrap(text: str, label: str = "") -> str:
    """Text wrapped to the terminal; beside its label, in a column of its own."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    column = 38 if label else 0
    first = label.ljust(column - 1) + " " if label else ""
    wrapped = textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * column,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(wrapped) or label
