"""YAML that holds nothing but mappings, lists and text: nothing in it explodes, is made or is looked up."""

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from ssl_vit.config.checks import ConfigError
from ssl_vit.config.reading import DEEPEST, read_text

LARGEST_YAML = 50_000  # bytes; ours have some thousand, and more would take PyYAML seconds


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can explode, without tags, nested a few levels deep; no key is given twice."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        problem = f"it is nested deeper than {DEEPEST} levels" if self.depth > DEEPEST else ""
        if getattr(event, "anchor", None):  # an alias has that of what it repeats
            problem = "anchors and aliases are not read: write the values out"
        elif getattr(event, "tag", None) not in (None, "!"):
            problem = f"the tag {event.tag} is not read: write plain values"
        if problem:
            raise ConstructorError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = set()
        for key, _ in node.value:
            is_text = isinstance(key, yaml.ScalarNode)
            if not is_text or key.value in keys:
                problem = f"found duplicate key {key.value}" if is_text else "a key must be text"
                raise ConstructorError(problem=problem, problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep=deep)


class TextLoader(PlainLoader):
    """Whose scalars stay text, where YAML would read `path: 007` as 7."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, its scalars as text; raises ConfigError with the line of what cannot be read."""
    try:
        tree = yaml.load(read_text(path, LARGEST_YAML), TextLoader) or {}
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", str(error).splitlines()[0])
        raise ConfigError(f"{path}{f', line {mark.line + 1}' if mark else ''}: {problem}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: settings are written key: value, this is a {type(tree).__name__}")
    return tree
