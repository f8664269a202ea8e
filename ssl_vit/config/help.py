"""Say what can be set and what was: `--help` pages and the table of resolved values, from the dataclasses' own text."""

import ast
import inspect
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable
from functools import cache
from itertools import pairwise
from typing import Any

from ssl_vit.config.checks import kind, shown
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.recipes import recipe_folder, recipes, trained
from ssl_vit.config.resolve import Resolved
from ssl_vit.config.schema import RunConfig, TrainingRun
from ssl_vit.config.values import Setting, settings_of

COMMON = (
    *("data.source", "data.path", "data.batch_size", "data.workers"),
    *("encoder.size", "encoder.patch_size", "encoder.image_size", "optim.base_lr"),
    *("trainer.max_epochs", "trainer.max_minutes", "trainer.devices", "trainer.precision"),
    *("run_dir", "seed", "resume", "init_from"),
)


def help_page(config_class: type, usage: str, arguments: Iterable[str] = ()) -> str:
    """What `--help` answers: recipes and settings of what is named, or an overview of methods. Raises ConfigError."""
    if not issubclass(config_class, TrainingRun):
        return help_text(config_class, usage)
    section = config_class.own_section
    named = dict(arg.split("=", 1) for arg in arguments if arg.startswith((f"{section}=", "recipe=")))
    if config_class is RunConfig and not named.get("method"):
        return overview(usage)
    found, name, _ = trained(config_class, named)
    note = _wrap("A recipe changes some of the defaults below; --dry-run --all shows what a run resolves to.")
    lines = [usage, "", "recipes", *_recipe_lines(recipe_folder(section, name), "  "), note]
    return help_text(found, "\n".join(lines))


def overview(usage: str) -> str:
    """The methods, their recipes and the settings that most runs change."""
    methods = []
    for method, row in METHODS.items():
        methods += [_wrap(_summary(row.config), f"  method={method}"), *_recipe_lines(method, "    ")]
    methods.append(_wrap("Your own, a subclass of ssl_vit.Method.", "  method=package.module:Class"))
    settings = settings_of(RunConfig())
    common = [_wrap(_meaning(key, settings[key]), f"  {key}=") for key in COMMON]
    more = _wrap("method=NAME --help shows all settings of a method, with their defaults.")
    return "\n".join([usage, "", "methods", *methods, "", "common settings", *common, "", more])


def _recipe_lines(folder: str, indent: str) -> list[str]:
    first = {name: path.read_text(encoding="utf-8").partition("\n")[0] for name, path in recipes(folder).items()}
    return [_wrap(line.lstrip("# ") * line.startswith("#"), f"{indent}recipe={name}") for name, line in first.items()]


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
    config, origin = resolved.config, resolved.origin
    values = {key: shown(setting.default) for key, setting in settings_of(config).items()}
    if isinstance(config, TrainingRun) and resolved.name:
        values = {config.own_section: resolved.name} | values
    key_width, origin_width = max(map(len, values)), max(len(origin[key]) for key in values)
    bold = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    lines = []
    for key, value in values.items():
        changed = origin[key] != "default"
        line = f"{'*' if changed else ' '} {key:<{key_width}}  {origin[key]:<{origin_width}}  {value}".rstrip()
        lines.append(f"\x1b[1m{line}\x1b[0m" if changed and bold else line)
    return "\n".join(lines)


def field_doc(owner: type, name: str) -> str:
    """The string under a dataclass's field, or under the field that it inherits or overrides; empty without one."""
    return next((docs[name] for docs in map(_docs_of, owner.__mro__) if name in docs), "")


@cache
def _docs_of(owner: type) -> dict[str, str]:
    try:
        [node] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError):
        return {}
    docs = {}
    for above, below in pairwise(node.body if isinstance(node, ast.ClassDef) else []):
        match above, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _meaning(key: str, setting: Setting) -> str:
    doc = field_doc(setting.owner, key.rpartition(".")[2])
    return doc if setting.hint is Any else f"({kind(setting.hint)}) {doc}"


def _summary(config_class: type) -> str:
    text = " ".join((config_class.__doc__ or "").split())
    return "" if text.startswith(f"{config_class.__name__}(") else text  # dataclass puts a signature where none is


def _wrap(text: str, label: str = "") -> str:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    column = 38 if label else 0
    first = label.ljust(column - 1) + " " if label else ""
    wrapper = textwrap.TextWrapper(width, first, " " * column, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text) or label
