"""Data workers, as processes."""

import os

from torch.utils.data import DataLoader, Dataset

from ssl_vit.data.loader import loader_options


class Groups(Dataset):
    """Tells the process group that it is read in."""

    def __len__(self) -> int:
        return 1

    def __getitems__(self, keys: list[int]) -> dict[str, int]:
        return {"group": os.getpgrp()}


def test_a_worker_stands_outside_the_runs_process_group():
    """Ctrl-C goes to the whole group: a worker that it killed would end the step that the run wants to end first."""
    (batch,) = DataLoader(Groups(), **loader_options(1))
    assert batch["group"] != os.getpgrp()
