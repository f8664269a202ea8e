"""How busy neighbors slow a training down, by how long OpenMP's threads spin at a barrier before they sleep.

Steps per second of MAE's digits recipe on two threads, beside 0, 1 and 2 loops that keep a core busy; settings in turn,
each in a process of its own, medians over the turns.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from ssl_vit.config.evaluation_schema import BenchmarkConfig

SETTINGS = {
    "default": {},
    "GOMP_SPINCOUNT=300": {"GOMP_SPINCOUNT": "300"},
    "GOMP_SPINCOUNT=3000": {"GOMP_SPINCOUNT": "3000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=30000": {"GOMP_SPINCOUNT": "30000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
NEIGHBORS, SECONDS = (0, 1, 2), 6.0
STEPS = """
import subprocess, sys, time, torch
from ssl_vit.config.pretrain_schema import MAERun
from ssl_vit.config.resolve import resolve
from ssl_vit.methods.mae import MAE

torch.set_num_threads(2)
method = MAE.from_run(resolve(MAERun, ["method=mae"]).config)
images = torch.randn(64, 3, 32, 32)
optimizer = torch.optim.AdamW(method.parameters(), fused=True)


def steps(seconds):
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        optimizer.zero_grad()
        sum(method.losses(images).values()).backward()
        optimizer.step()
        count += 1
    return count / passed


steps(1.0)
for neighbors in map(int, sys.argv[2:]):
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbors)]
    try:
        print(neighbors, steps(float(sys.argv[1])), flush=True)
    finally:
        for loop in busy:
            loop.kill()
"""


def run(config: BenchmarkConfig) -> None:
    """Print median steps per second of each setting as one JSON object a line."""
    root = str(Path(__file__).resolve().parents[2])
    free = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    rates: dict[str, dict[str, list[float]]] = {name: {} for name in SETTINGS}
    for _ in range(config.repeats):
        for name, setting in SETTINGS.items():
            command = [sys.executable, "-c", STEPS, str(SECONDS), *map(str, NEIGHBORS)]
            env = free | setting | {"PYTHONPATH": root}
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            for line in done.stdout.splitlines():
                neighbors, rate = line.split()
                rates[name].setdefault(neighbors, []).append(float(rate))
    for name, found in rates.items():
        medians = {neighbors: round(median(values), 2) for neighbors, values in found.items()}
        print(json.dumps({"suite": "spin", "setting": name, "steps_per_second_beside": medians}), flush=True)
