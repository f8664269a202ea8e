"""What each entry costs to import: measured by which modules a fresh interpreter has loaded, not by the clock."""

import subprocess
import sys

HEAVY = {
    "pytorch_lightning",
    "lightly",
    "torchvision",
    "torchmetrics",
    "sklearn",
    "tensorboard",
    "transformers",
    "timm",
}


def loaded_after(code: str) -> set[str]:
    """Top-level modules of a fresh interpreter after running code."""
    script = f"import sys\n{code}\nprint(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_ssl_vit_loads_nothing():
    assert not loaded_after("import ssl_vit") & (HEAVY | {"torch", "numpy", "yaml"})


def test_the_encoder_needs_torch_alone():
    code = "import ssl_vit; ssl_vit.VisionTransformer(size='tiny', image_size=32)"
    assert not loaded_after(code) & (HEAVY | {"yaml", "safetensors", "PIL"})


def test_load_encoder_needs_torch_and_safetensors_alone(tmp_path):
    loaded = loaded_after(
        f"import ssl_vit; e = ssl_vit.VisionTransformer(size='tiny', image_size=32); from pathlib import Path\n"
        f"ssl_vit.save_encoder(e, Path({str(tmp_path)!r})); ssl_vit.load_encoder({str(tmp_path)!r})"
    )
    assert "safetensors" in loaded
    assert not loaded & (HEAVY | {"yaml", "PIL"})


def test_a_typo_is_answered_without_torch():
    code = """
from ssl_vit.cli.main import main
try: main(["pretrain", "method=mae", "optim.lr=1"])
except SystemExit as done: assert done.code == 2
"""
    assert not loaded_after(code) & (HEAVY | {"torch", "numpy"})


def test_a_dry_run_loads_torch_but_not_lightning():
    code = """
from ssl_vit.cli.settings import print_plan, resolve_run
from ssl_vit.config.schema import RunConfig
print_plan(resolve_run(RunConfig, ["method=mae"]))
"""
    loaded = loaded_after(code)
    assert "torch" in loaded
    assert not loaded & (HEAVY | {"sympy"})  # sympy comes with torch._dynamo, four seconds


def test_an_unknown_name_is_answered_with_the_known_ones():
    code = (
        "import ssl_vit\ntry: ssl_vit.SimCLR\nexcept AttributeError as error: assert 'MAE' in str(error)\nelse: 1 / 0"
    )
    loaded_after(code)
