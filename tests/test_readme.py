"""The README is right: files exist, Python runs. Its commands are tested with those of the other pages."""

import re
from pathlib import Path

import torch

import ssl_vit
from ssl_vit.config.pretrain_schema import METHODS
from ssl_vit.methods import method_named

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_it_is_short_and_shows_what_exists():
    assert len(README.splitlines()) <= 220
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for file in re.findall(r"`((?:ssl_vit|docs|tools|configs)/[\w./-]+\.\w+)`", README):
        assert (ROOT / file).exists(), file


def test_the_encoder_block_runs(tmp_path):
    encoder = ssl_vit.VisionTransformer(embed_dim=32, depth=4, num_heads=2, image_size=32, patch_size=8)
    ssl_vit.save_encoder(encoder, tmp_path)
    code = next(block for block in PYTHON if "load_encoder" in block)
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
