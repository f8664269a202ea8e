"""What the progress line tells a person."""

from types import SimpleNamespace

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
