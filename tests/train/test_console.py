"""What the progress line tells a person."""

from types import SimpleNamespace

import torch

from ssl_vit.train import console
from ssl_vit.train.console import ProgressPrinter


def test_the_line_says_that_the_machine_is_busy(monkeypatch, capsys):
    """Batches of .1 s, then of .2, then of .4 beside other work, then of .1 again; a line after every ten."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    monkeypatch.setattr(console, "SECONDS_PER_LINE", 0.95)
    monkeypatch.setattr(console, "fraction_done", lambda *args, **kwargs: 0.5)
    trainer = SimpleNamespace(is_global_zero=True, callback_metrics={}, callbacks=[], current_epoch=0, global_step=1)
    printer = ProgressPrinter()
    printer.on_train_start(trainer, None)
    lines = []
    for seconds in (0.1, 0.2, 0.4, 0.1):
        for _ in range(10):
            printer.on_train_batch_start()
            now += seconds
            printer.on_train_batch_end(trainer)
            now += 5 * (seconds == 0.2)  # between two batches: an evaluation, which is no sign
        lines += [capsys.readouterr().out]
    busy = [text.partition("busy: ")[2].partition("\n")[0] for text in lines]
    assert busy == ["", "", "steps take 4.0 times as long as they did", ""]


def trainer_at(step: int, lr: float) -> SimpleNamespace:
    optimizer = SimpleNamespace(param_groups=[{"lr": lr / 2}, {"lr": lr}])
    logged = {"train/loss": torch.tensor(9.0), "train/lr": torch.tensor(0.0)}  # of the first step
    at = {"current_epoch": step, "global_step": step, "callback_metrics": logged, "optimizers": [optimizer]}
    return SimpleNamespace(is_global_zero=True, callbacks=[], accumulate_grad_batches=2, **at)


def test_the_loss_is_the_mean_since_the_last_line_and_the_rate_that_of_now(monkeypatch, capsys):
    """With one step an epoch, lines repeated the loss and the learning rate, 0, of the first step. The losses come
    divided by the batches that are accumulated; one that is not finite was skipped."""
    monkeypatch.setattr(console, "fraction_done", lambda *args, **kwargs: 0.5)
    monkeypatch.setattr(console, "SECONDS_PER_LINE", float("inf"))
    printer = ProgressPrinter()
    printer.on_train_start(trainer_at(0, 0.0), None)
    for losses, line in (
        ([1.0, 2.0, float("nan"), 3.0], "loss 4.0000  lr 1.00e-03"),
        ([5.0], "loss 10.0000  lr 2.00e-03"),
    ):
        trainer = trainer_at(3, 1e-3 if len(losses) > 1 else 2e-3)
        for loss in losses:
            printer.on_train_batch_start()
            printer.on_train_batch_end(trainer, None, {"loss": torch.tensor(loss)}, None, 0)
        printer._print(trainer)
        assert line in capsys.readouterr().out
    printer._print(trainer)  # no batch since
    assert "loss 10.0000" in capsys.readouterr().out


def test_no_step_waits_for_the_device(monkeypatch):
    """A tensor without data cannot be read, as one on a device only when it is ready."""
    monkeypatch.setattr(console, "SECONDS_PER_LINE", float("inf"))
    printer = ProgressPrinter()
    printer.on_train_start(trainer_at(0, 0.0), None)
    for _ in range(3):
        printer.on_train_batch_start()
        printer.on_train_batch_end(trainer_at(1, 0.1), None, {"loss": torch.empty((), device="meta")}, None, 0)
    assert printer.losses.is_meta
