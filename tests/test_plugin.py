"""A method, the data module and the stages after it in a Lightning user's own code, with Lightning's own classes."""

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import FSDPStrategy
from pytorch_lightning.tuner.tuning import Tuner
from tiny_methods import ENCODER, OPTIONS, Brightness
from torch import nn
from torch.utils.data import DataLoader

import ssl_vit
from ssl_vit.callbacks.collapse import CollapseMonitor
from ssl_vit.callbacks.online_eval import OnlineProbe
from ssl_vit.callbacks.skipped_steps import SkippedSteps
from ssl_vit.parallel.fsdp import mesh_of

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


every_method = pytest.mark.parametrize("name", OPTIONS)


def make(name: str, **changes: Any) -> Any:
    given = {"encoder": ENCODER, "optim": {"warmup_epochs": 0}, "monitor": {"every_epochs": 0}}
    return getattr(ssl_vit, name)(**(given | OPTIONS[name] | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty-four images of two classes, in a training and a test split."""
    root, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(24):
        path = root / ("test" if number % 3 == 0 else "train") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(draws.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return root


def images_in(folder: Path, **options: Any) -> ssl_vit.ImageDataModule:
    return ssl_vit.ImageDataModule(source="folder", path=str(folder), **({"batch_size": 8, "workers": 0} | options))


def trainer(tmp_path: Path, **changes: Any) -> pl.Trainer:
    given = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    return pl.Trainer(**{**given, **QUIET, "default_root_dir": tmp_path, **changes})


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@every_method
def test_forward_and_predict_are_the_exported_encoder(name, folder, tmp_path):
    method, images = make(name).eval(), torch.randn(3, 3, 16, 16)
    encoder = method.export_encoder().eval()
    assert torch.equal(method(images), encoder(images))
    batches = trainer(tmp_path).predict(method, DataLoader([(image, 0) for image in images], batch_size=2))
    assert torch.equal(torch.cat(batches), encoder.features(images, pool=method.readout.pool))
    assert sum(map(len, trainer(tmp_path).predict(method, images_in(folder)))) == 16


@every_method
def test_validation_logs_the_losses_and_moves_nothing(name, folder, tmp_path):
    method, data, run = make(name, seed=0), images_in(folder), trainer(tmp_path)
    run.fit(method, data)
    before, step = weights(method), run.global_step
    (first,) = run.validate(method, data, verbose=False)
    (second,) = run.validate(method, data, verbose=False)
    assert first == second
    assert first["val/loss"] == pytest.approx(sum(value for key, value in first.items() if key != "val/loss"))
    assert len(first) > 1
    assert np.isfinite(first["val/loss"])
    assert same(before, weights(method))
    assert run.global_step == step


@every_method
def test_checkpoints_and_early_stopping_follow_the_validation_loss(name, folder, tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/loss", filename="best")
    stop = EarlyStopping("val/loss", patience=1, min_delta=1e9)
    run = trainer(tmp_path, max_epochs=5, callbacks=[best, stop], enable_checkpointing=True)
    method = make(name)
    run.fit(method, images_in(folder))
    assert run.current_epoch == 2
    more = {"tokenizer": Brightness()} if name == "BEiT" else {}
    loaded = type(method).load_from_checkpoint(best.best_model_path, weights_only=True, **more)
    assert loaded.hparams == method.hparams
    encoder = ssl_vit.load_encoder(best.best_model_path)
    assert encoder.metadata["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert same(weights(encoder), weights(loaded.export_encoder()))


def test_a_tokenizer_of_ours_comes_out_of_the_checkpoint(tmp_path):
    from ssl_vit.config.tokenizer_schema import KMeansConfig
    from ssl_vit.tokenizers.kmeans import KMeans

    tokenizer = KMeans(KMeansConfig(vocab_size=8, patch_size=4, image_size=16))
    nn.init.normal_(tokenizer.centers)
    method = make("BEiT", tokenizer=tokenizer)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, DataLoader([{"images": [torch.randn(4, 3, 16, 16), torch.rand(4, 3, 16, 16)]}], batch_size=None))
    run.save_checkpoint(tmp_path / "beit.ckpt")
    loaded = ssl_vit.BEiT.load_from_checkpoint(tmp_path / "beit.ckpt", weights_only=True)
    assert same(weights(method), weights(loaded))
    own = make("BEiT")
    run = trainer(tmp_path, max_steps=1)
    run.fit(own, DataLoader([{"images": [torch.randn(4, 3, 16, 16), torch.rand(4, 3, 16, 16)]}], batch_size=None))
    run.save_checkpoint(tmp_path / "own.ckpt")
    with pytest.raises(ValueError, match="tokenizer= is missing: give the one of your own"):
        ssl_vit.BEiT.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)


@every_method
def test_seed_everything_decides_masks_and_order(name, folder, tmp_path):
    def after(seed: int, workers: int = 0) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        method = make(name)
        pl.seed_everything(seed, verbose=False)
        trainer(tmp_path).fit(method, images_in(folder, workers=workers))
        return weights(method)

    first = after(1)
    assert same(first, after(1))
    assert same(first, after(1, workers=4))
    assert not same(first, after(2))


@every_method
def test_a_users_random_state_is_as_it_was(name, folder, tmp_path):
    states = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, *args):
            random.seed(5), np.random.seed(5), torch.manual_seed(5)
            states.append((random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()))

        def on_train_batch_end(self, *args):
            ours, numpys, torchs = states.pop()
            assert random.getstate() == ours
            assert np.random.get_state()[1].tolist() == numpys
            assert torch.equal(torch.get_rng_state(), torchs)

    method = make(name, encoder=ENCODER | {"drop_path": 0.5, "grad_checkpointing": True})
    trainer(tmp_path, callbacks=[Watch()]).fit(method, images_in(folder))
    assert not states


def test_two_global_seeds_leave_two_global_states(folder, tmp_path):
    left = []
    for seed in (123, 456):
        torch.manual_seed(seed)
        trainer(tmp_path, max_steps=1).fit(make("MAE", seed=0), images_in(folder))
        left.append(torch.rand(3))
    assert not torch.equal(*left)


@every_method
def test_monitors_travel_with_the_method(name, folder, tmp_path):
    method = make(name, monitor={"every_epochs": 1})
    run = trainer(tmp_path, logger=CSVLogger(tmp_path, name="", version=""))
    run.fit(method, images_in(folder))
    kinds = [type(callback) for callback in run.callbacks]
    assert [kinds.count(kind) for kind in (SkippedSteps, CollapseMonitor, OnlineProbe)] == [1, 1, 1]
    assert {"monitor/linear_top1", "monitor/knn_top1", "monitor/rankme"} <= run.callback_metrics.keys()
    assert list((tmp_path / "images").glob("*.png"))
    run.fit(method, images_in(folder))  # again: each is there once
    assert [type(callback) for callback in run.callbacks].count(SkippedSteps) == 1
    off = trainer(tmp_path)
    off.fit(make(name, monitor={"every_epochs": 0, "collapse": False, "skipped_steps": False}), images_in(folder))
    assert not {type(callback) for callback in off.callbacks} & {SkippedSteps, CollapseMonitor, OnlineProbe}


def test_a_users_own_monitor_is_kept(tmp_path, folder):
    mine = SkippedSteps()
    run = trainer(tmp_path, callbacks=[mine])
    run.fit(make("MAE"), images_in(folder))
    assert [callback for callback in run.callbacks if isinstance(callback, SkippedSteps)] == [mine]


def test_a_step_that_is_not_finite_is_listed_beside_the_logs(tmp_path):
    batches = [torch.randn(4, 3, 16, 16), torch.full((4, 3, 16, 16), float("nan")), torch.randn(4, 3, 16, 16)]
    trainer(tmp_path).fit(make("MAE"), DataLoader(batches, batch_size=None))
    (line,) = (tmp_path / "skipped_steps.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 1


def test_the_loss_is_in_the_progress_bar(folder, tmp_path):
    run = trainer(tmp_path, log_every_n_steps=1)
    run.fit(make("MAE"), images_in(folder))
    assert "train/loss" in run.progress_bar_metrics


def test_overfitting_a_batch_as_lightning_does(folder, tmp_path):
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    run = trainer(tmp_path, overfit_batches=1, max_epochs=3, callbacks=[saved], enable_checkpointing=True)
    run.fit(make("MAE"), images_in(folder))
    assert run.global_step == 3


def test_a_second_fit_begins_from_a_clean_slate(tmp_path):
    method, rates = make("MAE"), []

    class Rates(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    for batch in (4, 16):
        run = trainer(tmp_path, callbacks=[Rates()], log_every_n_steps=1)
        run.fit(method, DataLoader([torch.randn(3, 16, 16)] * 16, batch_size=batch))
    assert rates[-1] == 4 * rates[0]


def test_lightnings_own_fsdp_is_refused_in_one_line(tmp_path):
    run = trainer(tmp_path)
    run._accelerator_connector.strategy = FSDPStrategy.__new__(FSDPStrategy)  # a real one wants a GPU
    with pytest.raises(ValueError, match=r"FSDPStrategy.*ModelParallelStrategy\(data_parallel_size=N") as error:
        mesh_of(run)
    assert "\n" not in str(error.value)


@every_method
def test_moving_averages_of_lightning(name, folder, tmp_path):
    method = make(name)
    run = trainer(tmp_path, callbacks=[EMAWeightAveraging(decay=0.5)], max_epochs=2)
    run.fit(method, images_in(folder))
    assert all(tensor.isfinite().all() for tensor in method.export_encoder().state_dict().values())


def test_the_tuner_finds_a_rate_and_a_batch_size(folder, tmp_path):
    method, data = make("MAE"), images_in(folder, batch_size=2)
    found = Tuner(trainer(tmp_path)).lr_find(method, datamodule=data, num_training=6, attr_name="learning_rate")
    assert len(set(found.results["lr"])) > 3  # the search's own rates, not the schedule's
    if (rate := found.suggestion(skip_begin=0, skip_end=0)) is not None:
        assert method.learning_rate == pytest.approx(rate)
    size = Tuner(trainer(tmp_path)).scale_batch_size(method, datamodule=data, steps_per_trial=1, max_trials=2)
    assert data.batch_size == size > 2


@every_method
def test_lightning_cli_sets_and_documents_every_option(name, folder, tmp_path, monkeypatch, capsys):
    cli = pytest.importorskip("pytorch_lightning.cli")
    pytest.importorskip("jsonargparse")
    tokenizer = ["--model.tokenizer", str(tmp_path)] if name == "BEiT" else []
    if tokenizer:
        from ssl_vit.config.tokenizer_schema import KMeansConfig
        from ssl_vit.tokenizers.base import save_tokenizer
        from ssl_vit.tokenizers.kmeans import KMeans

        save_tokenizer(KMeans(KMeansConfig(vocab_size=8, patch_size=4, image_size=16)), tmp_path)
    own = {"MAE": "mask_ratio=.6", "DINO": "prototypes=32", "BEiT": "mask_ratio=.5"}[name].split("=")
    model = {"local_crops": 0, "head_hidden": 16, "blur_p": "[0,0,0]"} if name == "DINO" else {}
    model |= {own[0]: own[1], "encoder.size": "tiny", "encoder.image_size": 16, "encoder.patch_size": 4}
    model |= {"optim.base_lr": "1e-3", "seed": 3, "monitor.every_epochs": 0}
    data = {"source": "folder", "path": folder, "batch_size": 4, "eval_crop": "1.0"}
    args = [f"--model.{key}={value}" for key, value in model.items()] + tokenizer
    args += [f"--data.{key}={value}" for key, value in data.items()]
    args += ["--trainer.max_steps=1", "--trainer.accelerator=cpu", f"--trainer.default_root_dir={tmp_path}"]
    args += ["--trainer.logger=false", "--trainer.enable_checkpointing=false"]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *args])
    made = cli.LightningCLI(getattr(ssl_vit, name), ssl_vit.ImageDataModule, save_config_callback=None)
    assert getattr(made.model.config, own[0]) == float(own[1])
    assert (made.model.encoder.embed_dim, made.model.optim_config.base_lr, made.model.seed) == (192, 1e-3, 3)
    assert (made.datamodule.data.batch_size, made.datamodule.data.eval_crop) == (4, 1.0)
    assert made.trainer.global_step == 1
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--help"])
    with pytest.raises(SystemExit):
        cli.LightningCLI(getattr(ssl_vit, name), ssl_vit.ImageDataModule, save_config_callback=None)
    page = " ".join(capsys.readouterr().out.split())
    for key in [*vars(made.model.config), "encoder.drop_path", "optim.clip_grad", "seed"]:
        assert f"--model.{key}" in page
    for sentence in ("Stochastic-depth rate of the last block", "Images per process and step", "Peak learning rate"):
        assert sentence in page


def test_the_commands_loggers_by_name(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from ssl_vit.cli.main import run_command
    from ssl_vit.config.checks import ConfigError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    small = ["encoder.embed_dim=16", "encoder.depth=1", "encoder.num_heads=2", "trainer.max_steps=2"]
    small += ["monitor.train_limit=50", "monitor.test_limit=50", "data.batch_size=16"]
    run_command(
        "pretrain", "method=mae", "run_dir=run", "trainer.logger=csv,wandb", "trainer.log_every_steps=1", *small
    )
    assert "train/loss" in Path("run/csv/version_0/metrics.csv").read_text()
    wandb.finish()  # which the end of the process does
    assert list(Path("run").glob("wandb/offline-run-*/*.wandb"))
    assert not list(Path("run").glob("events.*"))
    assert list(Path("run/images").glob("*.png"))
    run_command("pretrain", "method=mae", "run_dir=none", "trainer.logger=none", *small)
    assert not list(Path("none").glob("events.*"))
    with pytest.raises(
        ConfigError, match=r"trainer\.logger=\[tensorbord\] must be of tensorboard, csv and wandb, or none"
    ):
        run_command("pretrain", "method=mae", "trainer.logger=tensorbord")


def test_wandb_offline(folder, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from pytorch_lightning.loggers import WandbLogger

    logger = WandbLogger(save_dir=tmp_path, offline=True)

    def full(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("ssl_vit.callbacks.image_logger.write_atomic", full)  # images go there without a file too
    trainer(tmp_path, logger=logger).fit(make("MAE", monitor={"every_epochs": 1}), images_in(folder))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    logger.experiment.finish()


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, 0)] + [lambda x, k=k: {k: x, "label": 0} for k in ("image", "images", "pixel_values")],
)
def test_batches_of_other_kinds(wrap, tmp_path):
    loader = DataLoader([wrap(torch.randn(3, 16, 16)) for _ in range(4)], batch_size=2)
    run = trainer(tmp_path)
    run.fit(make("MAE"), loader)
    assert run.global_step == 2


def test_images_that_are_not_normalized_are_refused_by_their_type(tmp_path):
    with pytest.raises(ValueError, match=r"images arrive as torch\.uint8; a method takes normalized floats"):
        trainer(tmp_path).fit(make("MAE"), DataLoader(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), batch_size=2))


def test_mean_and_std_travel_into_the_exported_metadata(tmp_path):
    method = make("MAE", mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    trainer(tmp_path).fit(method, DataLoader(torch.randn(4, 3, 16, 16), batch_size=2))
    encoder = ssl_vit.load_encoder(method.export(tmp_path))
    assert (encoder.metadata["mean"], encoder.metadata["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    with pytest.raises(ValueError, match=r"mean=\[0.5\] must be one number a channel"):
        make("MAE", mean=[0.5])


def test_the_probe_takes_all_from_its_encoder(folder, tmp_path):
    encoder = ssl_vit.VisionTransformer(**ENCODER)
    encoder.metadata = {"mean": [0.1] * 3, "std": [0.2] * 3}
    probe, data = ssl_vit.LinearProbe(encoder, classes=2, protocol="dino"), images_in(folder, labeled=True)
    run = trainer(tmp_path, callbacks=[EarlyStopping("val/top1", mode="max")])
    run.fit(probe, data)
    assert (data.data.mean, data.data.std, run.global_step) == ([0.1] * 3, [0.2] * 3, 2)
    with pytest.raises(ValueError, match=r"data\.mean=\[0\.4, 0\.4, 0\.4\] must be \[0\.1, 0\.1, 0\.1\], by which"):
        trainer(tmp_path).fit(probe, images_in(folder, labeled=True, mean=[0.4] * 3))


def test_a_probe_whose_first_fit_was_interrupted_begins_anew(tmp_path):
    probe, rates = ssl_vit.LinearProbe(ssl_vit.VisionTransformer(**ENCODER), classes=2, protocol="dino"), []

    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            raise ValueError("stop")

    batch = [(torch.randn(3, 16, 16), number % 2) for number in range(16)]
    for size in (4, 16):
        with pytest.raises(ValueError, match="stop"):
            trainer(tmp_path, callbacks=[Interrupt()]).fit(probe, DataLoader(batch, batch_size=size))
    assert rates[1] == pytest.approx(4 * rates[0])


class OnlyLosses(ssl_vit.Method):
    """The least that a method can be: it pulls the patches of an image together."""

    def losses(self, images):
        return {"spread": self.encoder(images)[:, 1:].var(1).mean()}


class WithOptions(OnlyLosses):
    """One with options of its own, one of which has no default."""

    def __init__(self, name: str, weight: float = 2.0, sizes: tuple[int, ...] = (1, 2), **options):
        super().__init__(**options)
        self.save_hyperparameters()
        self.weight, self.name = weight, name

    def losses(self, images):
        return {"spread": self.weight * super().losses(images)["spread"]}


def test_losses_alone_make_a_method(folder, tmp_path):
    trainer(tmp_path).fit(OnlyLosses(encoder=ENCODER, monitor={"every_epochs": 0}), images_in(folder))
    method = WithOptions("a", weight=3.0, encoder=ENCODER, monitor={"every_epochs": 0})
    assert (method.config.weight, method.hparams["weight"], method.hparams["name"]) == (3.0, 3.0, "a")
    run = trainer(tmp_path)
    run.fit(method, images_in(folder))
    run.save_checkpoint(tmp_path / "own.ckpt")
    loaded = WithOptions.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert (loaded.weight, loaded.name, loaded.encoder.embed_dim) == (3.0, "a", 16)
    with pytest.raises(ValueError, match=r"method\.wait is no setting"):
        WithOptions("a", wait=1.0)


def test_losses_alone_make_a_command(tmp_path, monkeypatch, capsys):
    from ssl_vit.cli.main import run_command

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mine", sys.modules[__name__])
    small = ["encoder.embed_dim=16", "encoder.depth=1", "encoder.num_heads=2", "trainer.max_steps=2"]
    run_command("pretrain", "method=mine:OnlyLosses", "run_dir=run", "monitor.every_epochs=0", *small)
    assert ssl_vit.load_encoder("run").metadata["method"] == "mine:OnlyLosses"
    run_command("pretrain", "method=mine:WithOptions", "method.weight=4", "--dry-run", "--all")
    assert "method.weight" in capsys.readouterr().out
    run_command("pretrain", "method=mine:WithOptions", "--help")
    assert "method.weight=2.0" in capsys.readouterr().out


def test_fine_tuning_comes_out_of_its_checkpoint(folder, tmp_path):
    encoder = ssl_vit.VisionTransformer(**ENCODER)
    encoder.metadata = {"mean": [0.1] * 3, "std": [0.2] * 3}
    options = {"pool": "mean", "ema": 0.5, "monitor": {"every_epochs": 0}}
    tune = ssl_vit.FineTune(encoder, ["a", "b"], optim={"warmup_epochs": 0}, **options)
    best = ModelCheckpoint(tmp_path, monitor="val/top1", mode="max", filename="best")
    run = trainer(tmp_path, callbacks=[best], enable_checkpointing=True)
    data = images_in(folder, labeled=True)
    run.fit(tune, data)
    assert (data.data.mean, data.data.std) == ([0.1] * 3, [0.2] * 3)  # the encoder's
    loaded = ssl_vit.FineTune.load_from_checkpoint(best.best_model_path, weights_only=True)
    assert loaded.hparams == tune.hparams
    assert same(weights(tune), weights(loaded))
    assert loaded.model.encoder.metadata == encoder.metadata
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded.eval()(images), tune.eval()(images))
    assert torch.cat(trainer(tmp_path).predict(loaded, DataLoader(images, batch_size=2))).sum(1).allclose(torch.ones(2))


def test_tokenizer_trainings_come_out_of_their_checkpoints(folder, tmp_path):
    from ssl_vit.tokenizers.dvae import DVAETraining

    training = DVAETraining(
        vocab_size=8, patch_size=4, image_size=16, width=4, residuals=1, code_dim=4, monitor={"every_epochs": 0}
    )
    run = trainer(tmp_path)
    run.fit(training, images_in(folder))
    run.save_checkpoint(tmp_path / "tokenizer.ckpt")
    loaded = DVAETraining.load_from_checkpoint(tmp_path / "tokenizer.ckpt", weights_only=True)
    assert loaded.config == training.config
    assert same(weights(training), weights(loaded))


def test_options_may_be_omegaconfs():
    """As Hydra hands them over: nested, with interpolations."""
    tree = {"width": 16, "encoder": {"embed_dim": "${width}", "depth": 1, "num_heads": 2, "patch_size": 8}}
    tree |= {"optim": {"betas": [0.8, 0.9]}}
    options = OmegaConf.create(tree | {"method": {"mask_ratio": 0.5}})
    method = ssl_vit.MAE(encoder=options.encoder, optim=options.optim, **options.method)
    assert method.encoder.embed_dim == 16
    assert list(method.optim_config.betas) == [0.8, 0.9]
    assert type(method.hparams["encoder"]["embed_dim"]) is int
