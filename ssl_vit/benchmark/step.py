"""One optimiser step of DINO ViT-S/16: ours beside the same step put together from timm's and lightly's parts.

A peer is timed in two ways, because how its parts are put together matters as much as they do.

Both get the same crops, already normalised on the device, 2 x 224 + 6 x 96 pixels, K = 65,536 prototypes, bf16
autocast, and do all that a step does: teacher, student, loss, centre, backward pass, clipping, AdamW, moving average.

Letters: B pictures.
"""

import json
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ssl_vit.blocks import compile_blocks
from ssl_vit.config.tools import BenchmarkConfig
from ssl_vit.methods.dino import DINO
from ssl_vit.optim import clip_each, decay_groups

GLOBAL, LOCAL, LOCAL_CROPS, PROTOTYPES = 224, 96, 6, 65536
PEAK_BF16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 operations a second of a GPU, by a word of its name (the makers' data sheets)."""
Step = Callable[[list[Tensor]], Tensor]
"""Crops to the loss, after everything a step does."""


def ours(device: torch.device, compiled: bool) -> Step:
    """The step as DINO does it in a trainer."""
    method = DINO(local_crops=LOCAL_CROPS, prototypes=PROTOTYPES).to(device).train()
    if compiled:
        compile_blocks(method)
    groups = decay_groups(method.named_parameters(), 0.04, method.decays)
    optimizer = torch.optim.AdamW(groups, lr=5e-4, fused=True)

    def step(crops: list[Tensor]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            (loss,) = method.losses(crops).values()
        loss.backward()
        clip_each(method.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
        return loss.detach()

    return step


def parts(device: torch.device, compiled: bool, by_view: bool = False) -> Step:
    """The step from timm's Vision Transformer and lightly's head, loss and moving average.

    Args:
        by_view: one pass for each crop, as lightly's documentation has it; else one for each crop size, as DINO's
            authors do, and one pass of the head.
    """
    import timm
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    def network(drop_path: float) -> nn.Sequential:
        body = timm.create_model(
            "vit_small_patch16_224", num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path
        )
        return nn.Sequential(body, DINOProjectionHead(384, 2048, 256, PROTOTYPES, freeze_last_layer=1)).to(device)

    student, teacher = network(0.1).train(), network(0.0).eval().requires_grad_(False)
    teacher.load_state_dict(student.state_dict())
    criterion = DINOLoss(PROTOTYPES).to(device)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=5e-4, fused=True)
    bodies = [torch.compile(net[0]) if compiled else net[0] for net in (student, teacher)]

    def step(crops: list[Tensor]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            if by_view:
                with torch.no_grad():
                    told = [teacher[1](bodies[1](crop)) for crop in crops[:2]]
                said = [student[1](bodies[0](crop)) for crop in crops]
            else:
                B, large, small = len(crops[0]), torch.cat(crops[:2]), torch.cat(crops[2:])
                with torch.no_grad():
                    told = teacher[1](bodies[1](large)).split(B)
                said = student[1](torch.cat([bodies[0](large), bodies[0](small)])).split(B)
            loss = criterion([logits.float() for logits in told], [logits.float() for logits in said])
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        update_momentum(student, teacher, 0.996)
        return loss.detach()

    return step


def crops_of(batch_size: int, device: torch.device) -> list[Tensor]:
    """2 global and 6 local crops of noise [B, 3, side, side]."""
    sides = [GLOBAL] * 2 + [LOCAL] * LOCAL_CROPS
    return [torch.randn(batch_size, 3, side, side, device=device) for side in sides]


def timed(step: Step, crops: list[Tensor]) -> float:
    """Seconds of one step, the device's work included."""
    start = time.perf_counter()
    step(crops)
    if crops[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def operations(step: Step, crops: list[Tensor]) -> int:
    """Floating-point operations of the matrix products of one step."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step(crops)
    return counter.get_total_flops()


def compare(batch_size: int, repeats: int, compiled: bool) -> Iterator[dict[str, Any]]:
    """Median seconds of each, in turn; their ratio; on a GPU also memory and the share of its peak (MFU)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    about = {"suite": "step", "device": name, "batch_size": batch_size, "compile": compiled}
    crops = crops_of(batch_size, device)
    best = next((rate for word, rate in PEAK_BF16.items() if word in name), None)
    flops = operations(ours(device, False), crops) if best else 0
    peak: dict[str, dict[str, float]] = {}
    steps = {
        "ours": ours(device, compiled),
        "lightly + timm, by crop": parts(device, compiled, by_view=True),
        "lightly + timm, by size": parts(device, compiled),
    }
    for who, step in steps.items():  # the first steps allocate, and compile
        for _ in range(3):
            timed(step, crops)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            timed(step, crops)
            peak[who] = {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2)}
    taken: dict[str, list[float]] = {who: [] for who in steps}
    for _ in range(repeats):
        for who, step in steps.items():
            taken[who].append(timed(step, crops))
    for who, seconds in taken.items():
        second = median(seconds)
        row = about | {"who": who, "seconds": round(second, 4), "images_per_second": round(batch_size / second, 1)}
        share = {"mfu": round(flops / second / best, 3)} if best else {}
        yield row | share | peak.get(who, {})
    for who in list(taken)[1:]:
        ratios = [theirs / ours for ours, theirs in zip(taken["ours"], taken[who], strict=True)]
        yield about | {"who": who, "ratio": round(median(ratios), 2)}


def run(config: BenchmarkConfig) -> None:
    """Print one JSON object a line."""
    for line in compare(config.batch_size, config.repeats, config.compile):
        print(json.dumps(line), flush=True)
