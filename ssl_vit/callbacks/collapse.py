"""Has a run learned something, or has it collapsed? A diagnosis, with the option to change first.

DINO fails in two ways (arXiv:2104.14294, section 5.3): its outputs become uniform, or one dimension wins whatever the
image is. A third is common on small data: it never begins. K prototypes, ln K the loss of uniform outputs.

Where a loss can be compared with that of a prediction that ignores the image, as MAE's and BEiT's can, it has to be
lower. And at the end any encoder has to be better than it was before its first step.
"""

import logging
import math
from typing import Any

import pytorch_lightning as pl

from ssl_vit.callbacks.online_eval import OnlineProbe
from ssl_vit.optim.progress import fraction_done, fraction_of_epochs

log = logging.getLogger("ssl_vit")

HEALTHY, UNIFORM, ONE, ASLEEP = "healthy", "uniform collapse", "one-dimension collapse", "not started"
SHORT = "too short"
METRICS = ("information", "teacher_mean_entropy", "student_entropy")
ADVICE = {
    UNIFORM: "the teacher's output is the same for every image; lower method.teacher_temp first, then optim.base_lr",
    ONE: "one prototype wins whatever the image is; lower method.center_momentum first, then raise method.teacher_temp",
    ASLEEP: "the loss is still that of uniform outputs; set method.head_norm=true first, then lower "
    "method.warmup_teacher_temp and method.teacher_temp to 0.02, then raise optim.base_lr",
}
LONGER = "train longer (trainer.max_epochs), in smaller steps (data.batch_size)"
MIN_GAIN = 0.05  # fraction by which a loss is below its baseline, from which a run learns
MIN_STEPS = 200  # after the warm-up, by which an encoder has begun to learn; table in docs/troubleshooting.md
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
    """Diagnoses what is trained whenever it is logged: by the teacher's entropy where the method logs it, as DINO does,
    or by `train/baseline`, the loss of a prediction that ignores the image, as MAE and BEiT do.

    At the end an encoder that is healthy so far is `too short` where the linear probe is not one standard error above
    that before the first step, or, without labels, after fewer than MIN_STEPS steps behind the warm-up. A change of
    diagnosis is logged with its advice, and so is the last one; each goes to metrics.jsonl.

    Args:
        memory: weight of the old value in the running mean of each metric, so that one batch decides nothing.
    """

    def __init__(self, memory: float = 0.8) -> None:
        self.memory, self.diagnosis, self.was_healthy = memory, "", False
        self.detail = self.advice = ""  # what the diagnosis is by, and what to change
        self.means: dict[str, float] = {}
        self.start: float | None = None  # accuracy of the linear probe before the first step
        self.seen = 0  # the last step; accumulated batches have the one before

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("diagnosis", "detail", "was_healthy", "means", "start")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The online evaluation has come before."""
        if trainer.global_step == 0:
            self.start = _probe(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        step, known = trainer.global_step, trainer.callback_metrics
        names = [name for name in ("loss", *pl_module.extra_metrics) if f"train/{name}" in known]
        if step == self.seen or step % trainer.log_every_n_steps or not {METRICS[1], "baseline"} & {*names}:
            return
        self.seen = step
        if pl_module.guard.skipped:  # metrics that are no numbers would stay in the means
            return
        for name in names:
            value = float(known[f"train/{name}"])
            self.means[name] = self.memory * self.means.get(name, value) + (1 - self.memory) * value
        diagnosis, self.detail, self.advice = self._diagnose(trainer, pl_module)
        self.was_healthy |= diagnosis == HEALTHY
        changed, self.diagnosis = diagnosis != self.diagnosis, diagnosis
        begins = diagnosis == ASLEEP and "baseline" in self.means and not self.was_healthy  # as each of them does
        if changed and not begins:
            self._log(trainer)

    def _diagnose(self, trainer: pl.Trainer, pl_module: Any) -> tuple[str, str, str]:
        """The diagnosis, what it is by, and what to change."""
        means = self.means
        if METRICS[1] in means:
            information, mean_entropy, student_entropy = (means[name] for name in METRICS)
            prototypes, fraction = pl_module.config.prototypes, fraction_done(trainer)
            kind = diagnose(information, mean_entropy, student_entropy, prototypes, self.was_healthy, fraction)
            return kind, "", ADVICE.get(kind, "")
        gain = 1 - means["loss"] / max(means["baseline"], 1e-12)
        if gain >= MIN_GAIN:
            learned = getattr(pl_module, "learned", "its loss is {gain:.0%} below the baseline")
            return HEALTHY, learned.format(gain=gain, **means), ""
        worse = f"no better than {getattr(pl_module, 'baseline', 'the baseline')}"
        return ASLEEP, worse, f"{LONGER}, or change optim.base_lr"

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.diagnosis in ("", HEALTHY, SHORT) and hasattr(pl_module, "export_encoder"):
            self._conclude(trainer, pl_module)
        if self.diagnosis:
            self._log(trainer)

    def _conclude(self, trainer: Any, pl_module: Any) -> None:
        """Compare the encoder of the end with that before the first step, or count the steps."""
        warmup = fraction_of_epochs(trainer, pl_module.optim_config.warmup_epochs)  # on all ranks, first of all
        steps = int(trainer.global_step * (1 - min(1.0, warmup)))
        end, images = _probe(trainer), _images_probed(trainer)
        if self.start is None or end is None or not images:
            is_short, found = steps < MIN_STEPS, f"{steps} steps after the warm-up, fewer than {MIN_STEPS}"
        else:
            error = math.sqrt(end * (1 - end) / images)
            is_short = end < self.start + error
            found = f"linear probe {end:.3f} +- {error:.3f}, before the first step {self.start:.3f}"
        if is_short:
            self.diagnosis, self.detail, self.advice = SHORT, found, LONGER
        elif self.diagnosis == SHORT:  # it was, before it was resumed
            self.diagnosis = self.detail = ""

    def __str__(self) -> str:
        """The diagnosis and what it is by, in a line."""
        return f"{self.diagnosis}: {self.detail}" if self.detail else self.diagnosis

    def _log(self, trainer: Any) -> None:
        if trainer.is_global_zero:
            log.info(f"health        {self}" + f": {self.advice}" * bool(self.advice))
            for logger in trainer.loggers:
                if append := getattr(logger, "append", None):  # of JsonLines
                    append({"step": trainer.global_step, "health": self.diagnosis})


def _probe(trainer: Any) -> float | None:
    """Accuracy of the last linear probe; None without labels."""
    found = trainer.callback_metrics.get("monitor/linear_top1")
    return None if found is None else float(found)


def _images_probed(trainer: Any) -> int:
    """Images that it was tested on; 0 without labels."""
    return next((c.test_images for c in trainer.callbacks if isinstance(c, OnlineProbe)), 0)
