"""How far a run is: what every schedule reads, by steps or by time, whichever limit is nearer."""

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

log = logging.getLogger("ssl_vit")
SLACK = 0.01  # fraction of a run by which its clock must be ahead of its steps before the clock counts


def fraction_done(trainer: pl.Trainer | None, broadcast: bool = True) -> float:
    """Fraction of the run done, in [0, 1]: of its steps, or of its time where `max_time` ends it sooner.

    So a run that is cut short has its schedules cut in proportion, and ends annealed. A time limit that the steps keep
    clear of changes nothing, to the bit: hence the slack. Outside a trainer 0.

    broadcast: read the first rank's clock, which all ranks must call for; else this one's, for display.
    """
    if trainer is None:
        return 0.0
    ahead, planned = _steps_ahead(trainer), planned_steps(trainer)
    by_steps = (trainer.global_step - ahead) / (planned - ahead)
    timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # pyright: ignore
    remaining = timer.time_remaining() if timer else None
    if timer is None or remaining is None:
        return min(1.0, by_steps)
    elapsed = timer.time_elapsed()
    by_clock = elapsed / max(1e-9, elapsed + remaining)
    if broadcast and trainer.world_size > 1:  # every rank must step with the same rate
        by_clock = trainer.strategy.broadcast(by_clock)
    return min(1.0, by_clock if by_clock > by_steps + SLACK else by_steps)


def steps_per_epoch(trainer: Any) -> int:
    """Optimizer steps of an epoch, the last one of fewer batches where they do not divide; 0 where nobody knows."""
    batches = trainer.num_training_batches
    return 0 if batches == math.inf else math.ceil(batches / trainer.accumulate_grad_batches)


def planned_steps(trainer: Any) -> float:
    """Optimizer steps after which a run is at the end of its epochs, or at max_steps."""
    if not (ahead := _module_steps_ahead(trainer)):
        return trainer.estimated_stepping_batches
    limits = [steps_per_epoch(trainer) * trainer.max_epochs + ahead] if trainer.max_epochs > 0 else []
    return min(limits + [trainer.max_steps] * (trainer.max_steps > 0), default=math.inf)


def _module_steps_ahead(trainer: Any) -> int:
    return getattr(getattr(trainer, "lightning_module", None), "steps_ahead", 0)


def _steps_ahead(trainer: Any) -> int:
    """Steps that a run is ahead of its epochs; 0 of one that max_steps ends, whose plan does not count epochs."""
    ahead = _module_steps_ahead(trainer)
    return 0 if ahead and planned_steps(trainer) == trainer.max_steps else ahead


def pace_of(trainer: Any) -> dict[str, Any]:
    """Of a checkpoint, for resume_pace: the steps of an epoch, and the batches that they are made of."""
    if trainer is None:
        return {}
    batch = getattr(trainer.train_dataloader, "batch_size", None), trainer.world_size, trainer.accumulate_grad_batches
    return {"steps_per_epoch": steps_per_epoch(trainer), "batch": list(batch)}


def resume_pace(trainer: Any, before: dict[str, Any]) -> tuple[int, int]:
    """(images of a step, 0 where its first batch has to say; steps ahead) of a fit that begins or is resumed.

    A run that is resumed with larger or smaller steps has taken others than its epochs now have: so many it is ahead,
    or behind. Its schedules go on from where they were and end with its last epoch.

    before: pace_of the trainer that wrote the checkpoint, with its global_batch and steps_ahead; {} of a new fit.
    """
    now = pace_of(trainer)
    own, theirs = now["steps_per_epoch"], before.get("steps_per_epoch", 0)
    global_batch = before.get("global_batch", 0) * (before.get("batch", now["batch"]) == now["batch"])
    if own == theirs or not (own and theirs and trainer.global_step):
        return global_batch, before.get("steps_ahead", 0)
    progress = trainer.fit_loop.epoch_loop.batch_progress
    batches = 0 if progress.is_last_batch else progress.current.processed
    inside = own if batches >= trainer.num_training_batches else batches // trainer.accumulate_grad_batches
    if trainer.is_global_zero:
        log.info(f"an epoch has {own:,} steps, before {theirs:,}: the schedules go on from where they were")
    return global_batch, trainer.global_step - trainer.current_epoch * own - inside


def fraction_of_epochs(trainer: pl.Trainer | None, epochs: float) -> float:
    """Which fraction of the run `epochs` are: of max_epochs, or of the expected steps where epochs are unlimited."""
    if trainer is None:
        return 0.0
    if trainer.max_epochs and trainer.max_epochs > 0:
        return epochs / trainer.max_epochs
    steps = epochs * trainer.num_training_batches / trainer.accumulate_grad_batches
    done = fraction_done(trainer) if trainer.global_step else 0.0
    return steps / (trainer.global_step / done if done else planned_steps(trainer))


def is_logged(trainer: pl.Trainer | None) -> bool:
    """Whether the trainer logs the step to come; on others, metrics would cost time for nothing. Outside one True."""
    if trainer is None or trainer.global_step == 0:
        return True
    return (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # pyright: ignore
