"""Settings of pretrainings that last a second, and what they leave; for the tests that kill them."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

IMAGE_SIZE, PATCH_SIZE = 16, 4
COMMON = [
    f"encoder.image_size={IMAGE_SIZE}",
    f"encoder.patch_size={PATCH_SIZE}",
    "encoder.embed_dim=16",
    "encoder.depth=2",
    "encoder.num_heads=2",
    "encoder.drop_path=0.2",
    "trainer.max_epochs=3",
    "trainer.max_minutes=null",
    "trainer.precision=32-true",
    "trainer.log_every_steps=1",
    "trainer.checkpoint_every_steps=2",
    "data.batch_size=256",
    "data.workers=0",
    "monitor.every_epochs=1",
    "monitor.train_limit=100",
    "monitor.test_limit=50",
]
"""Five steps an epoch, fifteen in all, and an online evaluation at the end of each epoch."""
METHODS = {
    "mae": ["method=mae", "method.decoder_embed_dim=16", "method.decoder_num_heads=2"],
    "dino": [
        "method=dino",
        "method.head_hidden=16",
        "method.head_bottleneck=8",
        "method.prototypes=16",
        "method.local_size=8",
    ],
    "beit": ["method=beit"],
}
STEPS = 15


def args_of(method: str, *changes: str) -> list[str]:
    """The settings of a small run, with some of them changed or more."""
    settings = dict(arg.split("=", 1) for arg in (*METHODS[method], *COMMON, *changes))
    return [f"{key}={value}" for key, value in settings.items()]


def steps_kept(run: Path) -> list[int]:
    """Steps of the checkpoints that a run has."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*.ckpt"))


def figures_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("throughput/")} for row in rows]


def last_step_logged(run: Path) -> int:
    """The last step in metrics.jsonl; -1 before there is one."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else -1


def state_of(run: Path) -> dict[str, Any]:
    """All that the last checkpoint holds, but for Lightning's notes and the size of metrics.jsonl."""
    checkpoint = torch.load(run / "checkpoints" / f"step-{STEPS:07}.ckpt", weights_only=True)
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def assert_same_end(run: Path, whole: Path) -> None:
    """Two runs have ended in the same state, the same encoder and the same figures, each once."""
    assert same(*(load_file(folder / "encoder.safetensors") for folder in (run, whole)))
    assert (run / "encoder.json").read_text() == (whole / "encoder.json").read_text()
    assert same(state_of(run), state_of(whole))
    assert figures_of(run) == figures_of(whole)
