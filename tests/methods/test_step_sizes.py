"""What a step is made of: the mean over its batches, however many, and the global batch of this fit alone."""

import pytest
import torch
from fitting import fit, trainer
from pytorch_lightning.callbacks import BatchSizeFinder, ModelCheckpoint
from tiny_methods import ENCODER
from torch.utils.data import DataLoader

import ssl_vit
from ssl_vit.supervised.linear_probe import LinearProbe

LEVELS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
IMAGES = [torch.full((2, 3, 16, 16), level) for level in LEVELS]


class Bright(ssl_vit.Method):
    """Its gradient is the brightness of the images."""

    def losses(self, images):
        return {"loss": self.encoder.cls_token[0, 0, 0] * images.mean()}


def noting(method, gradients: list[float], weight: torch.nn.Parameter):
    """The method, whose optimizer notes the first gradient of a weight before each step."""
    original = method.optimizer_step

    def step(*args):
        original(*args)
        gradients.append(float(weight.grad.flatten()[0]))

    method.optimizer_step = step
    return method


@pytest.mark.parametrize(("accumulate", "means"), [(1, LEVELS), (4, [3.75, 24.0]), (3, [7 / 3, 56 / 3]), (9, [10.5])])
def test_the_last_step_of_an_epoch_is_the_mean_of_the_batches_that_it_has(tmp_path, accumulate, means):
    """Lightning divides by accumulate_grad_batches also where fewer are left: of two of four, by half as much."""
    method, gradients = Bright(ENCODER, {"weight_decay": 0.0, "base_lr": 1e-3}), []
    noting(method, gradients, method.encoder.cls_token)
    fit(method, IMAGES, tmp_path, accumulate_grad_batches=accumulate, max_epochs=2)
    assert gradients == pytest.approx(means * 2)


def test_a_probes_last_step_is_a_mean_too(tmp_path):
    """Its gradient does not depend on how the same images are grouped, as long as the weights have not moved."""
    labels, found = torch.tensor([0, 1]), {}
    for accumulate, batches in ((4, 2), (2, 2), (1, 1)):
        torch.manual_seed(0)
        encoder = ssl_vit.VisionTransformer(**ENCODER)
        probe = LinearProbe(encoder, 2, "mae", seed=0)
        gradients = found.setdefault(accumulate, [])
        noting(probe, gradients, next(probe.heads.parameters()))
        images = torch.randn(2, 3, 16, 16)
        fit(probe, [(images, labels)] * batches, tmp_path, accumulate_grad_batches=accumulate)
    assert found[4] == pytest.approx(found[2])
    assert found[4] == pytest.approx(found[1])


def test_a_tuners_trials_leave_no_batch_size_behind(tmp_path):
    """BatchSizeFinder tries several sizes within one fit; the rate follows what is trained with then."""
    method = ssl_vit.MAE(ENCODER, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    data = ssl_vit.ImageDataModule(source="digits", image_size=16, workers=0, batch_size=2)
    finder = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=2)
    fitted = trainer(tmp_path, callbacks=[finder], max_steps=1, enable_checkpointing=True)
    fitted.fit(method, data)
    assert method.global_batch == data.batch_size > 2


def test_a_second_fit_has_its_own_global_batch(tmp_path):
    method = Bright(ENCODER)
    fit(method, [torch.randn(8, 3, 16, 16)], tmp_path)
    assert method.global_batch == 8
    fit(method, [torch.randn(2, 3, 16, 16)], tmp_path, accumulate_grad_batches=3)
    assert method.global_batch == 6


def test_a_smaller_batch_that_a_resumed_run_begins_with_is_not_taken_for_the_batch_size(tmp_path):
    """The last one of an epoch of 10 images in batches of 4: the rate stays that of 4."""
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    *whole, smaller = torch.randn(10, 3, 16, 16).split(4)
    fit(Bright(ENCODER), [*whole, smaller], tmp_path, callbacks=[keep], enable_checkpointing=True)
    method = Bright(ENCODER)
    loader: DataLoader = DataLoader([smaller, *whole], batch_size=None)  # pyright: ignore[reportArgumentType]
    trainer(tmp_path, max_epochs=2).fit(method, loader, ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert method.global_batch == 4
