"""Which images come in which order, and the loaders that resume in the middle of an epoch.

A state of our own is saved: Lightning's counts batches handed out, also one that a stopped run has not learned from.
"""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from ssl_vit.config.checks import printable
from ssl_vit.data.corrupt import ReadErrors
from ssl_vit.data.dataset import Batch
from ssl_vit.data.rng import permutation
from ssl_vit.data.sources.base import UnreadableImageError

log = logging.getLogger("ssl_vit")
IMAGE_KEYS = ("images", "image", "pixel_values")
LABEL_KEYS = ("label", "labels", "target")


class EpochSampler(DistributedSampler):
    """(epoch, index) of this rank's images, in the epoch's own random order; every rank gets equally many.

    Lightning leaves a DistributedSampler alone. Images that do not divide by the ranks are skipped in this epoch, or
    without drop_last the first ones come again.
    """

    def __init__(
        self, index: np.ndarray, seed: int, rank: int = 0, world_size: int = 1, *, drop_last: bool = True, shuffle=True
    ) -> None:
        super().__init__(index, world_size, rank, shuffle, seed, drop_last)  # pyright: ignore[reportArgumentType]
        self.index, self.skip = index, 0  # images of all ranks, from the epoch's first on
        self.num_samples = max(1, len(index) // world_size) if drop_last else -(-len(index) // world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = self.index[permutation(self.seed, self.epoch, len(self.index))] if self.shuffle else self.index
        rest = np.resize(order, self.num_samples * self.num_replicas)[self.skip :]
        epoch, self.skip = self.epoch, 0
        mine = rest[: len(rest) // self.num_replicas * self.num_replicas][self.rank :: self.num_replicas]
        return ((epoch, int(index)) for index in mine)


class FixedSampler(EpochSampler):
    """This rank's images in their own order, in each pass with the random numbers of epoch 0."""

    def __init__(self, index: np.ndarray, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(index, 0, rank, world_size, drop_last=False, shuffle=False)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: Lightning sets the training's epoch on all loaders."""


class Loader(DataLoader):
    """A DataLoader that notes what cannot be read: ValueError above max_unreadable, or UnreadableImageError."""

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        read_errors: ReadErrors | None = self.dataset.read_errors  # pyright: ignore
        if read_errors is None:
            yield from super().__iter__()
            return
        read_errors.check()
        for batch in super().__iter__():
            if found := batch.pop("read_errors", None):
                read_errors.note(found)
                read_errors.check()
                if not batch:
                    line = "{} cannot be read ({}), nor any that may replace it: repair it"
                    raise UnreadableImageError(line.format(*map(printable, found[-1])))
            yield batch


class TrainLoader(Loader):
    """A Loader that can resume in the middle of an epoch: Lightning saves and loads its state with a checkpoint.

    The state counts images, of all ranks: the first ones of the epoch's order are behind us, whatever batches they
    were in. So a run goes on with another batch size or number of processes, but for a stream, whose order they decide.
    """

    fit_loop: Callable[[], Any] | None = None  # Lightning's, which counts the batches trained on; None: all were
    _delivered = 0
    _start = 0, 0  # (images, batches) of the epoch that were behind us when the pass at hand began
    _resumed: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A generator, so that nothing is read before the first batch is needed: on resuming, Lightning makes the
        # iterator before it sets the epoch.
        sampler: EpochSampler = self.sampler  # pyright: ignore
        state, self._resumed, self._start = self._resumed, None, (0, 0)
        if state is not None and state["epoch"] == sampler.epoch:
            self._start = state["images"], self._batches(state["images"])
        sampler.skip, self._delivered = self._start
        for batch in super().__iter__():
            self._delivered += 1
            yield batch

    @property
    def images_per_batch(self) -> int:
        """Images of a batch of all ranks together."""
        return (self.batch_size or 1) * getattr(self.sampler, "num_replicas", 1)  # overfit_batches has its own sampler

    @property
    def _order(self) -> dict[str, int]:
        """What an epoch's order depends on, beside seed and epoch."""
        return getattr(self.dataset, "order", {"images of an epoch": len(getattr(self.sampler, "index", ()))})

    def _batches(self, images: int) -> int:
        """Batches of an epoch of which so many images are behind us; of those ahead of us as many are left."""
        sampler: EpochSampler = self.sampler  # pyright: ignore
        left, size = max(0, sampler.num_samples + -images // sampler.num_replicas), self.batch_size or 1
        return len(self) - (left // size if self.drop_last else -(-left // size))

    def state_dict(self) -> dict[str, Any]:
        """Epoch, images of it that are behind us, and what its order depends on."""
        if self._resumed is not None:  # loaded, and nothing read since
            return dict(self._resumed)
        trained = self.fit_loop and self.fit_loop().epoch_loop.batch_progress.current.processed
        images, batches = self._start
        images += ((self._delivered if trained is None else trained) - batches) * self.images_per_batch
        epoch = getattr(self.sampler, "epoch", 0)
        return {"epoch": epoch, "images": images, "batch": self.images_per_batch, "order": self._order}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next pass behind those images, if it is of the same epoch; Lightning counts in batches of now.

        ValueError: it would begin in the middle of an epoch whose order was another one.
        """
        older = {"batch": self.images_per_batch, "order": self._order}  # which count batches
        state = older | {"images": state_dict.get("batches", 0) * self.images_per_batch} | state_dict
        self._resumed = state
        loop = self.fit_loop and self.fit_loop()
        if loop is None or loop.epoch_progress.current.processed != state["epoch"] or not state["images"]:
            return
        progress = loop.epoch_loop.batch_progress
        for name, now in () if progress.is_last_batch else self._order.items():
            if (before := state["order"].get(name, now)) != now:
                raise ValueError(
                    f"the checkpoint to resume is in the middle of an epoch, whose order depends on {name}: {before} "
                    f"then, {now} now. Make it {before} again, or begin a new run from its weights with init_from="
                )
        if state["batch"] != self.images_per_batch:
            done = len(self) if progress.is_last_batch else self._batches(state["images"])
            moved = done - progress.current.processed
            for name, count in vars(progress.current).items():
                setattr(progress.current, name, count + moved)


def batch_images(batch: Any) -> Any:
    """The normalized images, [B, C, H, W] or a list, of a batch: a dict, (images, labels), or the images.

    ValueError for integers, and for a dict without any of IMAGE_KEYS.
    """
    first = batch[0] if isinstance(batch, list | tuple) else batch
    images = _value(batch, IMAGE_KEYS) if isinstance(batch, dict) else first
    for crop in images if isinstance(images, list | tuple) else [images]:
        if isinstance(crop, Tensor) and not crop.is_floating_point():
            line = f"images arrive as {crop.dtype}; a method takes normalized floats [B, C, H, W]"
            raise ValueError(f"{line}: normalize them in your dataset, or use ssl_vit.ImageDataModule")
    return images


def batch_labels(batch: Any) -> Tensor:
    """The labels of a batch: int64 [B], of a dict or of (images, labels). ValueError where it has none."""
    if isinstance(batch, dict):
        return _value(batch, LABEL_KEYS)
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[1]
    raise ValueError("a batch has no labels: give (images, labels), or use ssl_vit.ImageDataModule(labeled=True)")


def _value(batch: dict[str, Any], keys: tuple[str, ...]) -> Any:
    found = next((batch[key] for key in keys if key in batch), None)
    if found is None:
        raise ValueError(f"a batch has the keys {', '.join(map(str, batch))}: give it one of {', '.join(keys)}")
    return found


def warn_unless_normalized(images: Any) -> None:
    """A warning where a batch's largest value is above 30, which no normalized image has: 0 .. 255 is meant."""
    largest = float((images[0] if isinstance(images, list | tuple) else images).max())
    if largest > 30:
        line = f"images arrive with values up to {largest:g}; a method takes normalized floats"
        log.warning(f"{line}: subtract the mean and divide by the std in your dataset, or use ssl_vit.ImageDataModule")


def batch_length(images: Any) -> int:
    """Images in a batch, of which there may be several crops."""
    return len(images[0] if isinstance(images, list | tuple) else images)


def full_length(batch: Any) -> int:
    """Images that a batch was to have: those it has, and those that data.on_error=skip skipped."""
    return batch_length(batch_images(batch)) + (batch.get("skipped", 0) if isinstance(batch, dict) else 0)


def whole_batch(batch: Batch) -> Batch:
    """The collate function: __getitems__ has made the batch."""
    return batch


def loader_options(workers: int) -> dict[str, Any]:
    """Keywords of every DataLoader: forked workers where there are any, and PyTorch's global generator unmoved."""
    options = {"collate_fn": whole_batch, "pin_memory": torch.cuda.is_available(), "generator": torch.Generator()}
    if not workers:
        return options
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    options |= {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": method}
    return options | {"worker_init_fn": leave_process_group}


def leave_process_group(worker: int) -> None:
    """Keep a data worker out of its run's process group: Ctrl-C is for the run, which needs it to end its step."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
