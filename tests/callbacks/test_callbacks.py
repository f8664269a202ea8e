"""What the callbacks log, write and leave alone."""

import json
import resource
from types import SimpleNamespace

import pytest
import torch

from ssl_vit.callbacks.image_logger import file_name, image_grid
from ssl_vit.callbacks.throughput import Throughput
from ssl_vit.data.loader import batch_images, batch_length
from ssl_vit.train.jsonl import JsonLines


@pytest.mark.parametrize(
    "batch", [torch.zeros(3, 1), {"images": torch.zeros(3, 1)}, [torch.zeros(3, 1), 0], {"images": [torch.zeros(3, 1)]}]
)
def test_batch_length_of_every_kind_of_batch(batch):
    assert batch_length(batch_images(batch)) == 3


def test_image_grid_shows_columns_in_display_colors():
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]
    red, black = torch.tensor([1.0, 0, 0]), torch.zeros(3)
    normalized = [
        ((color - torch.tensor(mean)) / torch.tensor(std)).view(1, 3, 1, 1).expand(2, 3, 4, 4) for color in (red, black)
    ]
    grid = image_grid({"red": normalized[0], "black": normalized[1]}, mean, std)
    assert grid.shape == (3, 2 + 16 + 2 * (128 + 2), 2 + 2 * (128 + 2))  # 4 pixels are 128, with 2 of white around each
    assert grid[:, 18, 2].tolist() == grid[:, 145, 129].tolist() == [255, 0, 0]
    assert grid[:, 18, 132].tolist() == [0, 0, 0]
    assert grid[:, 0, 0].tolist() == grid[:, 146, 2].tolist() == [255, 255, 255]
    assert bool((grid[:, 2:18, 2:132] < 128).any())  # its title
    assert bool((grid[:, 2:18, 132:] < 128).any())


def test_files_are_named_after_what_they_show():
    assert file_name("MAE", ["masked", "reconstruction"], 12) == "mae-step-0000012-masked-reconstruction.png"
    assert file_name("DINO", ["image", "attention of head 1", "attention of head 2"]) == "dino-image-attention.png"


def test_throughput_of_short_epochs_is_logged_where_lightning_logs():
    """Three batches an epoch, every fourth step logged: it never was, as epochs were counted one by one."""
    logged: list[int] = []
    trainer = SimpleNamespace(world_size=1, log_every_n_steps=4, global_step=0)
    trainer.fit_loop = SimpleNamespace(_should_accumulate=lambda: False)
    trainer.datamodule = SimpleNamespace(read_errors=SimpleNamespace(count=lambda: 0))
    module, throughput = SimpleNamespace(log=lambda *args: None), Throughput()
    module.log_dict = lambda found: logged.append((trainer.global_step, 0 <= found["throughput/data_wait"] <= 1))
    throughput.on_train_start()
    for _ in range(3):
        throughput.on_train_epoch_start()
        for batch in range(3):
            throughput.on_train_batch_start()
            trainer.global_step += 1
            throughput.on_train_batch_end(trainer, module, None, torch.zeros(2, 1), batch)
    assert logged == [(4, True), (8, True)]


def test_metrics_are_appended_and_a_full_disk_does_not_stop_the_run(tmp_path, caplog):
    logger = JsonLines(tmp_path / "metrics.jsonl")
    logger.log_metrics({"train/loss": torch.tensor(0.5)}, step=3)
    logger.log_metrics({"train/loss": 0.25}, step=4)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [{"step": 3, "train/loss": 0.5}, {"step": 4, "train/loss": 0.25}]
    unreadable = JsonLines(tmp_path)  # a folder cannot be appended to
    unreadable.log_metrics({"a": 1}, 0)
    unreadable.log_metrics({"a": 1}, 1)
    assert caplog.text.count("training goes on without it") == 1


def test_a_line_that_is_cut_off_by_a_full_disk_is_taken_back(tmp_path, caplog):
    logger = JsonLines(tmp_path / "metrics.jsonl")
    logger.log_metrics({"a": 1}, 0)
    whole = logger.size()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 5, limits[1]))
    try:
        logger.log_metrics({"a": 2}, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert logger.size() == whole
    assert "training goes on without it" in caplog.text
    logger.log_metrics({"a": 3}, 2)
    logger.cut(10**6)
    assert [json.loads(line)["step"] for line in logger.path.read_text().splitlines()] == [0, 2]
    logger.cut(whole)
    assert [json.loads(line)["step"] for line in logger.path.read_text().splitlines()] == [0]
