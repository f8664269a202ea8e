"""The house keeps its floors, budgets and manners; read from the source, nothing is imported. Each test lists all
offenders."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "ssl_vit").rglob("*.py"))}
TOOLS = sorted((ROOT / "tools").glob("*.py"))

FLOORS = [
    ["config"],
    ["parallel", "run", "optim"],
    ["models"],
    ["data"],
    ["evaluate"],
    ["callbacks"],
    ["methods.base", "methods.guard"],
    ["tokenizers"],
    ["methods"],
    ["supervised", "interop"],
    ["train"],
    ["cli"],
]
"""Lower never imports higher. Rooms of one floor may import one another."""
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
SHARED_BY_METHODS = {"base", "guard", "heads", "masking", "losses"}

WORDS = re.compile(r"\b(pictures?|words?|facts|verdict|exam|judge)\b", re.IGNORECASE)
ALLOWED = {
    "ssl_vit/evaluate/evaluation.py": {'"""The protocol in a few words."""'},
    "ssl_vit/run/signals.py": {
        '"""The command that resumes the run of the one that was stopped; both from their first word on."""'
    },
}
"""Lines that mean plain English by them, by file."""


def module_of(path: Path) -> str:
    """models.vit for ssl_vit/models/vit.py, models for its __init__.py, the empty string for the root's."""
    parts = path.relative_to(ROOT / "ssl_vit").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def imports(tree: ast.AST) -> set[str]:
    """Dotted names that a file imports, inside functions too; `from a import b` is a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def own_imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports, without the package's name."""
    return {name.removeprefix("ssl_vit.") for name in imports(tree)} & MODULES.keys()


def level_of(module: str) -> int:
    return LEVEL.get(module, LEVEL.get(module.split(".")[0], len(FLOORS)))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def none(offenders: list[str]) -> None:
    """Fail with all of them."""
    assert not offenders, "\n".join(["", *offenders])


def test_every_room_is_on_a_floor_and_the_root_holds_no_module():
    rooms = {path.name for path in (ROOT / "ssl_vit").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert rooms <= LEVEL.keys()
    assert {path.name for path in (ROOT / "ssl_vit").glob("*.py")} <= {"__init__.py", "__main__.py"}


def test_lower_floors_never_import_higher_ones():
    none(
        [
            f"{module} imports {name}"
            for path, tree in SOURCES.items()
            if (module := module_of(path))
            for name in own_imports(tree)
            if level_of(name) > level_of(module)
        ]
    )


def test_methods_import_none_of_one_another():
    methods = {module for module in MODULES if module.startswith("methods.")}
    methods -= {f"methods.{name}" for name in SHARED_BY_METHODS}
    none(
        [
            f"{module} imports {name}"
            for module in methods
            for name in own_imports(SOURCES[MODULES[module]]) & (methods - {module})
        ]
    )


def test_configuration_knows_neither_torch_nor_numpy():
    heavy = {"torch", "numpy", "pytorch_lightning", "lightning", "torchvision"}
    none(
        [
            f"{short(path)} imports {name}"
            for path, tree in SOURCES.items()
            if module_of(path).split(".")[0] == "config"
            for name in imports(tree)
            if name.split(".")[0] in heavy
        ]
    )


def test_files_keep_their_budgets():
    def budget(path: Path) -> int:
        if path.parent == ROOT / "tools":
            return 20
        return 250 if path.parent.name == "methods" and path.stem != "base" else 400

    lines = {path: len(path.read_text().splitlines()) for path in (*SOURCES, *TOOLS)}
    none([f"{short(path)}: {n} lines, not {budget(path)}" for path, n in lines.items() if n > budget(path)])


def test_names_are_taken_once_and_say_something():
    files, classes = defaultdict(list), defaultdict(list)
    for path, tree in SOURCES.items():
        if path.name not in ("base.py", "__init__.py", "__main__.py") and module_of(path).split(".")[0] != "cli":
            files[path.name].append(short(path))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                classes[node.name].append(short(path))
    none([f"{name}: {', '.join(at)}" for taken in (files, classes) for name, at in taken.items() if len(at) > 1])
    assert not {"utils.py", "common.py", "misc.py", "helpers.py"} & files.keys()


def test_every_module_and_public_name_has_a_docstring():
    none(
        [
            f"{short(path)}: {getattr(node, 'name', 'the module')}"
            for path, tree in SOURCES.items()
            for node in (tree, *tree.body)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and not getattr(node, "name", "").startswith("_")
            and not ast.get_docstring(node)
        ]
    )


def test_nothing_unpickles_code():
    def unpickles(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "torch.load":
            return False
        return {k.arg: ast.unparse(k.value) for k in node.keywords}.get("weights_only") != "True"

    none(
        [
            short(path)
            for path, tree in SOURCES.items()
            if "pickle" in imports(tree) or any(unpickles(node) for node in ast.walk(tree))
        ]
    )


def test_the_fields_words_are_used():
    """image, token, metadata, evaluation, evaluate: docs and code say what others search for."""
    files = (*SOURCES, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md")
    none(
        [
            f"{short(path)}:{number}: {line.strip()}"
            for path in files
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if WORDS.search(line) and line.strip() not in ALLOWED.get(short(path), ())
        ]
    )


def test_the_readmes_file_map_is_the_tree():
    """A fenced block that begins with ssl_vit/: a line for each room, two spaces in, and one for each folder beside."""
    (block,) = re.findall(r"```\w*\n(ssl_vit/.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [(line.startswith("  "), line.split()[0].rstrip("/")) for line in block.splitlines() if line.strip()]
    rooms = {path.parent.name for path in SOURCES if path.parent.parent == ROOT / "ssl_vit"}
    assert sorted(name for inside, name in lines if inside) == sorted(rooms)
    assert sorted(name for inside, name in lines if not inside) == ["configs", "docs", "ssl_vit", "tests", "tools"]
