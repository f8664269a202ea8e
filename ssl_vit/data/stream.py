"""Training from shards read front to back, their order a circle drawn from (seed, epoch) and entered at a drawn place.

Each process, and in it each worker stream, has a segment: every image is read once. Worker stream s of S makes the
batches s, s + S, ... of its process, shuffled with a buffer. So a batch is a function of (seed, epoch, its place in the
epoch, world_size, workers); WebDataset's own buffer cannot be resumed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.corrupt import ReadErrors, Replacements
from ssl_vit.data.dataset import AugmentedDataset, Batch
from ssl_vit.data.rng import permutation, uniforms
from ssl_vit.data.sources.base import Sample, Shards, Source, UnreadableImageError
from ssl_vit.data.transforms.crops import Transform
from ssl_vit.models.decode import open_encoded

UNCOUNTED = 2**32  # Numbers kept free for each shard where nobody has counted its images.
_SHARD_ORDER, _BUFFER = 0x72696E67, 0x627566666572  # any constants: keep these random numbers independent of the crops'
_BLOCK = 4096  # random numbers made at once


class Samples(Source):
    """The images of one batch, encoded."""

    def __init__(self, data: DataConfig, channels: int, samples: list[Sample]) -> None:
        super().__init__(data, channels, np.array([sample.label for sample in samples]), [])
        self.samples = samples

    def open_image(self, index: int) -> Image.Image:
        if problem := self.samples[index].problem:
            raise OSError(problem)
        return open_encoded(self.samples[index].encoded)

    def name(self, index: int) -> str:
        return self.samples[index].name


class Buffer:
    """0 .. count - 1 as a shuffle buffer of `size` gives them out, by (seed, epoch, place from `first` on)."""

    def __init__(self, count: int, size: int, seed: int, epoch: int, first: int) -> None:
        self.held, self.count = list(range(min(size, count))), count
        self._key, self._first = (seed ^ _BUFFER, epoch), first

    def __iter__(self) -> Iterator[int]:
        entering = len(self.held)
        for start in range(0, self.count, _BLOCK):
            places = self._first + np.arange(start, min(start + _BLOCK, self.count))
            for u in uniforms(*self._key, places, 1)[:, 0].tolist():
                place = int(u * len(self.held))
                if entering < self.count:
                    self.held.append(entering)
                    entering += 1
                number, self.held[place] = self.held[place], self.held[-1]
                self.held.pop()
                yield number


@dataclass(eq=False)
class Stream(Dataset):
    """One transform of each image of shards, batch by batch; ValueError: uncounted and fewer than worker streams."""

    shards: Shards
    transform: Transform
    data: DataConfig
    channels: int
    seed: int
    batch_size: int
    batches: int  # of an epoch, for each process
    worker_streams: int  # segments that a process reads at once
    ranks: tuple[int, int]  # (rank, world_size)
    read_errors: ReadErrors | None  # the record of unreadable images, which raise UnreadableImageError without it

    def __post_init__(self) -> None:
        counts, shards, world_size = self.shards.counts, len(self.shards.names), self.ranks[1]
        self._open: tuple[tuple[int, int], Iterator[tuple[int, Sample]]] | None = None
        self._firsts = None if counts is None else np.cumsum(counts) - counts
        if counts is None and self.worker_streams * world_size > shards:
            readers = f"{world_size} x {self.worker_streams} processes and workers"
            line = f"data.path={self.data.path} is {shards} shards of unknown length for {readers}"
            raise ValueError(f"{line}: set a smaller data.workers, or make more shards")

    @property
    def order(self) -> dict[str, int]:
        """What the order of an epoch depends on, beside its seed and number."""
        known = {"data.batch_size": self.batch_size, "the number of processes": self.ranks[1]}
        known |= {"data.workers": self.worker_streams, "data.shuffle_buffer": self.data.shuffle_buffer}
        return known | {"images of an epoch": len(self)}

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """The batch of (epoch, place in this process's epoch) keys; label -1 where one image replaced another."""
        epoch, batch = keys[0][0], keys[0][1] // self.batch_size
        waiting, self._open = self._open, None
        reader = waiting[1] if waiting and waiting[0] == (epoch, batch) else self._worker_stream(epoch, batch)
        numbers, samples = zip(*(next(reader) for _ in keys), strict=True)
        self._open = (epoch, batch + self.worker_streams), reader
        source, places, replacements = Samples(self.data, self.channels, list(samples)), np.arange(len(keys)), None
        if self.read_errors is not None:  # of one label: any image of the batch replaces any other
            skips = self.data.on_error == "skip"
            replacements = Replacements(source, np.zeros_like(places), places, self.read_errors, skips)
        dataset = AugmentedDataset(source, self.transform, self.seed, source.labels, replacements, np.array(numbers))
        made = dataset.__getitems__([(epoch, place) for place in places.tolist()])
        if replacements is not None and replacements.unreadable and len(made.get("label", ())) == len(keys):
            made["label"][sorted(replacements.unreadable)] = -1
        return made

    def _worker_stream(self, epoch: int, batch: int) -> Iterator[tuple[int, Sample]]:
        """(number, sample) of a batch and of those after it in its worker stream."""
        (rank, world_size), (turn, worker_stream) = self.ranks, divmod(batch, self.worker_streams)
        turns = [len(range(other, self.batches, self.worker_streams)) for other in range(worker_stream + 1)]
        count, before = turns[-1] * self.batch_size, sum(turns[:-1]) * self.batch_size
        first = rank * len(self) + before
        buffer = Buffer(count, self.data.shuffle_buffer, self.seed, epoch, first)
        order = iter(buffer)
        for _ in range(turn * self.batch_size):
            next(order)
        wanted, unseen = set(buffer.held), turn * self.batch_size + self.data.shuffle_buffer
        reader = rank * self.worker_streams + worker_stream, world_size * self.worker_streams
        segment = self._segment(self._pieces(epoch, first, count, reader), min(wanted))
        waiting: dict[int, tuple[int, Sample]] = {}
        for at in order:
            while at not in waiting:
                here, number, sample = next(segment)
                if here in wanted or here >= unseen:
                    waiting[here] = (number, sample)
            yield waiting.pop(at)

    def _segment(self, pieces: Iterator[tuple[int, int, int | None]], start: int) -> Iterator[tuple[int, int, Sample]]:
        """(place in the segment, number, sample) of a worker stream, from its place `start` on or a little before."""
        place, empty = 0, 0
        for shard, begin, end in pieces:
            if end is not None and place + end - begin <= start:  # nothing here is wanted any more
                place += end - begin
                continue
            first = shard * UNCOUNTED if self._firsts is None else int(self._firsts[shard])
            position = -1
            for position, sample in enumerate(self.shards.read(shard)):
                if position >= begin:
                    yield place, first + position, sample
                    place += 1
                if position + 1 == end:
                    break
            name, empty = self.shards.names[shard], empty + 1 if position < 0 else 0
            if end is not None and position + 1 < end:
                line = f"{name} holds {position + 1} images, its index says at least {end}"
                raise UnreadableImageError(f"{line}: copy it again, or make the shards again")
            if empty == len(self.shards.names):
                raise UnreadableImageError(f"{name} holds no images, nor does any other shard")

    def _pieces(
        self, epoch: int, first: int, count: int, reader: tuple[int, int]
    ) -> Iterator[tuple[int, int, int | None]]:
        """(shard, first image, end) of a worker stream: `count` images from place `first` of the epoch on.

        reader: (number of the worker stream, how many) of all. Uncounted shards (end None) come whole, and again.
        """
        order = permutation(self.seed ^ _SHARD_ORDER, epoch, len(self.shards.names))
        if self.shards.counts is None:
            while True:
                yield from ((int(shard), 0, None) for shard in order[reader[0] :: reader[1]])
        ends = np.cumsum(self.shards.counts[order])
        total = int(ends[-1])
        entry = uniforms(self.seed ^ _SHARD_ORDER, epoch, np.zeros(1, dtype=np.int64), 1)[0, 0]
        at = (int(entry * total) + first) % total
        while count:
            turn = int(np.searchsorted(ends, at, side="right"))
            begin = at - (int(ends[turn - 1]) if turn else 0)
            taken = min(int(ends[turn]) - at, count)
            yield int(order[turn]), begin, begin + taken
            at, count = (at + taken) % total, count - taken
