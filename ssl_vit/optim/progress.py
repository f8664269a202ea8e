"""How far a run is: what every schedule reads, by steps or by time, whichever limit is nearer."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer

SLACK = 0.01  # fraction of a run by which its clock must be ahead of its steps before the clock counts


def fraction_done(trainer: pl.Trainer | None, broadcast: bool = True) -> float:
    """Fraction of the run done, in [0, 1]: of its steps, or of its time where `max_time` ends it sooner.

    So a run that is cut short has its schedules cut in proportion, and ends annealed. A time limit that the steps keep
    clear of changes nothing, to the bit: hence the slack. Outside a trainer 0.

    broadcast: read the first rank's clock, which all ranks must call for; else this one's, for display.
    """
    if trainer is None:
        return 0.0
    by_steps = trainer.global_step / trainer.estimated_stepping_batches
    timer = next((c for c in trainer.callbacks if isinstance(c, Timer)), None)  # pyright: ignore
    remaining = timer.time_remaining() if timer else None
    if timer is None or remaining is None:
        return min(1.0, by_steps)
    elapsed = timer.time_elapsed()
    by_clock = elapsed / max(1e-9, elapsed + remaining)
    if broadcast and trainer.world_size > 1:  # every rank must step with the same rate
        by_clock = trainer.strategy.broadcast(by_clock)
    return min(1.0, by_clock if by_clock > by_steps + SLACK else by_steps)


def fraction_of_epochs(trainer: pl.Trainer | None, epochs: float) -> float:
    """Which fraction of the run `epochs` are: of max_epochs, or of the expected steps where epochs are unlimited."""
    if trainer is None:
        return 0.0
    if trainer.max_epochs and trainer.max_epochs > 0:
        return epochs / trainer.max_epochs
    steps = epochs * trainer.num_training_batches / trainer.accumulate_grad_batches
    done = fraction_done(trainer) if trainer.global_step else 0.0
    return steps / (trainer.global_step / done if done else trainer.estimated_stepping_batches)


def is_logged(trainer: pl.Trainer | None) -> bool:
    """Whether the trainer logs the step to come; on others, metrics would cost time for nothing. Outside one True."""
    if trainer is None or trainer.global_step == 0:
        return True
    return (trainer.global_step + 1) % trainer.log_every_n_steps == 0  # pyright: ignore
