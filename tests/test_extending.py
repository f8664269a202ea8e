"""docs/extending.md and docs/plugin.md are right: their files are whole, and their commands run."""

import re
import runpy
import shlex
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
from PIL import Image

import ssl_vit
from ssl_vit.cli.main import run_command

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "extending.md").read_text()
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
def test_the_scripts_run(file, here, monkeypatch):
    few = partialmethod(pl.Trainer.__init__, limit_train_batches=2)
    monkeypatch.setattr(pl.Trainer, "__init__", few)
    assert isinstance(runpy.run_path(file)["method"], ssl_vit.Method)


def test_the_page_on_lightning_is_right(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "plugin.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in range(8):
        Image.fromarray(np.full((70, 70, 3), 30 * number, dtype=np.uint8)).save(f"images/{number}.png")
    names: dict[str, Any] = {}
    for printed, small in {
        "max_epochs=50": "max_epochs=1",
        "batch_size=64": "batch_size=4, workers=0",
        '"size": "tiny"': '"embed_dim": 16, "depth": 2, "num_heads": 2',
        "local_size=32": "local_size=32, prototypes=64, head_hidden=16, head_bottleneck=8",
    }.items():
        assert printed in code
        code = code.replace(printed, small)
    exec(code, names)
    assert sum(map(len, names["features"])) == 8
    assert ssl_vit.load_encoder(tmp_path).metadata["mean"] == names["data"].data.mean


def test_the_method_is_short():
    assert len(FILES["my_simmim.py"].splitlines()) <= 45
