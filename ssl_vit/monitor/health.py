"""Is a self-distillation alive? A verdict in words, from figures that need no labels, with the knob to turn first.

DINO fails in two ways (arXiv:2104.14294, section 5.3): its outputs become uniform, or one dimension wins whatever the
picture is. A third is common on small data: it never begins. K prototypes, ln K the loss of uniform outputs.
"""

import logging
import math
from typing import Any

import pytorch_lightning as pl

from ssl_vit.monitor.records import JsonLines

log = logging.getLogger("ssl_vit")

HEALTHY, UNIFORM, ONE, ASLEEP = "healthy", "uniform collapse", "one-dimension collapse", "not started"
ADVICE = {
    UNIFORM: "the teacher says the same of everything; lower method.teacher_temp first, then optim.base_lr",
    ONE: "one prototype wins whatever the picture is; lower method.centre_momentum first, then raise "
    "method.teacher_temp",
    ASLEEP: "the loss is still that of uniform outputs; set method.head_norm=true first, then lower "
    "method.warmup_teacher_temp and method.teacher_temp to 0.02, then raise optim.base_lr",
}
AT_UNIFORM = 0.98
"""Share of ln K above which the loss counts as that of uniform outputs."""
LEFT_UNIFORM = 0.9
"""Share of ln K below which a loss has been learnt something."""
ONE_PROTOTYPE = 0.05
"""Share of ln K below which the teacher's mean output counts as one prototype: it is 0 for one, 1 for all alike."""
SAME_FEATURES = 0.02
"""feature_std below which all pictures count as described alike; a random encoder has 0.1 and more."""


def verdict(loss: float, lowest: float, mean_entropy: float, feature_std: float, prototypes: int) -> str:
    """One of HEALTHY, UNIFORM, ONE, ASLEEP.

    Args:
        loss: of now, in nats. lowest: the smallest so far.
        mean_entropy: of the teacher's output, averaged over pictures first, in nats.
        feature_std: spread of the teacher's features, 0 when all pictures are described alike.
    """
    uniform = math.log(prototypes)
    if mean_entropy < ONE_PROTOTYPE * uniform:
        return ONE
    if loss < AT_UNIFORM * uniform:
        return HEALTHY
    return UNIFORM if lowest < LEFT_UNIFORM * uniform or feature_std < SAME_FEATURES else ASLEEP


class Health(pl.Callback):
    """Judges a method that logs train/teacher_mean_entropy, as DINO does, whenever it is logged.

    A change of verdict is logged with its advice, and so is the last one; each goes to metrics.jsonl.

    Args:
        memory: share of the old figure in the running mean of each figure, so that one batch decides nothing.
    """

    def __init__(self, memory: float = 0.8) -> None:
        self.memory = memory
        self.word = ""
        self.lowest = math.inf
        self._means: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"word": self.word, "lowest": self.lowest, "means": self._means}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.word, self.lowest, self._means = state_dict["word"], state_dict["lowest"], state_dict["means"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        known = trainer.callback_metrics
        if "train/teacher_mean_entropy" not in known or trainer.global_step % trainer.log_every_n_steps:  # pyright: ignore
            return
        for name in ("loss", "teacher_mean_entropy", "feature_std"):
            value = float(known[f"train/{name}"])
            self._means[name] = self.memory * self._means.get(name, value) + (1 - self.memory) * value
        self.lowest = min(self.lowest, self._means["loss"])
        word = verdict(
            self._means["loss"],
            self.lowest,
            self._means["teacher_mean_entropy"],
            self._means["feature_std"],
            pl_module.options.prototypes,
        )
        if word != self.word:
            self.word = word
            self._tell(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.word:
            self._tell(trainer)

    def _tell(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        advice = ADVICE.get(self.word)
        log.info(f"health        {self.word}" + (f": {advice}" if advice else ""))
        for logger in trainer.loggers:
            if isinstance(logger, JsonLines):
                logger.log_words({"health": self.word}, trainer.global_step)
