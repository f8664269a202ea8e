"""A step whose loss or gradient is not finite is skipped, on all ranks, and listed; too many end the run."""

import json
import math
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from fitting import fit

from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.schema import RunConfig
from ssl_vit.methods.guard import DivergenceError, Guard, SkippedStep
from ssl_vit.methods.mae import MAE
from ssl_vit.train.pretraining import pretrain

ROOT = Path(__file__).resolve().parents[2]
ENCODER = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 4, "image_size": 16}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


class SteepMAE(MAE):
    """Its loss is finite where the images are one plain 3, but its gradient is not."""

    def losses(self, images, noise=None):
        losses = super().losses(images, noise)
        return losses | {"steep": (self.decoder.mask_token * 0).sum().sqrt()} if (images == 3).all() else losses


class SickMAE(MAE):
    """From the fourth step on its loss is no number, the first `relapses` times that it gets there."""

    relapses = 0

    def losses(self, images, noise=None):
        losses = super().losses(images, noise)
        if self.global_step == 4 and self.guard.in_a_row == 0:
            type(self).relapses -= 1
        sick = self.global_step >= 4 and type(self).relapses >= 0
        return {"reconstruction": losses["reconstruction"] * (math.nan if sick else 1.0)}


class States(pl.Callback):
    """Weights and moments after each step."""

    def __init__(self) -> None:
        self.after: list[dict] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        moments = trainer.optimizers[0].state_dict()["state"]
        flat = {f"{i}.{name}": value.clone() for i, state in moments.items() for name, value in state.items()}
        self.after.append({name: value.clone() for name, value in pl_module.state_dict().items()} | flat)


def states_of(method: MAE, batches: list, tmp_path, **options) -> list[dict]:
    states = States()
    fit(method, batches, tmp_path, callbacks=[states], **options)
    return states.after


def equal(before: dict, after: dict) -> bool:
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("kind", "why"), [(SteepMAE, "gradient"), (MAE, "loss")])
def test_a_bad_step_moves_neither_weights_nor_moments_and_the_next_one_does(kind, why, tmp_path):
    method = kind(ENCODER, monitor={"skipped_steps": False}, **DECODER)
    bad = torch.full((4, 3, 16, 16), 3.0 if why == "gradient" else math.nan)
    batches = [{"images": images, "index": torch.arange(4) + 4 * i}
               for i, images in enumerate((torch.randn(4, 3, 16, 16), bad, torch.randn(4, 3, 16, 16)))]  # fmt: skip
    first, second, third = states_of(method, batches, tmp_path)
    assert equal(first, second)
    assert not equal(second, third)
    assert method.guard.found == [SkippedStep(1, 0, why, [4, 5, 6, 7])]


def test_one_bad_batch_of_an_accumulated_step_skips_the_whole_step(tmp_path):
    method = MAE(ENCODER, monitor={"skipped_steps": False}, **DECODER)
    batches = [torch.randn(4, 3, 16, 16) for _ in range(4)]
    batches[2] = batches[2] * math.nan
    *_, before, after = states_of(method, batches, tmp_path, accumulate_grad_batches=2)
    assert equal(before, after)
    assert method.guard.found == [SkippedStep(1, 0, "loss", [])]


def test_with_clipping_too_a_bad_step_moves_nothing(tmp_path):
    method = MAE(ENCODER, {"clip_grad": 1.0}, **DECODER)
    batches = [torch.randn(4, 3, 16, 16), torch.full((4, 3, 16, 16), math.inf)]
    before, after = states_of(method, batches, tmp_path)
    assert equal(before, after)


def test_clipping_scales_all_gradients_to_the_given_norm(tmp_path):
    """Against PyTorch's clip_grad_norm_: the norm that the guard has taken is used again."""
    method, seen = MAE(ENCODER, {"clip_grad": 1e-3}, **DECODER), []
    original = method.optimizer_step

    def step(epoch, batch, optimizer, closure):
        original(epoch, batch, optimizer, closure)
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        seen.append(float(torch.nn.utils.get_total_norm(grads)))

    method.optimizer_step = step
    fit(method, [torch.randn(4, 3, 16, 16)], tmp_path)
    assert seen == [pytest.approx(1e-3, rel=1e-4)]


def test_too_many_bad_steps_in_a_row_end_the_run_with_advice(tmp_path):
    method = MAE(ENCODER, **DECODER)
    method.max_skipped_steps = 3
    bad, good = torch.full((4, 3, 16, 16), math.nan), torch.randn(4, 3, 16, 16)
    fit(method, [bad, bad, good, bad, bad, good], tmp_path)
    with pytest.raises(
        DivergenceError, match=r"3 steps in a row before step 4; the weights have not moved.*optim.base_lr"
    ):
        fit(method, [good, bad, bad, bad, good], tmp_path)


def test_a_step_that_another_rank_skips_is_skipped(monkeypatch):
    """Of two ranks, of which the other one finds a loss that is not finite at its second step."""
    others = iter((False, True, False))
    monkeypatch.setattr("ssl_vit.methods.guard.any_of_ranks", lambda flag: flag | next(others))
    guard, sound = Guard(), []
    for _ in range(3):
        guard.watch(torch.tensor(1.0), {"index": torch.tensor([5])})
        sound.append(guard.check(torch.tensor(1.0), step=7, epoch=2))
    assert sound == [True, False, True]
    assert guard.found == [SkippedStep(7, 2, "another process", [5])]


def sick_run(relapses: int) -> Path:
    SickMAE.relapses = relapses
    settings = {
        "method": "test_guard:SickMAE", "recipe": ROOT / "configs/mae/digits.yaml", "run_dir": "sick",
        "encoder.embed_dim": 16, "encoder.depth": 1, "encoder.num_heads": 2, "method.decoder_embed_dim": 16,
        "method.decoder_num_heads": 2, "trainer.max_epochs": 1, "trainer.max_steps": 8, "trainer.max_minutes": "null",
        "trainer.checkpoint_every_steps": 2, "trainer.max_skipped_steps": 3, "trainer.log_every_steps": 1,
        "monitor.every_epochs": 0,
    }  # fmt: skip
    resolved = resolve_run(RunConfig, [f"{key}={value}" for key, value in settings.items()])
    return pretrain(resolved.config, resolved.name)


@pytest.fixture
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_VIT_RUN_DIR", raising=False)


@pytest.mark.usefixtures("_elsewhere")
def test_a_run_that_diverges_once_goes_back_to_its_checkpoint_and_ends(caplog):
    run_dir = sick_run(relapses=1)
    assert json.loads((run_dir / "encoder.json").read_text())["step"] == 8
    rows = [json.loads(line) for line in (run_dir / "skipped_steps.jsonl").read_text().splitlines()]
    assert [(row["step"], row["why"], len(row["images"])) for row in rows] == [(s, "loss", 64) for s in (4, 5, 6)]
    assert "Going back to sick/checkpoints/" in caplog.text
    assert "step 5 is skipped: loss not finite (2 in a row); its images: sick/skipped_steps.jsonl" in caplog.text
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert None not in [row.get("train/loss", 0) for row in rows]  # those of the first attempt are cut off


@pytest.mark.usefixtures("_elsewhere")
def test_a_run_that_diverges_again_stops_with_advice():
    with pytest.raises(DivergenceError, match=r"not finite in 3 steps in a row .* Lower optim.base_lr"):
        sick_run(relapses=2)
    assert not Path("sick/encoder.safetensors").exists()
    assert len(Path("sick/skipped_steps.jsonl").read_text().splitlines()) == 6
