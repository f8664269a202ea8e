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


def loaded_after(*stages: str) -> list[set[str]]:
    """Top-level modules that a fresh interpreter has after each of some pieces of code, run in turn."""
    show = "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    script = "\n".join(["import sys", *(f"{stage}\n{show}" for stage in stages)])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stderr.splitlines()[-len(stages) :]]


def test_what_the_package_and_a_typo_and_a_dry_run_load():
    package, name, typo, plan = loaded_after(
        "import ssl_vit",
        "try: ssl_vit.SimCLR\nexcept AttributeError as error: assert 'MAE' in str(error)\nelse: 1 / 0",
        "from ssl_vit.cli.main import guarded\nassert guarded(['pretrain', 'method=mae', 'optim.lr=1']) == 2",
        "assert guarded(['pretrain', 'method=mae', '--dry-run']) == 0",
    )
    assert not (package | name) & (HEAVY | {"torch", "numpy", "yaml"})
    assert not typo & (HEAVY | {"torch", "numpy"})
    assert "torch" in plan
    assert not plan & (HEAVY | {"sympy"})  # sympy comes with torch._dynamo, four seconds


def test_the_encoder_needs_torch_alone_and_load_encoder_safetensors_too(tmp_path):
    encoder, loaded = loaded_after(
        "import ssl_vit; encoder = ssl_vit.VisionTransformer(size='tiny', image_size=32)",
        f"import pathlib; ssl_vit.save_encoder(encoder, pathlib.Path({str(tmp_path)!r}))\n"
        f"ssl_vit.load_encoder({str(tmp_path)!r})",
    )
    assert not encoder & (HEAVY | {"yaml", "safetensors", "PIL"})
    assert "safetensors" in loaded
    assert not loaded & (HEAVY | {"yaml", "PIL"})
