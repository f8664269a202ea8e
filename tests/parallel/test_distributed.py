"""Several processes do what one does with the same images; weights that are spread over them are the same weights."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from ranks import MAKERS, SHARDED, normed, run, train

from ssl_vit.methods.dino import DINO
from ssl_vit.models.weights import load_encoder

RANKS = 2


@pytest.fixture(scope="module")
def together(tmp_path_factory, free_port) -> list[dict]:
    """What two processes find, all cases by both strategies in one start, which is what costs."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(run, (RANKS, free_port, folder), nprocs=RANKS)  # pyright: ignore[reportPrivateImportUsage]
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    found[0]["folder"] = str(folder)
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, dict]:
    """What one process finds."""
    folder = tmp_path_factory.mktemp("alone")
    return {case: train(case, folder / "1") for case in MAKERS}


def agree(found: dict, expected: dict, centerd: bool = False) -> None:
    assert found["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        own, other = (felt(name, values, centerd) for values in (found["weights"][name], tensor))
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5, msg=lambda message, name=name: f"{name}: {message}")


def felt(name: str, values: torch.Tensor, centerd: bool) -> torch.Tensor:
    """Those of a weight's values that the loss depends on: of the others AdamW makes steps out of rounding.

    Biases of keys cancel in the softmax, those before a BatchNorm (the linear maps', the last LayerNorm's) in its mean,
    which remembers them.
    """
    if name.endswith("qkv.bias"):
        query, _, value = values.chunk(3)
        return torch.cat([query, value])
    cancel = ("head.mlp.0.bias", "head.mlp.3.bias", "encoder.norm.bias", "running_mean")
    return values[:0] if centerd and name.endswith(cancel) else values


@pytest.mark.parametrize(
    ("strategy", "case"), [*(("ddp", case) for case in MAKERS), *(("fsdp", case) for case in SHARDED)]
)
def test_two_processes_train_as_one_does(together, alone, strategy, case):
    """Ten steps of AdamW in float32: the mean of both losses, and every weight, teacher and center, to 1e-5."""
    found = [rank[strategy, case] for rank in together]
    losses = torch.tensor([rank["losses"] for rank in found]).mean(0)
    torch.testing.assert_close(losses, torch.tensor(alone[case]["losses"]), rtol=0, atol=1e-5)
    agree(found[0], alone[case], centerd="BatchNorm" in case)
    assert found[1]["weights"] == {}


def test_batchnorm_sees_the_vectors_of_all_processes(together):
    """Outputs, gradients of a loss that is summed over processes, and what it remembers."""
    own = normed(0, 1)
    for name in ("outputs", "gradients"):
        joint = torch.stack([rank["normed"][name] for rank in together], dim=1).flatten(0, 1)
        torch.testing.assert_close(joint, own[name], rtol=1e-5, atol=1e-6)
    for rank in together:
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(rank["normed"][name], own[name], rtol=1e-5, atol=1e-6)


def test_ten_steps_move_the_weights_further_than_the_tolerance(alone):
    """Otherwise the comparison above would say nothing."""
    for case, found in alone.items():
        assert len(set(found["losses"])) == 10, case
        assert abs(found["losses"][0] - found["losses"][-1]) > 1e-4, case


def test_a_sharded_run_resumes_to_the_bit(together):
    whole, resumed = (together[0]["fsdp", name]["weights"] for name in ("whole", "resumed"))
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_a_sharded_run_is_not_resumed_by_another_strategy(together, tmp_path):
    path = Path(together[0]["folder"]) / "half.ckpt"
    with pytest.raises(ValueError, match=r"was made with trainer.strategy=fsdp: go on with the strategy that it had"):
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
    found = train(case, tmp_path, parts=2)
    losses = torch.tensor(found["losses"]).view(-1, 2).sum(1)  # Lightning has divided them
    torch.testing.assert_close(losses, torch.tensor(alone[case]["losses"]), rtol=0, atol=1e-5)
    agree(found, alone[case])
