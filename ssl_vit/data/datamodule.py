"""ImageDataModule: a source and a transform as batches for a Lightning Trainer; labeled images for evaluation.

Letters: B images, C channels, H W pixels.
"""

import logging
from dataclasses import dataclass
from typing import Any, cast

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
from ssl_vit.data.loader import EpochSampler, Loader, ShuffledRankSampler, TrainLoader, loader_options
from ssl_vit.data.rng import permutation, stratified
from ssl_vit.data.sources import Split, open_shards, open_source
from ssl_vit.data.sources.base import Source
from ssl_vit.data.sources.webdataset import Shards
from ssl_vit.data.stream import Stream, StreamSampler
from ssl_vit.data.transforms.color import normalize
from ssl_vit.data.transforms.crops import CenterCrop, Transform

log = logging.getLogger(__name__)
HELD_OUT = 0.2
"""Share of a labeled source without a test part that is kept for evaluation."""
SMALL_SIDE = 64
"""Cached images up to this side, in pixels, are turned into views faster than a worker would hand them over."""


@dataclass(frozen=True)
class EvalSplit:
    """Images for evaluation: some of a source, and its labels in the numbering of the training classes."""

    source: Source
    labels: Int64[np.ndarray, " n"]
    index: Int64[np.ndarray, " m"]


class ImageDataModule(pl.LightningDataModule):
    """Images for pretraining, and labeled ones for evaluation where there are any.

    transform: what training sees of an image (`data.transforms`); None for evaluation alone. data: a DataConfig, or give
    its fields as keywords. image_size: pixels of an evaluation image, a side or (height, width). channels: of a
    image. seed: of order, views and held-out part. labeled: train on images with a label that are not held out.

    After setup() there are has_labels, num_classes, classes (names, in the order of the labels), foreign_classes (those
    that the test part alone has) and split_note (how the test part came about). faults is the record of images that
    cannot be read: faults.found (name -> reason), and faults.list_in(path) to have them listed in a file.

    A labeled source without a test part: 20 % of its images, drawn by seed, stand in for one. They are left out of
    `eval_dataloader("train")` and of labeled training; pretraining sees every image, without its label. Images of
    a remote stream have no numbers: those of data.test_path stand in for both parts, and there is no labeled training.
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
        """Download a set of torchvision or Hugging Face, in one process of the machine."""
        if self.data.source in ("torchvision", "hf"):
            open_source(self.data, self.channels, "train")

    def setup(self, stage: str | None = None) -> None:
        """Open the sources and decode what fits in data.cache_gb; the second call does nothing."""
        if self._eval_splits is not None:
            return
        train = open_source(self.data, self.channels, "train")
        test = open_source(self.data, self.channels, "test")
        stops = self.data.on_error == "raise"
        if self.data.streams and self.transform is not None:
            self._shards = open_shards(self.data, train)
        if not self.data.streams and train is not None:
            train = cached(train, self.data.cache_gb, stops)
        if test is not None:
            test = cached(test, self.data.cache_gb - (0.0 if train is None else memory_gb(train)), stops)
        self.read_errors.images = sum(len(source) for source in (train, test) if source is not None)
        if train is None and self._shards is not None:
            self.read_errors.images += self._stream_length(self._shards)
        for source in (train, test):
            if isinstance(source, Cached):
                self.read_errors.note(
                    (source.name(index), error.reason) for index, error in sorted(source.unreadable.items())
                )
        self._train = train
        if train is not None:
            self._split(train, test)
        elif test is not None:
            self._split(test, None, "data.test_path")
        elif self.transform is None:
            raise self._unseen()
        else:
            self.classes, self.has_labels, self.foreign_classes, self.split_note = [], False, [], "nothing to look at"
            self._eval_splits = {}

    def _split(self, train: Source, test: Source | None, key: str = "data.path") -> None:
        """Choose the images of each evaluation split, and note how the test part came about.

        key: the setting that names the images of train.
        """
        self.classes = list(train.classes)
        self.has_labels = bool((train.labels >= 0).any())
        self.foreign_classes = [name for name in test.classes if name not in self.classes] if test is not None else []
        usable = np.flatnonzero(train.labels >= 0) if self.has_labels else np.arange(len(train))
        self.split_note = "its own test part"
        test_labels = np.full(0, -1) if test is None else self._renumbered(test)
        test_usable = np.flatnonzero(test_labels >= 0) if self.has_labels else np.arange(len(test_labels))
        if test is not None and len(test_usable):
            self._eval_splits = {
                "train": EvalSplit(train, train.labels, usable),
                "test": EvalSplit(test, test_labels, test_usable),
            }
            return
        held_out = usable
        self.split_note = "the first of the training images" if key == "data.path" else f"the first of {key}"
        if self.has_labels:
            held_out = usable[stratified(train.labels[usable], max(1, round(HELD_OUT * len(usable))), self.seed)]
            usable = np.setdiff1d(usable, held_out)
            self.split_note = f"held-out {100 * HELD_OUT:.0f} % of {key}, seed {self.seed}"
            self.split_note += "" if test is None else " (its test part has none of its classes)"
        self._eval_splits = {
            "train": EvalSplit(train, train.labels, usable),
            "test": EvalSplit(train, train.labels, held_out),
        }

    def _renumbered(self, test: Source) -> Int64[np.ndarray, " n"]:
        """Labels of the test part in the training part's numbering; classes that only it has come after.

        -1 for every image when they share no class: then they are not the same classes.
        """
        if not set(test.classes) & set(self.classes):
            return np.full(len(test), -1)
        self.classes += [name for name in test.classes if name not in self.classes]
        numbers = np.array([*(self.classes.index(name) for name in test.classes), -1])
        return numbers[test.labels]  # -1 takes the last one, -1

    def labels(self, split: Split) -> Int64[np.ndarray, " n"]:
        """Labels of an evaluation split, in the order of its images; -1 without any."""
        part = self._eval_split(split)
        return part.labels[part.index]

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.classes) if self.has_labels else 0

    def _eval_split(self, split: Split) -> EvalSplit:
        """An evaluation split. ValueError where the images are a remote stream, and there are no others."""
        self.setup()
        if not self._eval_splits:
            raise self._unseen()
        return self._eval_splits[split]

    def _unseen(self) -> ValueError:
        line = f"data.path={self.data.path} is a remote stream, whose images cannot be looked at by number"
        return ValueError(f"{line}: give data.test_path, or bring them to this machine")

    def workers(self, source: Source | None) -> int:
        """Processes that read this source, or a stream (None): data.workers, or what auto means for it."""
        if self.data.workers != "auto":
            return self.data.workers
        if isinstance(source, Cached) and source.shapes.max(initial=0) <= SMALL_SIDE:
            return 0
        return min(max(cores() - 1, 1), 16)

    def train_dataloader(self) -> TrainLoader:
        """Every training image, or every labeled one, once an epoch, this rank's share: images, label and index.

        images: uint8 [B, C, H, W], or a list of such for views of several crops. A last, smaller batch is left out.
        """
        if self.transform is None:
            raise ValueError("view=None is for evaluation alone; give ImageDataModule a transform to train with")
        self.setup()
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self._shards is not None and not self.labeled:
            loader = self._stream_loader(self._shards, rank, world_size)
        else:
            loader = self._source_loader(rank, world_size)
        if isinstance(self.trainer, pl.Trainer):
            # A run stopped inside a step has been handed a batch that it has not learned from.
            loader.trained = lambda: self.trainer.fit_loop.epoch_loop.batch_progress.current.processed  # pyright: ignore
        return loader

    def _source_loader(self, rank: int, world_size: int) -> TrainLoader:
        """Training images by number."""
        if self._train is None:
            rule = "images on this machine to train on labels: a remote stream cannot be held out from"
            raise ValueError(f"data.path={self.data.path} must be {rule}")
        source = self._train
        images = self._eval_split("train").index if self.labeled else np.arange(len(source))
        sampler = EpochSampler(images, self.seed, rank, world_size)
        enough = self._enough(len(sampler))
        replacements = self._replacements(source, source.labels, images, skips=self.data.on_error == "skip")
        return TrainLoader(
            AugmentedDataset(source, cast(Transform, self.transform), self.seed, source.labels, replacements),
            batch_size=self.data.batch_size,
            sampler=sampler,
            drop_last=enough,
            **loader_options(self.workers(source)),
        )

    def _stream_loader(self, shards: Shards, rank: int, world_size: int) -> TrainLoader:
        """Training images shard by shard."""
        own = max(1, self._stream_length(shards) // world_size)
        batch_size = self.data.batch_size if self._enough(own) else own
        workers = self.workers(None)
        stream = Stream(
            shards,
            cast(Transform, self.transform),
            self.data,
            self.channels,
            self.seed,
            batch_size=batch_size,
            batches=own // batch_size,
            worker_streams=max(1, workers),
            ranks=(rank, world_size),
            read_errors=None if self.data.on_error == "raise" else self.read_errors,
        )
        sampler = StreamSampler(len(stream), self.seed, rank, world_size)
        return TrainLoader(stream, batch_size=batch_size, sampler=sampler, **loader_options(workers))

    def _stream_length(self, shards: Shards) -> int:
        """Images of an epoch."""
        images = self.data.epoch_size or (0 if shards.counts is None else int(shards.counts.sum()))
        if not images:
            raise ValueError(f"data.path={self.data.path} does not say how many images it has: give data.epoch_size")
        return images

    def _enough(self, own: int) -> bool:
        """Whether a process's images fill a batch; says so where they do not."""
        given = self.data.batch_size
        if own < given:
            log.warning(f"data.batch_size={given} is more than a process's {own} training images: a step takes {own}")
        return own >= given

    def eval_dataloader(
        self, split: Split, limit: int = 0, seed: int | None = None, ranks: tuple[int, int] = (0, 1)
    ) -> DataLoader:
        """Central crops of the training or test images in a fixed order; with labels only labeled ones.

        limit: most images, 0 for all; with labels each class keeps its share. seed: draws them; the module's by
        default. Without labels and test part, test images are the first training images. ranks: (rank, processes),
        every processes-th image from rank on; the first ones come again where they do not divide.
        """
        index, (rank, processes) = self.eval_index(split, limit, seed), ranks
        index = np.resize(index, -(-len(index) // processes) * processes)[rank::processes]
        part = self._eval_split(split)
        transform = CenterCrop(self.image_size, self.data.eval_crop)
        return Loader(
            AugmentedDataset(
                part.source, transform, self.seed, part.labels, self._replacements(part.source, part.labels, part.index)
            ),
            batch_size=self.data.batch_size,
            sampler=[(0, i) for i in index.tolist()],  # pyright: ignore[reportArgumentType]
            **loader_options(self.workers(part.source)),
        )

    def eval_index(self, split: Split, limit: int = 0, seed: int | None = None) -> Int64[np.ndarray, " n"]:
        """Numbers, in their source, of the images that eval_dataloader gives, in its order."""
        part = self._eval_split(split)
        if 0 < limit < len(part.index):
            return part.index[self._subset(part, limit, self.seed if seed is None else seed)]
        return part.index

    def eval_labels(self, split: Split, limit: int = 0, seed: int | None = None) -> Int64[np.ndarray, " n"]:
        """Labels of the images that eval_dataloader gives, in its order."""
        index = self.eval_index(split, limit, seed)
        return self._eval_split(split).labels[index]

    def augmented_dataloader(
        self,
        transform: Transform,
        batch_size: int,
        limit: int = 0,
        seed: int | None = None,
        ranks: tuple[int, int] = (0, 1),
    ) -> DataLoader:
        """The training images of eval_dataloader through a transform, in a random order of each epoch.

        Its sampler is a ShuffledRankSampler, whose `epoch` is to be set before each pass; the last, smaller batch is kept.
        batch_size and ranks: as of one process of several.
        """
        index, (rank, processes) = self.eval_index("train", limit, seed), ranks
        part = self._eval_split("train")
        return Loader(
            AugmentedDataset(
                part.source, transform, self.seed, part.labels, self._replacements(part.source, part.labels, part.index)
            ),
            batch_size=batch_size,
            sampler=ShuffledRankSampler(index, self.seed, rank, processes),  # pyright: ignore[reportArgumentType]
            **loader_options(self.workers(part.source)),
        )

    def _replacements(
        self, source: Source, labels: np.ndarray, members: np.ndarray, skips: bool = False
    ) -> Replacements | None:
        """Those of data.on_error; evaluation, whose labels are read in order, has images replaced, never left out."""
        return None if self.data.on_error == "raise" else Replacements(source, labels, members, self.read_errors, skips)

    def _subset(self, part: EvalSplit, limit: int, seed: int) -> Int64[np.ndarray, " limit"]:
        if self.has_labels:
            return stratified(part.labels[part.index], limit, seed)
        if part is self._eval_split("test") and part.source is self._eval_split("train").source:
            return np.arange(limit)
        return np.sort(permutation(seed, 0, len(part.index))[:limit])

    def normalize(self, images: Shaped[Tensor, "B C H W"]) -> Float32[Tensor, "B C H W"]:
        """uint8, or floats in 0 .. 255, normalized by data.mean and data.std."""
        return normalize(images, self.data.mean, self.data.std)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """The batch with its uint8 images normalized, on the device."""
        images = batch["images"]
        if "random" in batch:  # of a training batch whose transform changes colors
            statistics = (self.data.mean, self.data.std)
            return batch | {"images": self.transform.color(images, batch["random"], statistics)}  # pyright: ignore
        is_distributed = isinstance(images, list)
        return batch | {
            "images": [self.normalize(crop) for crop in images] if is_distributed else self.normalize(images)
        }
