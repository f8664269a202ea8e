"""Runs that are killed at a step, and go on as if they had not been: to the bit, for every method.

Each test kills real processes. The steps are fixed; the moment of the kill within and behind them is not.
"""

from pathlib import Path

import pytest
from small_runs import (
    IMAGE_SIZE,
    METHODS,
    PATCH_SIZE,
    args_of,
    assert_same_end,
    figures_of,
    last_step_logged,
    steps_kept,
)

from ssl_vit.config.tokenizer_schema import KMeansConfig
from ssl_vit.tokenizers.base import save_tokenizer
from ssl_vit.tokenizers.kmeans import KMeans

KILLED_AT = {"mae": 6, "dino": 3, "beit": 11}
MORE = [(method, step) for method in METHODS for step in (1, 5, 8, 10, 13) if KILLED_AT[method] != step]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def settings(folder) -> dict[str, list[str]]:
    """The args of a small run of each method; BEiT's with a tokenizer."""
    tokenizer = KMeans(KMeansConfig(vocab_size=16, patch_size=PATCH_SIZE, image_size=IMAGE_SIZE, patches=100))
    tokenizer.centers.normal_()
    save_tokenizer(tokenizer, folder / "tokenizer")
    more = {"beit": [f"tokenizer={folder / 'tokenizer'}"]}
    return {method: args_of(method, *more.get(method, [])) for method in METHODS}


@pytest.fixture(scope="module")
def whole(nursery, folder, settings):
    """The run of a method that nothing has interrupted; made once."""

    def run(method: str) -> Path:
        if not (folder / method).exists():
            assert nursery.run(folder, *settings[method], f"run_dir={method}") == 0, output(folder)
        return folder / method

    return run


def output(folder: Path) -> str:
    return (folder / "output").read_text()


def kill_and_resume(nursery, folder: Path, name: str, args: list[str], step: int) -> Path:
    """A run that is killed as soon as a step is logged, and then resumed."""
    run = folder / name
    args = [*args, f"run_dir={name}"]
    nursery.kill_when(lambda: last_step_logged(run) >= step, nursery.start(folder, *args))
    assert not (run / "encoder.safetensors").exists()
    assert nursery.run(folder, *args, "resume=auto") == 0, output(folder)
    return run


@pytest.mark.parametrize("method", ["mae", "dino", pytest.param("beit", marks=pytest.mark.slow)])
def test_a_killed_run_ends_as_one_that_was_not_to_the_bit(nursery, folder, settings, whole, method):
    killed = kill_and_resume(nursery, folder, f"{method}-killed", settings[method], KILLED_AT[method])
    assert_same_end(killed, whole(method))
    assert steps_kept(killed) == [14, 15]
    rows = figures_of(killed)
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(15))
    assert [row["step"] for row in rows if "monitor/knn_top1" in row] == [0, 5, 10, 15]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "step"), MORE)
def test_a_run_may_be_killed_at_any_step(nursery, folder, settings, whole, method, step):
    name = f"{method}-killed-at-{step}"
    assert_same_end(kill_and_resume(nursery, folder, name, settings[method], step), whole(method))


def test_two_processes_that_are_killed_end_as_two_that_were_not(nursery, folder):
    args = args_of("mae", "trainer.checkpoint_every_steps=1", "data.batch_size=128")
    for name in ("two", "two-killed"):
        processes = nursery.start_two(folder, *args, f"run_dir={name}")
        if name == "two-killed":
            nursery.kill_when(lambda: last_step_logged(folder / "two-killed") >= 7, *processes)
            processes = nursery.start_two(folder, *args, f"run_dir={name}", "resume=auto")
        assert nursery.wait(*processes) == [0, 0], output(folder)
    assert_same_end(folder / "two-killed", folder / "two")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(nursery, folder, whole):
    args = args_of("mae", "trainer.checkpoint_every_steps=100")
    assert_same_end(kill_and_resume(nursery, folder, "early", args, 3), whole("mae"))
