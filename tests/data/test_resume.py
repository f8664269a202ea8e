"""Under Lightning: each epoch has its own batches, and a run that was stopped anywhere resumes with the next one."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from ssl_vit.config.evaluation_schema import ShardsConfig
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.data.loader import TrainLoader
from ssl_vit.data.shard_writer import make_shards
from ssl_vit.data.transforms.crops import RandomCrop

pytestmark = pytest.mark.filterwarnings("ignore")


class Recorder(pl.LightningModule):
    """Writes down the images that training sees."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int], float]] = []
        self.fails_at = fails_at

    def training_step(self, batch):
        assert batch["images"].dtype == torch.float32
        if self.global_step == self.fails_at:
            raise KeyError("a failure inside a step")
        self.seen.append((self.current_epoch, batch["index"].tolist(), float(batch["images"].double().sum())))
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(
    folder, tmp_path, max_steps: int, resume=None, workers: int = 0, source="folder", batch_size: int = 4, **options
) -> list:
    transform = RandomCrop((8, 8), (0.2, 1.0))
    data = ImageDataModule(
        transform,
        source=source,
        path=str(folder),
        image_size=8,
        seed=0,
        batch_size=batch_size,
        workers=workers,
        shuffle_buffer=options.pop("shuffle_buffer", 6),
    )
    method = Recorder(options.pop("fails_at", -1))
    fails = method.fails_at > 0
    every = 100 if fails else 1
    checkpoints = ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=every, save_top_k=-1, save_on_exception=fails
    )
    trainer = pl.Trainer(
        max_steps=max_steps, accelerator="cpu", logger=False, callbacks=[checkpoints], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **options,
    )  # fmt: skip
    if fails:
        with pytest.raises(KeyError, match="inside a step"):
            trainer.fit(method, data)
    else:
        trainer.fit(method, data, ckpt_path=resume, weights_only=True)
    return method.seen


@pytest.fixture
def folder(tmp_path, write):
    for i in range(22):
        write(tmp_path / "images" / f"{i:02}.png", 10, 10, seed=i)
    return tmp_path / "images"


def test_each_epoch_has_its_own_batches(folder, tmp_path):
    seen = run(folder, tmp_path, 10)
    assert [epoch for epoch, _, _ in seen] == [0] * 5 + [1] * 5
    for epoch in range(2):
        indices = [index for at, batch, _ in seen for index in batch if at == epoch]
        assert len(set(indices)) == 20
    assert seen[0][1] != seen[5][1]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [1, 4, 5, 7, 10])
def test_a_stopped_run_resumes_with_the_next_batch(folder, tmp_path, stop, workers):
    whole = run(folder, tmp_path / "whole", 12)
    first = run(folder, tmp_path / "first", stop, workers=workers)
    (checkpoint,) = (tmp_path / "first").glob(f"*step={stop}.ckpt")
    rest = run(folder, tmp_path / "rest", 12, resume=checkpoint, workers=workers)
    assert first + rest == whole


@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (4, 1), (5, 2), (7, 2)])
def test_a_stopped_run_on_shards_resumes_with_the_next_batch(folder, tmp_path, stop, workers):
    """As many workers as before: they are part of what a batch of a stream is a function of."""
    make_shards(ShardsConfig(data=DataConfig(path=str(folder)), out=str(tmp_path / "shards"), shard_mb=0.007))
    options = {"workers": workers, "source": "webdataset"}
    whole = run(tmp_path / "shards", tmp_path / "whole", 12, **options)
    first = run(tmp_path / "shards", tmp_path / "first", stop, **options)
    (checkpoint,) = (tmp_path / "first").glob(f"*step={stop}.ckpt")
    rest = run(tmp_path / "shards", tmp_path / "rest", 12, resume=checkpoint, **options)
    assert first + rest == whole
    assert [epoch for epoch, _, _ in whole] == [0] * 5 + [1] * 5 + [2] * 2
    for epoch in range(2):
        assert len({index for at, batch, _ in whole for index in batch if at == epoch}) == 20


def images_of(epoch: int, seen: list) -> list[int]:
    return [index for at, batch, _ in seen for index in batch if at == epoch]


@pytest.mark.parametrize(("stop", "batch_size", "left"), [(2, 2, 14), (2, 3, 12), (2, 8, 8), (4, 8, 0), (5, 2, 0)])
def test_another_batch_size_neither_repeats_nor_loses_images_of_an_epoch(folder, tmp_path, stop, batch_size, left):
    """Of 22 images those that fill no batch wait for the next epoch, as always; an epoch that was whole stays so."""
    first = run(folder, tmp_path / "first", stop)
    rest = run(
        folder, tmp_path / "rest", -1, tmp_path / "first" / f"step={stop}.ckpt", batch_size=batch_size,
        max_epochs=2,
    )  # fmt: skip
    seen = images_of(0, first + rest)
    assert len(seen) == len(set(seen)) == stop * 4 + left
    whole = images_of(1, rest)
    assert len(whole) == len(set(whole)) == 22 // batch_size * batch_size
    assert {epoch for epoch, _, _ in rest} == ({0, 1} if left else {1})


@pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (3, 2), (2, 3)])
def test_with_another_number_of_processes_each_image_of_an_epoch_is_seen_once(folder, before, now):
    """A preempted job that comes back with fewer GPUs, or more."""

    def loaders(processes: int) -> list[TrainLoader]:
        made = []
        for rank in range(processes):
            data = ImageDataModule(RandomCrop((8, 8), (0.2, 1.0)), path=str(folder), image_size=8, seed=0, batch_size=2)
            data.trainer = SimpleNamespace(global_rank=rank, world_size=processes)  # pyright: ignore
            made.append(data.train_dataloader())
        return made

    seen = []
    for loader in loaders(before):
        batches = iter(loader)
        seen += [index for _ in range(2) for index in next(batches)["index"].tolist()]
        state = loader.state_dict()
    assert state["images"] == 4 * before
    for loader in loaders(now):
        loader.load_state_dict(state)
        seen += [index for batch in loader for index in batch["index"].tolist()]
    assert len(seen) == len(set(seen))
    assert 22 - len(seen) < 2 * now


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"workers": 2}, "depends on data.workers: 1 then, 2 now"),
        ({"shuffle_buffer": 9}, "depends on data.shuffle_buffer: 6 then, 9 now"),
        ({"batch_size": 2}, "depends on data.batch_size: 4 then, 2 now"),
    ],
)
def test_a_stream_whose_order_has_changed_goes_on_at_an_epochs_end_alone(folder, tmp_path, change, line):
    make_shards(ShardsConfig(data=DataConfig(path=str(folder)), out=str(tmp_path / "shards"), shard_mb=0.007))
    run(tmp_path / "shards", tmp_path / "first", 5, source="webdataset")
    for stop, resumes in ((2, False), (5, True)):
        again = [tmp_path / "shards", tmp_path / "rest", 7, tmp_path / "first" / f"step={stop}.ckpt"]
        if resumes:
            assert run(*again, source="webdataset", **change)[0][0] == 1
        else:
            with pytest.raises(ValueError, match=line):
                run(*again, source="webdataset", **change)


def test_images_that_were_added_do_not_change_the_order_in_the_middle_of_an_epoch(folder, tmp_path, write):
    run(folder, tmp_path / "first", 2)
    write(folder / "new.png", 10, 10, seed=99)
    with pytest.raises(ValueError, match="depends on images of an epoch: 22 then, 23 now"):
        run(folder, tmp_path / "rest", 12, tmp_path / "first" / "step=2.ckpt")


def test_a_run_of_shortened_epochs_resumes_too(folder, tmp_path):
    options = {"limit_train_batches": 3}
    whole = run(folder, tmp_path / "whole", 8, **options)
    first = run(folder, tmp_path / "first", 3, **options)
    rest = run(folder, tmp_path / "rest", 8, resume=tmp_path / "first" / "step=3.ckpt", **options)
    assert first + rest == whole
    assert [epoch for epoch, _, _ in whole] == [0] * 3 + [1] * 3 + [2] * 2


def test_accumulation_does_not_disturb_the_count(folder, tmp_path):
    options = {"accumulate_grad_batches": 2}
    whole = run(folder, tmp_path / "whole", 6, **options)
    first = run(folder, tmp_path / "first", 4, **options)
    rest = run(folder, tmp_path / "rest", 6, resume=tmp_path / "first" / "step=4.ckpt", **options)
    assert first + rest == whole


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [3, 5, 8])
def test_a_run_that_fails_inside_a_step_takes_that_step_again(folder, tmp_path, step, workers):
    """The failed step's batch was handed out but not learned from: counting batches handed out would lose it."""
    whole = run(folder, tmp_path / "whole", 12)
    first = run(folder, tmp_path / "first", 12, fails_at=step, workers=workers)
    (checkpoint,) = (tmp_path / "first").glob("*.ckpt")
    rest = run(folder, tmp_path / "rest", 12, resume=checkpoint, workers=workers)
    assert len(first) == step
    assert first + rest == whole
