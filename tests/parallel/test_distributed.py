"""Several processes do what one does with the same images; weights that are spread over them are the same weights."""

from pathlib import Path

import pytest
import torch
from ranks import MAKERS, SHARDED, STEPS, batch_norm, float64, make, run, train

from ssl_vit.methods.dino import DINO
from ssl_vit.models.weights import load_encoder

RANKS = 2
CLOSE = {"rtol": 1e-9, "atol": 1e-8}
"""Four steps in float64, each of at most 1e-4 for a weight. Rounding is 1e-16 of a number's size, which some hundred
additions and a BatchNorm make 1e-13 of a gradient's at most. AdamW divides by a gradient's size, or by its epsilon of
1e-8 if that is larger, so rounding moves no weight by more than 1e-13 / 1e-8 = 1e-5 of its steps: by 4e-9 after four.
An image that is missed or counted twice moves it by a whole step, ten thousand times as far."""


@pytest.fixture(scope="module")
def together(nursery, tmp_path_factory) -> list[dict]:
    """What two processes find, all cases by both strategies in one start."""
    folder = tmp_path_factory.mktemp("ranks")
    nursery.ranks(folder, run, RANKS, processes=RANKS)
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    found[0]["folder"] = str(folder)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    with float64():
        return {case: train(case, folder) for case in MAKERS}


def assert_same_training(losses: torch.Tensor, found: dict, expected: dict) -> None:
    """The same losses, and the same weights, teachers and centers."""
    torch.testing.assert_close(losses, torch.tensor(expected["losses"], dtype=losses.dtype), **CLOSE)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        torch.testing.assert_close(
            found["weights"][name], tensor, **CLOSE, msg=lambda message, name=name: f"{name}: {message}"
        )


@pytest.mark.parametrize(
    ("strategy", "case"), [*(("ddp", case) for case in MAKERS), *(("fsdp", case) for case in SHARDED)]
)
def test_two_processes_train_as_one_does(together, alone, strategy, case):
    """The mean of both losses is the loss of one."""
    first, second = (rank[strategy, case] for rank in together)
    losses = torch.tensor([first["losses"], second["losses"]], dtype=torch.float64).mean(0)
    assert_same_training(losses, first, alone[case])
    assert second["weights"] == {}


def test_batchnorm_sees_the_vectors_of_all_processes(together):
    """Outputs, gradients of a loss that is summed over processes, and what it remembers."""
    with float64():
        own = batch_norm(0, 1)
    for name in ("outputs", "gradients"):
        joint = torch.stack([rank["batch norm"][name] for rank in together], dim=1).flatten(0, 1)
        torch.testing.assert_close(joint, own[name], **CLOSE)
    for rank in together:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(rank["batch norm"][name], own[name], **CLOSE)


def test_a_step_that_one_process_cannot_take_is_taken_by_none(together):
    assert [rank["guard"] for rank in together] == [["step 1: another process"], ["step 1: loss"]]


def test_the_steps_move_the_weights_further_than_the_tolerance(alone, tmp_path):
    """Otherwise the comparison above would say nothing."""
    for case, found in alone.items():
        with float64():
            start = make(case, tmp_path).state_dict()
        moved = max(
            float((tensor.double() - start[name].double()).abs().max()) for name, tensor in found["weights"].items()
        )
        assert moved > 1000 * CLOSE["atol"], case
        assert len(found["losses"]) == STEPS, case


def test_a_sharded_run_resumes_to_the_bit(together):
    whole, resumed = (together[0][name]["weights"] for name in ("whole", "resumed"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_sharded_run_is_not_resumed_by_another_strategy(together, tmp_path):
    path = Path(together[0]["folder"]) / "half.ckpt"
    with pytest.raises(ValueError, match=r"was made with trainer.strategy=fsdp: resume with the strategy that it had"):
        train("dino", tmp_path, resume=path, max_epochs=2)


def test_a_sharded_checkpoint_is_one_file_with_the_whole_encoder(together):
    path = Path(together[0]["folder"]) / "half.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    method = DINO.load_from_checkpoint(path, weights_only=True).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in method.items())
    for which, prefix in (("teacher", "teacher_encoder."), ("student", "encoder.")):
        for name, tensor in load_encoder(path, which=which).state_dict().items():
            assert torch.equal(tensor, state[prefix + name])


@pytest.mark.parametrize("case", ["mae", "dino, clipped"])
def test_two_batches_for_a_step_are_one_of_twice_the_size(alone, tmp_path, case):
    """Not so where a loss looks across its batch: BEiT's mean over hidden patches, Sinkhorn-Knopp, BatchNorm, mixup."""
    with float64():
        found = train(case, tmp_path, accumulate=2)
    losses = torch.tensor(found["losses"], dtype=torch.float64).view(-1, 2).sum(1)  # Lightning has divided them
    assert_same_training(losses, found, alone[case])
