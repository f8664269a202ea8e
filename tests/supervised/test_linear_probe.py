"""A linear probe in a user's own Trainer: fit, validate, predict, checkpoints, resuming, several processes."""

import math
import os

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from evaluations import make_encoder, make_labeled, on_ranks
from pytorch_lightning.callbacks import ModelCheckpoint
from ranks import every, float64
from torch.utils.data import DataLoader, TensorDataset

import ssl_vit
from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.evaluate.evaluation import Evaluation
from ssl_vit.evaluate.features import Resources
from ssl_vit.models.weights import load_encoder
from ssl_vit.parallel.distributed import process_group
from ssl_vit.supervised import linear_probe
from ssl_vit.supervised.report import evaluator_of

PROTOCOLS = ["mae", "dino", "beit", "attentive"]


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return make_labeled(tmp_path_factory.mktemp("labeled"))


def make_images(count: int = 24) -> TensorDataset:
    """Normalized images whose class is their brightness, and labels."""
    labels = torch.arange(count) % 3
    images = torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images + labels[:, None, None, None], labels)


def loader(count: int = 24, batch_size: int = 8) -> DataLoader:
    return DataLoader(make_images(count), batch_size)


def make_trainer(folder, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "default_root_dir": folder, "enable_checkpointing": False, **quiet, **options}
    return pl.Trainer(**settings)


class Rates(pl.Callback):
    """Remembers the learning rate of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_checkpoint_is_the_whole_classifier(protocol, tmp_path):
    """Its file has encoder and heads, is read as weights alone, and load_encoder reads it too."""
    encoder = make_encoder()
    encoder.metadata = {"mean": [0.1] * 3, "std": [0.2] * 3}
    best = ModelCheckpoint(tmp_path, monitor="val/top1", mode="max")
    probe = ssl_vit.LinearProbe(encoder, classes=["a", "b", "c"], protocol=protocol)
    make_trainer(tmp_path, max_epochs=2, callbacks=[best], enable_checkpointing=True).fit(probe, loader(), loader(9, 3))
    again = ssl_vit.LinearProbe.load_from_checkpoint(best.best_model_path, weights_only=True).eval()
    images = make_images()[:5][0]
    scores = again(images)
    assert scores.shape == (5, 3)
    assert again.classes == ["a", "b", "c"]
    if best.best_model_score == probe.trainer.callback_metrics["val/top1"]:
        assert torch.equal(again.chosen, probe.chosen)
    assert again.encoder.metadata == encoder.metadata == load_encoder(best.best_model_path).metadata
    torch.testing.assert_close(load_encoder(best.best_model_path)(images), encoder(images), atol=0, rtol=0)


def test_the_frozen_encoder_stays_as_it_is_and_the_heads_alone_learn(tmp_path):
    encoder = ssl_vit.VisionTransformer(
        embed_dim=24, depth=2, num_heads=2, patch_size=4, image_size=16, drop_path=0.5
    ).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    probe = ssl_vit.LinearProbe(encoder, classes=3, protocol="beit")
    heads = [parameter.clone() for parameter in probe.heads.parameters()]
    make_trainer(tmp_path, max_epochs=1).fit(probe, loader())
    assert not probe.train().encoder.training
    for network in (encoder, probe.encoder):
        torch.testing.assert_close(network.state_dict(), before, atol=0, rtol=0)
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())  # the user's own
    moved = {id(p) for group in probe.configure_optimizers().param_groups for p in group["params"]}
    assert moved == {id(parameter) for parameter in probe.heads.parameters()}
    assert not any(torch.equal(*pair) for pair in zip(heads, probe.heads.parameters(), strict=True))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(protocol, labeled, tmp_path):
    """From the middle of the second epoch of four steps; order and crops are the data module's."""

    def fit(resume=None, callbacks=()) -> ssl_vit.LinearProbe:
        probe = ssl_vit.LinearProbe(make_encoder(), classes=3, protocol=protocol, base_lr=1.0, seed=0)
        options = {"image_size": probe.image_size, "batch_size": 7, "workers": 0, "labeled": True}
        data = ssl_vit.ImageDataModule(probe.transform(), source="folder", path=str(labeled), **options)
        trainer = make_trainer(tmp_path, max_epochs=3, callbacks=[*callbacks], enable_checkpointing=bool(callbacks))
        trainer.fit(probe, data, ckpt_path=resume, weights_only=True)
        assert trainer.global_step == 12
        return probe

    steps = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(callbacks=[steps])
    torch.manual_seed(99)
    rest, start = fit(tmp_path / "step=6.ckpt"), torch.load(tmp_path / "step=6.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), atol=0, rtol=0)
    assert not torch.equal(
        start["heads.0." + dict(whole.heads[0].named_parameters()).popitem()[0]], last_weights(whole)
    )


def last_weights(probe) -> torch.Tensor:
    return dict(probe.heads[0].named_parameters()).popitem()[1]


@pytest.mark.parametrize(("protocol", "by_epoch"), [("mae", False), ("dino", True), ("beit", True)])
@pytest.mark.parametrize("length", [{"max_epochs": 9}, {"max_steps": 27, "max_epochs": 100}])
def test_the_rate_follows_the_trainers_length_and_the_global_batch(protocol, by_epoch, length, tmp_path):
    """Three steps an epoch of two batches of 4 each; MAE's first ninth rises."""
    rates = Rates()
    probe = ssl_vit.LinearProbe(make_encoder(), classes=3, protocol=protocol)
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2, callbacks=[rates], **length)
    trainer.fit(probe, loader(batch_size=4))
    done = [step // 3 / 9 if by_epoch else step / 27 for step in range(27)]
    warmup = 1 / 9 if protocol == "mae" else 0
    expected = [d / warmup if d < warmup else 0.5 * (1 + math.cos(math.pi * (d - warmup) / (1 - warmup))) for d in done]
    assert rates.seen == pytest.approx([probe.base_lr * 8 / 256 * rate for rate in expected])
    assert probe.base_lr == {"mae": 0.1, "dino": 1e-3, "beit": 1e-3}[protocol]


def test_a_second_fit_scales_the_rate_by_its_own_batches(tmp_path):
    probe = ssl_vit.LinearProbe(make_encoder(), classes=3, protocol="dino")
    for batch_size in (8, 4):
        rates = Rates()
        make_trainer(tmp_path, max_epochs=1, callbacks=[rates]).fit(probe, loader(batch_size=batch_size))
        assert rates.seen[0] == pytest.approx(1e-3 * batch_size / 256)


@pytest.mark.parametrize(("classes", "names"), [(3, {"top1", "loss"}), (7, {"top1", "top5", "loss"})])
def test_validation_and_test_log_what_the_scores_say(classes, names, tmp_path):
    """Batches of unequal size, and an image without a label, which counts nowhere."""
    probe = ssl_vit.LinearProbe(make_encoder(), classes=classes, protocol="mae")
    images, labels = make_images(10)[:]
    labels = torch.arange(10) % classes
    data = DataLoader(TensorDataset(images, torch.cat([labels[:9], torch.tensor([-1])])), batch_size=4)
    trainer = make_trainer(tmp_path)
    scores = torch.cat(trainer.predict(probe, DataLoader(TensorDataset(images), batch_size=4)))[:9]
    top = scores.topk(min(5, classes)).indices == labels[:9, None]
    expected = {"top1": top[:, 0], "top5": top.any(1), "loss": torch.nn.functional.cross_entropy(scores, labels[:9])}
    for stage, measure in (("val", trainer.validate), ("test", trainer.test)):
        (found,) = measure(probe, data, verbose=False)
        assert found == pytest.approx({f"{stage}/{name}": float(expected[name].float().mean()) for name in names})


def test_validation_chooses_beits_block_and_the_test_chooses_nothing(tmp_path):
    probe = ssl_vit.LinearProbe(make_encoder(), classes=3, protocol="beit", base_lr=8.0)
    assert int(probe.chosen) == 2
    trainer = make_trainer(tmp_path, max_epochs=4)
    trainer.fit(probe, loader())
    assert int(probe.chosen) == 2  # nothing has chosen
    images, labels = make_images(24)[:]
    with torch.no_grad():
        values = probe.eval().extract(images)
        hits = [int((probe.scores(block, values).argmax(1) == labels).sum()) for block in range(3)]
        probe.heads[2].weight.neg_()  # so that the last block is not the best
        hits[2] = int((probe.scores(2, values).argmax(1) == labels).sum())
    best = hits.index(max(hits))
    assert best != 2
    (found,) = trainer.validate(probe, loader(), verbose=False)
    assert (found["val/block"], int(probe.chosen)) == (1 + best, best)
    assert found["val/top1"] == pytest.approx(hits[best] / 24)
    wrong = DataLoader(TensorDataset(images, (labels + 1) % 3), batch_size=8)
    assert trainer.test(probe, wrong, verbose=False)[0]["test/block"] == 1 + best
    torch.testing.assert_close(probe(images), probe.scores(best, values))


def test_the_seed_draws_the_heads_and_the_global_generator_stays():
    def weights(**options) -> torch.Tensor:
        return last_weights(ssl_vit.LinearProbe(encoder, classes=3, **options)).detach().clone()

    encoder, state = make_encoder(), torch.get_rng_state()
    for protocol in PROTOCOLS:
        one, two, other = (weights(protocol=protocol, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one, two)
        assert protocol != "mae" or not torch.equal(one, other) or not one.any()
    ssl_vit.LinearProbe({"size": "tiny", "image_size": 32}, classes=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(weights(), weights(seed=5))


# Several processes.


def test_two_processes_train_as_one_does(free_port, tmp_path):
    """Every rank has half of each batch, of which one has an image less; BatchNorm and rates are of the global batch.

    In float64, in which rounding is 1e-16 of a number's size: some hundred additions, a BatchNorm and AdamW's division
    by a gradient's size leave far less than 1e-9 after nine steps. A half batch's statistics would change the weights
    by whole steps.
    """
    data = list(loader())

    def fit(protocol: str, rank: int = 0, ranks: int = 1, **options):
        with float64():
            own = [{"images": images.double(), "label": labels, "skipped": 0} for images, labels in data]
            own = [batch | {name: every(batch[name], ranks, rank) for name in ("images", "label")} for batch in own]
            if rank == 1:
                own[1] = {"images": own[1]["images"][:3], "label": own[1]["label"][:3], "skipped": 1}
            elif ranks == 1:
                own[1] = {"images": own[1]["images"][:7], "label": own[1]["label"][:7], "skipped": 1}
            probe = ssl_vit.LinearProbe(make_encoder(), classes=3, protocol=protocol, base_lr=1.0)
            trainer = make_trainer(tmp_path, max_epochs=3, use_distributed_sampler=False, **options)
            trainer.fit(probe, DataLoader(own, batch_size=None), DataLoader(own, batch_size=None))
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if "val" in name}
            return {name: tensor.numpy() for name, tensor in probe.state_dict().items()}, metrics

    def ranked():
        rank = int(os.environ["RANK"])
        os.environ["LOCAL_RANK"] = str(rank)
        return [fit(protocol, rank, 2, strategy="ddp", devices=2) for protocol in PROTOCOLS]

    first, second = on_ranks(2, free_port, ranked)
    for protocol, one, other in zip(PROTOCOLS, first, second, strict=True):
        weights, metrics = fit(protocol)
        for name, expected in weights.items():
            for found in (one, other):
                close = {"rtol": 1e-9, "atol": 1e-9, "msg": lambda message, name=name: f"{name}: {message}"}
                torch.testing.assert_close(torch.from_numpy(found[0][name]), torch.from_numpy(expected), **close)
        assert one[1] == pytest.approx(metrics)


@pytest.mark.parametrize("protocol", ["mae", "beit", "attentive"])
def test_an_evaluation_on_two_processes_trains_the_heads_of_one(protocol, labeled, free_port, monkeypatch):
    """29 images: the one that comes again to fill up the ranks is not learned from twice."""
    data_config = DataConfig(source="folder", path=str(labeled), batch_size=7, workers=0)
    settings = {"data": data_config, "protocol": protocol, "epochs": 2, "batch_size": 10, "train_limit": 29}

    def found():
        steps, gathered = [], linear_probe.from_all_ranks

        def recorded(*given):
            steps.append(gathered(*given))
            return steps[-1]

        monkeypatch.setattr(linear_probe, "from_all_ranks", recorded)
        with process_group() as ranks:
            data = ssl_vit.ImageDataModule(None, data_config, image_size=16)
            evaluation = Evaluation(LinearProbeConfig(**settings), data, Resources("cpu", ranks))
            result = evaluator_of(evaluation.config)(evaluation, EncoderBackbone(make_encoder()))
        monkeypatch.undo()
        arrays = [tensor.numpy() for step in steps for tensor in step]
        return result.probabilities.numpy(), (result.how, result.head), arrays

    ranks = on_ranks(2, free_port, found)
    probabilities, what, steps = found()
    bits = {"atol": 2e-3, "rtol": 1e-3} if protocol == "attentive" else {"atol": 1e-5, "rtol": 1e-5}  # tokens have 16
    for scores, said, arrays in ranks:
        assert said == what
        for array, expected in zip(arrays, steps, strict=True):  # what the heads read, and labels, in every step
            np.testing.assert_allclose(array, expected, **bits)
        np.testing.assert_allclose(scores, probabilities, atol=2e-3)  # AdamW divides by its noise


# What is refused.


def test_mistakes_are_one_line(tmp_path):
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"protocol=grid must be one of mae, dino, beit, attentive"):
        ssl_vit.LinearProbe(encoder, 3, "grid")
    with pytest.raises(ValueError, match=r"pool=cls must be null with protocol=beit, which says itself what it reads"):
        ssl_vit.LinearProbe(encoder, 3, "beit", pool="cls")
    with pytest.raises(ValueError, match=r"layer=7 must be at most 3, the encoder's blocks"):
        ssl_vit.LinearProbe(encoder, 3, "mae", layer=7)
    other = make_trainer(tmp_path)
    other.strategy.connect(ssl_vit.LinearProbe(encoder, 4))
    other.save_checkpoint(tmp_path / "four.ckpt")
    with pytest.raises(ValueError, match=r"the checkpoint: heads.0.1.weight is \[4, 24\], but \[3, 24\] is needed"):
        make_trainer(tmp_path, max_epochs=1).fit(
            ssl_vit.LinearProbe(encoder, 3), loader(), ckpt_path=tmp_path / "four.ckpt"
        )
    probe, (images, labels) = ssl_vit.LinearProbe(encoder, 3), make_images(4)[:]
    for batch, message in ((images, "a batch has no labels"), ((images.to(torch.uint8), labels), "images arrive as")):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, max_epochs=1).fit(probe, DataLoader([batch], batch_size=None))
