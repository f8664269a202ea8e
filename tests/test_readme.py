"""The README is right: commands parse, files exist, Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import ssl_vit
from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.evaluation_schema import KNNConfig, LinearProbeConfig, ShardsConfig
from ssl_vit.config.finetune_schema import FinetuneRun, PredictConfig
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.config.resolve import resolve
from ssl_vit.config.schema import RunConfig
from ssl_vit.config.tokenizer_schema import TOKENIZERS, TokenizerRun
from ssl_vit.methods import method_named

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", README, re.DOTALL) for kind in ("bash", "python")}
COMMANDS = [line for block in BLOCKS["bash"] for line in block.splitlines() if "python tools/" in line]


def test_it_is_short_and_shows_what_exists():
    assert len(README.splitlines()) <= 220
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for file in re.findall(r"`((?:ssl_vit|docs|tools|configs)/[\w./-]+\.\w+)`", README):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_legal(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # no run to resume here
    args = shlex.split(command, comments=True)
    tool = next(arg for arg in args if arg.startswith("tools/"))
    assert (ROOT / tool).exists()
    if tool.endswith("pretrain.py"):
        settings = [arg for arg in args[args.index(tool) + 1 :] if arg != "--dry-run"]
        assert resolve_run(RunConfig, settings).name in METHODS
    if tool.endswith("benchmark.py"):
        assert args[args.index(tool) + 1] == "suite=doctor"
        assert resolve_run(RunConfig, args[args.index(tool) + 2 :]).name in METHODS
    if tool.endswith(("linear_probe.py", "knn.py")):
        config_class = KNNConfig if tool.endswith("knn.py") else LinearProbeConfig
        assert resolve(config_class, args[args.index(tool) + 1 :]).config
    if tool.endswith("finetune.py"):
        monkeypatch.chdir(_with_an_encoder(tmp_path))
        settings = [arg for arg in args[args.index(tool) + 1 :] if not arg.startswith("encoder=")]
        assert resolve_run(FinetuneRun, settings).config.recipe
    if tool.endswith("predict.py"):
        assert resolve(PredictConfig, args[args.index(tool) + 1 :]).config.images
    if tool.endswith("make_shards.py"):
        assert resolve(ShardsConfig, args[args.index(tool) + 1 :]).config.out
    if tool.endswith("train_tokenizer.py"):
        assert resolve(TokenizerRun, args[args.index(tool) + 1 :]).name in TOKENIZERS


def _with_an_encoder(folder: Path) -> Path:
    encoder = ssl_vit.VisionTransformer(embed_dim=32, depth=1, num_heads=2, image_size=32, patch_size=8)
    ssl_vit.save_encoder(encoder, folder / "runs/mae-digits-1", recipe="digits", data={"source": "digits"})
    return folder


def test_the_encoder_block_runs(tmp_path):
    encoder = ssl_vit.VisionTransformer(embed_dim=32, depth=4, num_heads=2, image_size=32, patch_size=8)
    ssl_vit.save_encoder(encoder, tmp_path)
    code = next(block for block in BLOCKS["python"] if "load_encoder" in block)
    code = re.sub(r'load_encoder\(".*?"\)', f"load_encoder({str(tmp_path)!r})", code)
    names = {"images": torch.randn(2, 3, 32, 32)}
    exec(code, names)
    assert names["tokens"].shape == (2, 17, 32)
    assert names["features"].shape == (2, 32)
    assert [m.shape for m in names["maps"]] == [(2, 32, 4, 4)] * 4
    assert names["attention"].shape == (2, 2, 16)


def test_every_method_of_the_configuration_has_a_class():
    for name, row in METHODS.items():
        assert method_named(name).Config is row.config
