"""docs/extending.md is right: its files are whole, and its commands run."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

import ssl_vit
from ssl_vit.cli.main import run_command

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
SMALL = [
    "encoder.embed_dim=16",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "trainer.max_steps=2",
    "monitor.every_epochs=0",
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_commands_run(here, capsys):
    for command in COMMANDS:
        name, *args = shlex.split(command.partition("tools/")[2].replace(".py", "", 1))
        run_command(name, *args, *(SMALL if name == "pretrain" and "--help" not in args else []))
    assert len(COMMANDS) == 5
    shown = capsys.readouterr().out
    assert "* method.mask_ratio" in shown
    assert "method.mask_ratio=0.6" in shown
    assert '"protocol": "nearest centroid' in shown
    assert {path.name.split("-")[0] for path in (here / "runs").iterdir()} == {"simmim", "mae"}


@pytest.mark.parametrize("file", ["train_simmim.py", "my_tokens.py"])
def test_the_scripts_run(file, here):
    assert isinstance(runpy.run_path(file)["method"], ssl_vit.Method)


def test_the_method_is_short():
    assert len(FILES["my_simmim.py"].splitlines()) <= 45
