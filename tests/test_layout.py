"""The house keeps its layers, budgets and manners; read from the source, nothing is imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "ssl_vit").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))

# Lower never imports higher. A package is named by its folder.
LAYERS = [
    {"config"},
    {"runs", "distributed", "lock", "stop"},
    {"blocks", "encoder", "heads", "positions", "masking", "schedules", "ema", "maps"},
    {"optim", "checkpoint", "data", "progress", "guard"},
    {"sharding"},
    {"plan", "command", "objective"},
    {"tokenizers"},
    {"methods", "evaluate"},
    {"monitor"},
    {"run_dir", "training", "pretrain", "train_tokenizer", "finetune", "benchmark"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room(path: Path) -> str:
    """encoder for ssl_vit/models/vit.py, data for ssl_vit/data/transforms/crops.py."""
    return path.relative_to(ROOT / "ssl_vit").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in SOURCES if room(p) != "__init__"], ids=lambda p: str(p.relative_to(ROOT)))
def test_lower_layers_never_import_higher_ones(path):
    own = LEVEL[room(path)]
    for name in imports(path):
        if name.startswith("ssl_vit."):
            other = name.split(".")[1]
            assert LEVEL[other] <= own, f"{path.name} (layer {own}) imports {name} (layer {LEVEL[other]})"


def test_methods_do_not_import_one_another_and_evaluation_imports_no_method():
    names = [path.stem for path in (ROOT / "ssl_vit/methods").glob("*.py") if path.stem not in ("__init__", "base")]
    for path in [*(ROOT / "ssl_vit/methods").glob("*.py"), *(ROOT / "ssl_vit/evaluate").glob("*.py")]:
        others = {f"ssl_vit.methods.{name}" for name in names} - {f"ssl_vit.methods.{path.stem}"}
        assert not imports(path) & others, path
    for path in (ROOT / "ssl_vit/evaluate").glob("*.py"):
        assert not any(name.startswith("ssl_vit.methods") for name in imports(path)), path


def test_configuration_knows_neither_torch_nor_numpy():
    for path in (ROOT / "ssl_vit/config").glob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "numpy", "pytorch_lightning"}, path


@pytest.mark.parametrize("path", [*SOURCES, *TOOLS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_keep_their_budget(path):
    lines = len(path.read_text().splitlines())
    budget = 400
    if path.parent.name == "methods":
        budget = 150 if path.stem == "base" else 250
    if path.parent.name == "tools":
        budget = 60
    assert lines <= budget, f"{path.name} has {lines} lines, its budget is {budget}"
    assert path.stem not in {"utils", "common", "misc", "helpers"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_and_public_function_says_what_it_is(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_nothing_unpickles_code():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("weights_only") == "True", path
        assert "pickle" not in imports(path), path
