"""Has a self-distillation collapsed? A diagnosis from metrics that need no labels, with the option to change first.

DINO fails in two ways (arXiv:2104.14294, section 5.3): its outputs become uniform, or one dimension wins whatever the
image is. A third is common on small data: it never begins. K prototypes, ln K the loss of uniform outputs.
"""

import logging
import math
from typing import Any

import pytorch_lightning as pl

from ssl_vit.optim.progress import fraction_done

log = logging.getLogger("ssl_vit")

HEALTHY, UNIFORM, ONE, ASLEEP = "healthy", "uniform collapse", "one-dimension collapse", "not started"
METRICS = ("information", "teacher_mean_entropy", "student_entropy")
ADVICE = {
    UNIFORM: "the teacher's output is the same for every image; lower method.teacher_temp first, then optim.base_lr",
    ONE: "one prototype wins whatever the image is; lower method.center_momentum first, then raise method.teacher_temp",
    ASLEEP: "the loss is still that of uniform outputs; set method.head_norm=true first, then lower "
    "method.warmup_teacher_temp and method.teacher_temp to 0.02, then raise optim.base_lr",
}
LEARNING = 0.1  # fraction of the information that targets could have about their images, from which a run learns
AT_UNIFORM = 0.98  # fraction of ln K from which an entropy counts as that of uniform outputs
ONE_PROTOTYPE = 0.05  # fraction of ln K below which the teacher's mean output counts as one prototype
PATIENCE = 0.5  # fraction of the run after which uniform outputs are no slow start any more


def diagnose(
    information: float, mean_entropy: float, student_entropy: float, prototypes: int, was_healthy: bool, fraction: float
) -> str:
    """One of HEALTHY, UNIFORM, ONE, ASLEEP; the loss is low before the center has settled, and does not show it.

    Args:
        information: of the targets about which image they are of, in [0, 1].
        mean_entropy: of the teacher's output, averaged over images first, in nats; student_entropy: mean over images.
        fraction: of the run that is done.
    """
    uniform = math.log(prototypes)
    if mean_entropy < ONE_PROTOTYPE * uniform:
        return ONE
    if information > LEARNING:
        return HEALTHY
    stuck = fraction > PATIENCE and student_entropy > AT_UNIFORM * uniform
    return UNIFORM if was_healthy or stuck else ASLEEP


class CollapseMonitor(pl.Callback):
    """Diagnoses a method that logs train/teacher_mean_entropy, as DINO does, whenever it is logged.

    A change of diagnosis is logged with its advice, and so is the last one; each goes to metrics.jsonl.

    Args:
        memory: weight of the old value in the running mean of each metric, so that one batch decides nothing.
    """

    def __init__(self, memory: float = 0.8) -> None:
        self.memory, self.diagnosis, self.was_healthy = memory, "", False
        self.means: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("diagnosis", "was_healthy", "means")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        known = trainer.callback_metrics
        if "train/teacher_mean_entropy" not in known or trainer.global_step % trainer.log_every_n_steps:
            return
        if pl_module.guard.skipped:  # metrics that are no numbers would stay in the means
            return
        for name in METRICS:
            value = float(known[f"train/{name}"])
            self.means[name] = self.memory * self.means.get(name, value) + (1 - self.memory) * value
        information, mean_entropy, student_entropy = (self.means[name] for name in METRICS)
        prototypes, fraction = pl_module.config.prototypes, fraction_done(trainer)
        diagnosis = diagnose(information, mean_entropy, student_entropy, prototypes, self.was_healthy, fraction)
        self.was_healthy |= diagnosis == HEALTHY
        if diagnosis != self.diagnosis:
            self.diagnosis = diagnosis
            self._log(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.diagnosis:
            self._log(trainer)

    def _log(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            advice = f": {ADVICE[self.diagnosis]}" if self.diagnosis in ADVICE else ""
            log.info(f"health        {self.diagnosis}{advice}")
            for logger in trainer.loggers:
                if append := getattr(logger, "append", None):  # of JsonLines
                    append({"step": trainer.global_step, "health": self.diagnosis})
