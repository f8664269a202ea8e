"""One optimizer step of a method: ours beside the same step of the libraries that have it, in turn in one process."""

import json
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import step_beit, step_dino, step_mae
from benchmarks.baselines import Step, StepSetting, timed
from ssl_vit.config.evaluation_schema import BenchmarkConfig

STEPS: dict[str, Any] = {"mae": step_mae, "dino": step_dino, "beit": step_beit}
"""By method: batch_of(batch_size, setting), and BASELINES, which makes each side's step; the first of them is ours."""
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations a second of a GPU, by a part of its name (the makers' data sheets)."""
WARM_UP = 3
"""Steps before any is timed: the first ones allocate, and compile."""
MATRIX = 2048
"""Side of the square matrices whose product says what a CPU can do."""


def name_of(device: torch.device) -> str:
    """The device for people."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def best_rate(setting: StepSetting) -> float | None:
    """Operations a second of the device's matrix products: on CPUs measured, of GPUs the data sheet's; None: unknown.

    A CPU's is the best of five products of large square matrices, in the precision of the setting.
    """
    if setting.device.type == "cuda":
        name = name_of(setting.device)
        return next((rate for part, rate in PEAK_BF16.items() if part in name), None) if setting.bf16 else None
    a, b = (torch.randn(MATRIX, MATRIX, dtype=torch.bfloat16 if setting.bf16 else torch.float32) for _ in range(2))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - start)
    return 2 * MATRIX**3 / min(seconds)


def operations(step: Step, batch: Any) -> int:
    """Floating-point operations of the matrix products of one step, attention's included."""
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not know every fused kernel, but it knows products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step(batch)
    return counter.get_total_flops()


def compare(method: str, setting: StepSetting, batch_size: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Median seconds of each side, in turn; share of the device's rate (MFU); on a GPU peak memory; then ratios.

    A side's peak memory holds its weights, moments and gradients, not those of the others. The operations of MFU are
    ours for all.
    """
    device, on_gpu = setting.device, setting.device.type == "cuda"
    about: dict[str, Any] = {"suite": "step", "method": method, "size": setting.size, "device": name_of(device)}
    about |= {"precision": "bf16" if setting.bf16 else "fp32", "compile": setting.compiled, "batch_size": batch_size}
    batch, baselines = STEPS[method].batch_of(batch_size, setting), STEPS[method].BASELINES
    rate = best_rate(setting)
    plain = StepSetting(device, setting.size, setting.bf16)
    flops = operations(baselines["ours"](plain), batch) if rate else 0
    steps: dict[str, Step] = {}
    peaks: dict[str, dict[str, float]] = {}
    for who, make in baselines.items():
        before = torch.cuda.memory_allocated() if on_gpu else 0
        steps[who] = make(setting)
        for _ in range(WARM_UP):
            timed(steps[who], batch, device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            timed(steps[who], batch, device)
            peaks[who] = {"peak_gb": round((torch.cuda.max_memory_allocated() - before) / 1e9, 2)}
    taken: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(repeats):
        for who, step in steps.items():
            taken[who].append(timed(step, batch, device))
    for who, seconds in taken.items():
        second = median(seconds)
        row = about | {"who": who, "seconds": round(second, 4), "images_per_second": round(batch_size / second, 1)}
        fraction = {"mfu": round(flops / second / rate, 3)} if rate else {}
        yield row | fraction | peaks.get(who, {})
    for who in list(taken)[1:]:
        ratios = [theirs / ours for ours, theirs in zip(taken["ours"], taken[who], strict=True)]
        yield about | {"who": who, "ratio": round(median(ratios), 2)}


def run(config: BenchmarkConfig) -> None:
    """Print one JSON object a line."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = StepSetting(device, config.size, config.precision == "bf16", config.compile)
    for line in compare(config.method, setting, config.batch_size, config.repeats):
        print(json.dumps(line), flush=True)
