"""How long a command takes to answer, each in a process of its own, beside `import torch` and Lightning's import."""

import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from ssl_vit.config.evaluation_schema import BenchmarkConfig

TOOLS = Path(__file__).resolve().parents[2] / "tools"
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import pytorch_lightning": ["-c", "import pytorch_lightning"],
    "import ssl_vit": ["-c", "import ssl_vit"],
    "ssl_vit.VisionTransformer": ["-c", "import ssl_vit; ssl_vit.VisionTransformer"],
    "a typo": [str(TOOLS / "pretrain.py"), "method=mae", "optim.lr=1"],
    "--help": [str(TOOLS / "pretrain.py"), "--help"],
    "--dry-run": [str(TOOLS / "pretrain.py"), "method=mae", "--dry-run"],
}


def run(config: BenchmarkConfig) -> None:
    """Print median seconds of each command as one JSON object a line; the first turn warms the disk's cache."""
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(config.repeats + 1):
        for name, args in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, *args], capture_output=True, check=False)
            if turn:
                taken[name].append(time.perf_counter() - start)
    for name, seconds in taken.items():
        print(json.dumps({"suite": "startup", "command": name, "seconds": round(median(seconds), 2)}), flush=True)
