"""ImageDataModule: sources as batches for a Trainer. Letters: B C H W of a batch, n of a source, m of a split."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import Float32, Int64, Shaped
from torch import Tensor
from torch.utils.data import DataLoader

from ssl_vit.config.checks import require
from ssl_vit.config.schema import DataConfig
from ssl_vit.data.cache import Cached, cached, cores, memory_gb
from ssl_vit.data.corrupt import ReadErrors, Replacements
from ssl_vit.data.dataset import AugmentedDataset, Batch
from ssl_vit.data.loader import EpochSampler, Loader, TrainLoader, loader_options
from ssl_vit.data.rng import permutation, stratified
from ssl_vit.data.sources import open_shards, open_source, source_class
from ssl_vit.data.sources.base import Shards, Source, Split
from ssl_vit.data.stream import Stream
from ssl_vit.data.transforms.color import normalize
from ssl_vit.data.transforms.crops import CenterCrop, Transform

log = logging.getLogger(__name__)
HELD_OUT = 0.2  # Fraction of a labeled source without a test split that is kept for evaluation.
SMALL_SIDE = 64  # Cached images up to this side, in pixels, are transformed faster than a worker would hand them over.


@dataclass(frozen=True)
class EvalSplit:
    """Images for evaluation: some of a source, and its labels in the numbering of the training classes."""

    source: Source
    labels: Int64[np.ndarray, " n"]
    index: Int64[np.ndarray, " m"]


class ImageDataModule(pl.LightningDataModule):
    """Images for pretraining, and labeled ones for evaluation where there are any.

    Args:
        transform: what training sees of an image (`data.transforms`); None for evaluation alone.
        data: a DataConfig, or give its fields as keywords.
        image_size: pixels of an evaluation image, a side or (height, width). channels: of an image.
        seed: of the order, the transforms' random numbers and the held-out split.
        labeled: train on images with a label that are not held out.

    After setup() there are has_labels, num_classes, classes (names, in the order of the labels), foreign_classes (those
    of the test split alone) and split_note (how the test split came about). read_errors records unreadable images.
    Without a test split, 20 % of the labeled images, drawn by seed, are held out as one from all but pretraining. Of a
    remote stream, those of data.test_path make both splits, and there is no labeled training.
    """

    def __init__(
        self,
        transform: Transform | None,
        data: DataConfig | None = None,
        *,
        image_size: int | tuple[int, int],
        channels: int = 3,
        seed: int = 0,
        labeled: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if data is not None and options:
            raise ValueError(f"data= and {', '.join(options)}= were given; put these fields into the DataConfig")
        self.data = data or DataConfig(**options)
        require(len(self.data.mean) == channels, "data.mean", self.data.mean, f"one number a channel: {channels}")
        self.transform, self.channels, self.seed, self.labeled = transform, channels, seed, labeled
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1])
        self.read_errors = ReadErrors(self.data.max_unreadable)
        self._train: Source | None = None
        self._shards: Shards | None = None
        self._eval_splits: dict[str, EvalSplit] | None = None

    def prepare_data(self) -> None:
        """Download a data set that may have to be, in one process of the machine."""
        if source_class(self.data.source).downloads:
            open_source(self.data, self.channels, "train")

    def setup(self, stage: str | None = None) -> None:
        """Open the sources and decode what fits in data.cache_gb; the second call does nothing."""
        if self._eval_splits is not None:
            return
        data, stops = self.data, self.data.on_error == "raise"
        train = open_source(data, self.channels, "train")
        test = open_source(data, self.channels, "test")
        if data.streams and self.transform is not None:
            self._shards = open_shards(data, train)
        if train is not None and not data.streams:
            train = cached(train, data.cache_gb, stops)
        if test is not None:
            test = cached(test, data.cache_gb - memory_gb(train), stops)
        streamed = self._stream_length(self._shards) if train is None and self._shards is not None else 0
        self.read_errors.images = streamed + sum(len(source) for source in (train, test) if source is not None)
        for source in (train, test):
            if isinstance(source, Cached):
                self.read_errors.note((source.name(i), error.reason) for i, error in sorted(source.unreadable.items()))
        self._train = train
        if train is not None:
            self._split(train, test)
        elif test is not None:
            self._split(test, None, "data.test_path")
        else:
            self.classes, self.has_labels, self.foreign_classes, self.split_note = [], False, [], "no evaluation"
            self._eval_splits = {}
            if self.transform is None:
                self._eval_split("test")  # raises

    def _split(self, train: Source, test: Source | None, key: str = "data.path") -> None:
        self.classes, self.has_labels = list(train.classes), bool((train.labels >= 0).any())
        self.foreign_classes = [name for name in test.classes if name not in self.classes] if test is not None else []
        lowest = 0 if self.has_labels else -1  # label of an image to evaluate on
        kept = np.flatnonzero(train.labels >= lowest)
        if test is not None:
            labels = self._renumbered(test)
            if len(index := np.flatnonzero(labels >= lowest)):
                self.split_note = "its own test split"
                own = EvalSplit(train, train.labels, kept), EvalSplit(test, labels, index)
                self._eval_splits = {"train": own[0], "test": own[1]}
                return
        held_out = kept
        self.split_note = "the first of the training images" if key == "data.path" else f"the first of {key}"
        if self.has_labels:
            held_out = kept[stratified(train.labels[kept], max(1, round(HELD_OUT * len(kept))), self.seed)]
            kept = np.setdiff1d(kept, held_out)
            self.split_note = f"held-out {100 * HELD_OUT:.0f} % of {key}, seed {self.seed}"
            self.split_note += "" if test is None else " (its test split has none of its classes)"
        parts = {"train": kept, "test": held_out}
        self._eval_splits = {name: EvalSplit(train, train.labels, index) for name, index in parts.items()}

    def _renumbered(self, test: Source) -> Int64[np.ndarray, " n"]:
        """Labels in the numbering of the training images, new classes behind; -1 for all when they share no class."""
        if not set(test.classes) & set(self.classes):
            return np.full(len(test), -1)
        self.classes += self.foreign_classes
        numbers = np.array([*(self.classes.index(name) for name in test.classes), -1])
        return numbers[test.labels]  # -1 takes the last one, -1

    @property
    def can_evaluate(self) -> bool:
        """Whether there are images to evaluate on: not of a remote stream alone."""
        self.setup()
        return bool(self._eval_splits)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.classes) if self.has_labels else 0

    def _eval_split(self, split: Split) -> EvalSplit:
        self.setup()
        if not self._eval_splits:
            line = f"data.path={self.data.path} is a remote stream, whose images cannot be read by number"
            raise ValueError(f"{line}: give data.test_path, or bring them to this machine")
        return self._eval_splits[split]

    def workers(self, source: Source | None) -> int:
        """Processes that read this source, or a stream (None): data.workers, or what auto means for it."""
        if self.data.workers != "auto":
            return self.data.workers
        if isinstance(source, Cached) and source.shapes.max(initial=0) <= SMALL_SIDE:
            return 0
        return min(max(cores() - 1, 1), 16)

    def train_dataloader(self) -> TrainLoader:
        """Every (labeled) training image once an epoch, split over the ranks; a last, smaller batch is dropped."""
        if self.transform is None:
            raise ValueError("transform=None is for evaluation alone; give ImageDataModule a transform to train with")
        self.setup()
        ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self._shards is not None and not self.labeled:
            loader = self._stream_loader(self._shards, self.transform, ranks)
        else:
            loader = self._source_loader(self._train, self.transform, ranks)
        if isinstance(self.trainer, pl.Trainer):
            # A run stopped inside a step has been handed a batch that it has not learned from.
            loader.trained = lambda: self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # pyright: ignore
        return loader

    def _source_loader(self, source: Source | None, transform: Transform, ranks: tuple[int, int]) -> TrainLoader:
        if source is None:
            rule = "images on this machine to train on labels: a remote stream cannot be held out from"
            raise ValueError(f"data.path={self.data.path} must be {rule}")
        index = self._eval_split("train").index if self.labeled else np.arange(len(source))
        sampler = EpochSampler(index, self.seed, *ranks)
        dataset = self._dataset(EvalSplit(source, source.labels, index), transform, self.data.on_error == "skip")
        whole, options = self._fills_a_batch(len(sampler)), loader_options(self.workers(source))
        return TrainLoader(dataset, self.data.batch_size, sampler=sampler, drop_last=whole, **options)

    def _stream_loader(self, shards: Shards, transform: Transform, ranks: tuple[int, int]) -> TrainLoader:
        own = max(1, self._stream_length(shards) // ranks[1])
        batch_size = self.data.batch_size if self._fills_a_batch(own) else own
        workers, read_errors = self.workers(None), None if self.data.on_error == "raise" else self.read_errors
        how = batch_size, own // batch_size, max(1, workers), ranks, read_errors
        stream = Stream(shards, transform, self.data, self.channels, self.seed, *how)
        sampler = EpochSampler(np.arange(len(stream)), self.seed, shuffle=False)
        return TrainLoader(stream, batch_size=batch_size, sampler=sampler, **loader_options(workers))

    def _stream_length(self, shards: Shards) -> int:
        images = self.data.epoch_size or (0 if shards.counts is None else int(shards.counts.sum()))
        if not images:
            raise ValueError(f"data.path={self.data.path} does not say how many images it has: give data.epoch_size")
        return images

    def _fills_a_batch(self, own: int) -> bool:
        given = self.data.batch_size
        if own < given:
            log.warning(f"data.batch_size={given} is more than a process's {own} training images: a step takes {own}")
        return own >= given

    def eval_dataloader(
        self, split: Split, limit: int = 0, seed: int | None = None, ranks: tuple[int, int] = (0, 1)
    ) -> DataLoader:
        """Central crops of the training or test images in a fixed order; with labels only labeled ones.

        limit: most images, 0 for all, drawn by seed; with labels each class keeps its fraction. ranks: (rank,
        world_size), every world_size-th image from rank on; the first come again where they do not divide.
        """
        index = self.eval_index(split, limit, seed)
        sampler = EpochSampler(index, self.seed, *ranks, drop_last=False, shuffle=False)
        return self._loader(split, CenterCrop(self.image_size, self.data.eval_crop), self.data.batch_size, sampler)

    def augmented_dataloader(
        self, transform: Transform, batch_size: int, limit: int, seed: int | None, ranks: tuple[int, int]
    ) -> DataLoader:
        """eval_dataloader's training images through a transform, shuffled by the `epoch` set in its sampler."""
        sampler = EpochSampler(self.eval_index("train", limit, seed), self.seed, *ranks, drop_last=False)
        return self._loader("train", transform, batch_size, sampler)

    def _loader(self, split: Split, transform: Transform, batch_size: int, sampler: EpochSampler) -> DataLoader:
        dataset = self._dataset(self._eval_split(split), transform)
        return Loader(dataset, batch_size, sampler=sampler, **loader_options(self.workers(dataset.source)))

    def _dataset(self, images: EvalSplit, transform: Transform, skips: bool = False) -> AugmentedDataset:
        """Evaluation, whose labels are read in order, has unreadable images replaced, never skipped."""
        replacements = Replacements(images.source, images.labels, images.index, self.read_errors, skips)
        kept = None if self.data.on_error == "raise" else replacements
        return AugmentedDataset(images.source, transform, self.seed, images.labels, kept)

    def eval_index(self, split: Split, limit: int = 0, seed: int | None = None) -> Int64[np.ndarray, " m"]:
        """Numbers, in their source, of the images that eval_dataloader gives, in its order."""
        images, seed = self._eval_split(split), self.seed if seed is None else seed
        if not 0 < limit < len(images.index):
            return images.index
        if self.has_labels:
            return images.index[stratified(images.labels[images.index], limit, seed)]
        if split == "test" and images.source is self._eval_split("train").source:
            return images.index[:limit]
        return images.index[np.sort(permutation(seed, 0, len(images.index))[:limit])]

    def labels(self, split: Split, limit: int = 0, seed: int | None = None) -> Int64[np.ndarray, " m"]:
        """Labels of the images that eval_dataloader gives, in its order; -1 without any."""
        return self._eval_split(split).labels[self.eval_index(split, limit, seed)]

    def normalize(self, images: Shaped[Tensor, "B C H W"]) -> Float32[Tensor, "B C H W"]:
        """uint8, or floats in 0 .. 255, normalized by data.mean and data.std."""
        return normalize(images, self.data.mean, self.data.std)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """The batch with its uint8 images normalized, on the device."""
        images = batch["images"]
        if "random" in batch:  # of a training batch whose transform changes colors
            statistics = (self.data.mean, self.data.std)
            return batch | {"images": self.transform.color(images, batch["random"], statistics)}  # pyright: ignore
        crops = isinstance(images, list)
        return batch | {"images": [self.normalize(crop) for crop in images] if crops else self.normalize(images)}
