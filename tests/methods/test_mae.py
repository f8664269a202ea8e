"""Laws and behavior of MAE and of what it shares with every method."""

from itertools import pairwise

import pytest
import pytorch_lightning as pl
import torch
from fitting import trainer
from torch.utils.data import DataLoader, TensorDataset

from ssl_vit.methods.mae import MAE, in_channels, patch_statistics, reconstruction_loss, target_pixels
from ssl_vit.models.stem import unpatchify

ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "image_size": 16}
DECODER = {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}


def make(optim: dict | None = None, **options) -> MAE:
    return MAE(ENCODER, optim, **{**DECODER, **options})


def test_hidden_pixels_cannot_reach_the_prediction():
    method, images, noise = make(), torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    prediction, hidden = method.reconstruct(images, noise)
    pixels = target_pixels(images, 4, torch.arange(16).expand(2, -1))
    pixels.scatter_(1, hidden[..., None].expand(-1, -1, 48), 9.0)
    changed, _ = method.reconstruct(unpatchify(in_channels(pixels, 4), 4, 4, 4), noise)
    assert hidden.shape == (2, 12)
    assert torch.equal(prediction, changed)


def test_visible_pixels_do_reach_the_prediction():
    method, images, noise = make(), torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    prediction, _ = method.reconstruct(images, noise)
    changed, _ = method.reconstruct(images + 1, noise)
    assert not torch.allclose(prediction, changed)


def test_target_is_row_column_channel_and_assembles_back():
    images = torch.arange(2 * 3 * 8 * 4.0).view(2, 3, 8, 4)
    pixels = target_pixels(images, 4, torch.arange(2).expand(2, -1))
    assert torch.equal(pixels[1, 1].view(4, 4, 3), images[1, :, 4:].permute(1, 2, 0))
    assert torch.equal(unpatchify(in_channels(pixels, 4), 4, 2, 1), images)


def test_normalized_target_uses_unbiased_variance_over_all_channels():
    prediction, pixels = torch.randn(2, 3, 12), torch.randn(2, 3, 12)
    total = 0.0
    for b in range(2):
        for m in range(3):
            patch = pixels[b, m]
            mean = patch.sum() / 12
            variance = ((patch - mean) ** 2).sum() / 11
            total += (((patch - mean) / (variance + 1e-6) ** 0.5 - prediction[b, m]) ** 2).mean() / 6
    torch.testing.assert_close(reconstruction_loss(prediction, pixels, norm_pix=True), total)


def test_only_hidden_patches_are_projected_and_predicted(monkeypatch):
    method, seen = make(), {}
    method.encoder.patch_embed.register_forward_hook(lambda _, args, out: seen.update(embedded=out.shape[1]))
    method.decoder.pred.register_forward_hook(lambda _, args, out: seen.update(predicted=out.shape[1]))
    method.losses(torch.randn(2, 3, 16, 16))
    assert seen == {"embedded": 4, "predicted": 12}


def test_every_parameter_learns():
    method = make()
    method.losses(torch.randn(2, 3, 16, 16))["reconstruction"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_the_papers_sizes():
    with torch.device("meta"):
        method = MAE()
    encoder = sum(p.numel() for p in method.encoder.parameters()) + method.encoder.pos_embed.numel()
    decoder = sum(p.numel() for p in method.decoder.parameters()) + method.decoder.pos_embed.numel()
    assert (encoder, decoder) == (85_798_656, 26_109_184)  # published checkpoints, fixed tables counted


def test_reconstructions_are_denormalized_and_keep_visible_patches():
    method, images = make(), torch.rand(3, 3, 16, 16) * torch.rand(3, 1, 1, 1) * 5
    columns = method.visualize(images, images)
    assert list(columns) == ["masked", "reconstruction", "original"]
    every = torch.arange(16).expand(3, -1)
    masked, painted, true = (target_pixels(column, 4, every) for column in columns.values())
    visible = (masked == true).all(-1)
    assert (visible.sum(1) == 4).all()
    assert torch.equal(painted[visible], true[visible])
    # A prediction of zeros, de-normalized, is the patch's own mean: close in brightness whatever its scale.
    torch.nn.init.zeros_(method.decoder.pred.weight)
    painted = target_pixels(method.visualize(images, images)["reconstruction"], 4, every)
    means = painted.mean(-1, keepdim=True)
    torch.testing.assert_close(means, patch_statistics(true)[0], atol=1e-5, rtol=1e-5)


def test_a_users_own_trainer_and_loader(tmp_path):
    images = torch.randn(24, 3, 16, 16)
    method = MAE(
        encoder={"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "image_size": 16}, decoder_depth=1
    )
    before = method.encoder.patch_embed.proj.weight.clone()
    loader = DataLoader(TensorDataset(images, torch.zeros(24)), batch_size=8)
    trainer(tmp_path, max_epochs=2).fit(method, loader)
    assert method.global_step == 6
    assert not torch.equal(before, method.encoder.patch_embed.proj.weight)
    assert torch.isfinite(method.encoder(images)).all()


def test_eight_images_are_learned_by_heart(tmp_path):
    images = torch.randn(8, 3, 16, 16)
    method = make({"base_lr": 0.1, "warmup_epochs": 5, "weight_decay": 0.0}, decoder_embed_dim=64, decoder_num_heads=4)
    before = float(method.losses(images)["reconstruction"].detach())
    method.generator = lambda device: torch.Generator(device).manual_seed(1)  # one mask, so that it can be learned
    run = trainer(tmp_path, max_epochs=250)
    run.fit(method, DataLoader(images, batch_size=8))
    assert before > 0.9
    assert float(run.callback_metrics["train/loss"]) < 0.1 * before


def test_same_seed_same_losses_to_the_bit(tmp_path):
    def losses(seed: int) -> list[float]:
        torch.manual_seed(0)
        method, seen = make(seed=seed), []
        original = method.losses
        method.losses = lambda images: (lambda out: seen.append(float(out["reconstruction"])) or out)(original(images))
        trainer(tmp_path, max_epochs=2).fit(method, DataLoader(torch.randn(16, 3, 16, 16), batch_size=8))
        return seen

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


class Counting(MAE):
    steps = 0

    def after_step(self) -> None:
        self.steps += 1


def test_after_step_and_lr_move_once_per_optimizer_step_under_accumulation(tmp_path):
    method = Counting(ENCODER, {"base_lr": 1e-3, "warmup_epochs": 1}, **DECODER)
    rates = []

    class Rates(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    images = DataLoader(torch.randn(32, 3, 16, 16), batch_size=4)
    run = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[Rates()])
    run.fit(method, images)
    assert method.steps == run.global_step == 8
    assert method.global_batch == 8
    peak = 1e-3 * 8 / 256
    assert method.optimizers().optimizer.param_groups[0]["lr"] == pytest.approx(peak * 0.5 * (1 - 0.5**0.5), rel=1e-6)


def test_lr_warms_up_and_falls_by_step(tmp_path):
    method, rates = make({"base_lr": 1.0, "warmup_epochs": 2, "min_lr": 0.0}), []
    original = method.on_before_optimizer_step
    method.on_before_optimizer_step = lambda opt: (original(opt), rates.append(opt.param_groups[0]["lr"]))
    trainer(tmp_path, max_epochs=4).fit(method, DataLoader(torch.randn(8, 3, 16, 16), batch_size=2))
    peak = 2 / 256
    assert rates[:9] == pytest.approx([peak * step / 8 for step in range(9)])
    assert rates[12] == pytest.approx(peak / 2)
    assert all(early > late for early, late in pairwise(rates[8:]))


def test_a_time_limit_ends_the_schedule_with_the_run(tmp_path):
    method, rates = make({"base_lr": 1.0, "warmup_epochs": 10}), []
    original = method.on_before_optimizer_step
    method.on_before_optimizer_step = lambda opt: (original(opt), rates.append(opt.param_groups[0]["lr"]))
    run = trainer(tmp_path, max_epochs=100_000, max_time={"seconds": 3})
    run.fit(method, DataLoader(torch.randn(8, 3, 16, 16), batch_size=2))
    peak = 2 / 256
    assert max(rates) > 0.9 * peak  # ten of 100,000 epochs: the warm-up shrank with the run
    assert rates[-1] < 0.05 * peak


def test_warmup_longer_than_the_run_is_logged(tmp_path, caplog):
    method = make({"warmup_epochs": 40})
    trainer(tmp_path, max_epochs=1).fit(method, DataLoader(torch.randn(8, 3, 16, 16), batch_size=8))
    assert "optim.warmup_epochs=40 is no shorter than the run" in caplog.text


def test_gradients_are_clipped_where_configured(tmp_path):
    method, norms = make({"clip_grad": 1e-3}), []

    class Norms(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            grads = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norms.extend([float(torch.nn.utils.get_total_norm(grads))] if grads else [])

    run = trainer(tmp_path, max_epochs=2, callbacks=[Norms()])
    run.fit(method, DataLoader(torch.randn(8, 3, 16, 16), batch_size=8))
    assert norms
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for norm in norms)


def test_uint8_images_and_unknown_options_are_refused():
    with pytest.raises(ValueError, match=r"images arrive as torch.uint8; a method takes normalized floats"):
        make().training_step(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 0)
    with pytest.raises(ValueError, match=r"method.mask_ration is no setting \(did you mean mask_ratio\?\)"):
        make(mask_ration=0.5)


def test_a_checkpoint_loads_by_lightnings_own_means(tmp_path):
    method = make()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(method, DataLoader(torch.randn(8, 3, 16, 16), batch_size=8))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = MAE.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.config == method.config
    torch.testing.assert_close(again.state_dict(), method.state_dict())
