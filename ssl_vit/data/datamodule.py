"""ImageDataModule: sources as batches for a Trainer. Letters: B C H W of a batch, n of a source, m of a split."""

import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float32, Int64, Shaped
from pytorch_lightning.utilities.parsing import AttributeDict
from torch import Tensor

from ssl_vit.config.auto_source import source_at
from ssl_vit.config.checks import require
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from ssl_vit.config.signature import expose
from ssl_vit.data.cache import Cached, cached, cores, memory_gb
from ssl_vit.data.corrupt import ReadErrors, Replacements
from ssl_vit.data.dataset import AugmentedDataset, Batch
from ssl_vit.data.held_out import EvalSplit, EvalSplits, eval_splits
from ssl_vit.data.loader import EpochSampler, FixedSampler, Loader, TrainLoader, loader_options
from ssl_vit.data.rng import permutation, stratified
from ssl_vit.data.sources import open_shards, open_source, source_class
from ssl_vit.data.sources.base import Shards, Source, Split
from ssl_vit.data.sources.map_style import MapStyle
from ssl_vit.data.stream import Stream
from ssl_vit.data.transforms.crops import Transform
from ssl_vit.data.transforms.seeded import as_transform
from ssl_vit.models.preprocess import CenterCrop, normalize

log = logging.getLogger(__name__)
SMALL_SIDE = 64  # Cached images up to this side, in pixels, are transformed faster than a worker would hand them over.


class ImageDataModule(pl.LightningDataModule):
    """Images for training, and for evaluation; what is not given is that of the module being trained, mean and std too.

    Args:
        transform: what training sees of an image: of data.transforms, or any callable on a PIL image or a uint8 tensor,
            such as those of torchvision and lightly (`data.transforms.seeded`). None: the module's transform().
        data: a DataConfig, or give its fields as keywords; source= may also be a map-style Dataset of uint8 images.
        image_size: pixels of an evaluation image, a side or (height, width); None: the module's.
        channels: of an image; None: as many as data.mean has numbers, which must be the module's.
        seed: of the order, the transforms' random numbers and the held-out split; None: PyTorch's own at setup().
        labeled: train on images with a label that are not held out.
        test: a map-style Dataset of test images.

    Without a test split, 20 % of the labeled images, drawn by seed, are held out as one from all but pretraining. Of a
    remote stream, those of data.test_path make both splits, and there is no labeled training. After setup() there are
    has_labels, num_classes, classes (names, in the order of the labels), foreign_classes (those of the test split
    alone) and split_note (how the test split came about). read_errors records unreadable images.
    """

    def __init__(
        self,
        transform: Callable[..., Any] | None = None,
        data: DataConfig | None = None,
        *,
        image_size: int | tuple[int, int] | None = None,
        channels: int | None = None,
        seed: int | None = None,
        labeled: bool = False,
        test: Any = None,
        **options: Any,
    ) -> None:
        pl.LightningDataModule.__init__(self)  # with super(), Lightning looks for all names of the signature in here
        if data is not None and options:
            raise ValueError(f"data= and {', '.join(options)}= were given; put these fields into the DataConfig")
        self.datasets: dict[Split, Any] = {"train": None, "test": test}
        source = options.get("source", "")
        if not isinstance(source, str):
            self.datasets["train"] = source
            options["source"] = f"{type(source).__module__}:{type(source).__qualname__}"
        self.data = data or DataConfig(**options)
        self._require_statistics(channels)
        self.transform, self.labeled = transform, labeled
        self.read_errors = ReadErrors(self.data.max_unreadable)
        own = {"image_size": image_size, "channels": channels, "seed": seed, "labeled": labeled}
        self.save_hyperparameters(asdict(self.data) | own)
        self._opened, self._seed_given = False, seed is not None
        self._train: Source | None = None
        self._test: Source | None = None
        self._shards: Shards | None = None
        self._augmentation: Transform | None = None  # of the loader that was made last

    @property
    def hparams_initial(self) -> AttributeDict:
        """What loggers get: hparams under `data`, as modules have a seed, or a batch_size, of their own."""
        return AttributeDict(data=dict(self.hparams))

    def _of_module(self, name: str) -> Any:
        """An attribute of the module being trained; None without one."""
        return getattr(getattr(self.trainer, "lightning_module", None), name, None)

    def _required(self, name: str) -> Any:
        """The same; ValueError without one."""
        found = self._of_module(name)
        if found is None:
            module = getattr(self.trainer, "lightning_module", None)
            lacking = f"{type(module).__name__} has no {name}" if module is not None else "no module is being trained"
            raise ValueError(f"{name}= is not given, and {lacking} to take it from: give ImageDataModule {name}=")
        return found

    @property
    def image_size(self) -> tuple[int, int]:
        """Pixels (H, W) of an evaluation image. ValueError where neither it nor a module says so."""
        size = self.hparams["image_size"] or self._required("image_size")
        return (size, size) if isinstance(size, int) else (size[0], size[-1])

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return len(self.data.mean)

    @property
    def seed(self) -> int:
        """Of all random numbers; from setup() on it stays."""
        return torch.initial_seed() % 2**63 if self.hparams["seed"] is None else self.hparams["seed"]

    def state_dict(self) -> dict[str, Any]:
        """The seed, which a checkpoint keeps."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the seed of the run before, unless another was given."""
        if not self._seed_given:
            self.hparams["seed"] = state_dict["seed"]
            self.__dict__.pop("splits", None)

    def _take_statistics(self) -> None:
        """The module's mean and std in place of the default ones. ValueError where others were given."""
        for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            given, own = list(self.hparams[name]), list(self._of_module(name) or self.hparams[name])
            rule = f"{own}, by which the images of the module being trained are normalized, or left to it"
            require(given in (own, default), f"data.{name}", given, rule)
            self.data = replace(self.data, **{name: own})

    def _require_statistics(self, channels: int | None) -> None:
        rule = f"one number a channel: {channels}; data.std likewise"
        require(channels in (None, self.channels), "data.mean", self.data.mean, rule)

    def _training_transform(self) -> Transform:
        return as_transform(self._required("transform")() if self.transform is None else self.transform)

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def prepare_data(self) -> None:
        """Download a data set that may have to be, in one process of the machine."""
        if self.datasets["train"] is None and source_class(self.data.source).downloads:
            open_source(self.data, self.channels, "train")

    def setup(self, stage: str | None = None) -> None:
        """Take the module's mean and std; open the sources and decode what fits in data.cache_gb, once."""
        self._take_statistics()
        if self.hparams["channels"] is None:
            self._require_statistics(self._of_module("channels"))
        if self._opened:
            return
        if self.hparams["seed"] is None:
            strategy = getattr(self.trainer, "strategy", None)
            self.hparams["seed"] = self.seed if strategy is None else strategy.broadcast(self.seed)
        data, stops = self.data, self.data.on_error == "raise"
        train, test = self._open("train"), self._open("test")
        if train is not None and train.cacheable and not data.streams:
            train = cached(train, data.cache_gb, stops)
        if test is not None and test.cacheable:
            test = cached(test, data.cache_gb - memory_gb(train), stops)
        self.read_errors.images = sum(len(source) for source in (train, test) if source is not None)
        for source in (train, test):
            if isinstance(source, Cached):
                self.read_errors.note((source.name(i), error.reason) for i, error in sorted(source.unreadable.items()))
        self._train, self._test, self._opened = train, test, True

    def _open(self, split: Split) -> Source | None:
        data, dataset = self.data, self.datasets[split]
        if dataset is not None:
            return MapStyle(data, self.channels, dataset, split)
        if self.datasets["train"] is not None:  # which says nothing of test images
            own = replace(data, source=source_at("data.test_path", data.test_path)) if data.test_path else None
            return open_source(own, self.channels, split) if own else None
        return open_source(data, self.channels, split)

    @cached_property
    def splits(self) -> EvalSplits:
        """What is evaluated on, and its classes. ValueError for a remote stream without test images."""
        self.setup()
        if self._train is not None:
            return eval_splits(self._train, self._test, self.seed)
        if self._test is not None:
            return eval_splits(self._test, None, self.seed, "data.test_path")
        line = f"data.path={self.data.path} is a remote stream, whose images cannot be read by number"
        raise ValueError(f"{line}: give data.test_path, or bring them to this machine")

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        return self.splits.classes

    @property
    def foreign_classes(self) -> list[str]:
        """Classes of the test split alone."""
        return self.splits.foreign_classes

    @property
    def has_labels(self) -> bool:
        """Whether some training image has a label."""
        return self.splits.has_labels

    @property
    def split_note(self) -> str:
        """How the test split came about."""
        return self.splits.note

    @property
    def can_evaluate(self) -> bool:
        """Whether there are images to evaluate on: not of a remote stream alone."""
        self.setup()
        return self._train is not None or self._test is not None

    @property
    def batch_size(self) -> int:
        """Images per process and training batch, for Lightning's Tuner too; of data.global_batch the trainer's part."""
        images, ranks = self.data.global_batch, self._ranks()[1]
        if images is None or not self.trainer:
            return self.data.batch_size
        batches = self.trainer.accumulate_grad_batches
        rule = f"a multiple of {ranks} processes x accumulate_grad_batches={batches}"
        require(images % (ranks * batches) == 0, "data.global_batch", images, rule)
        return images // (ranks * batches)

    @batch_size.setter
    def batch_size(self, images: int) -> None:
        self.data = replace(self.data, batch_size=images, global_batch=None)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.classes) if self.has_labels else 0

    def _eval_split(self, split: Split) -> EvalSplit:
        return getattr(self.splits, split)

    def workers(self, source: Source | None) -> int:
        """Processes that read this source, or a stream (None): data.workers, or what auto means for it."""
        if self.data.workers != "auto":
            return self.data.workers
        if isinstance(source, Cached) and source.shapes.max(initial=0) <= SMALL_SIDE:
            return 0
        return min(max(cores() - 1, 1), 16)

    def train_dataloader(self) -> TrainLoader:
        """Every (labeled) training image once an epoch, split over the ranks; a last, smaller batch is dropped."""
        self.setup()
        self._augmentation = transform = self._training_transform()
        if self.data.streams and not self.labeled:
            loader = self._stream_loader(self._open_shards(), transform, self._ranks())
        else:
            loader = self._source_loader(transform, self._ranks())
        if isinstance(self.trainer, pl.Trainer):
            # A run stopped inside a step has been handed a batch that it has not learned from.
            loader.fit_loop = lambda: self.trainer.fit_loop  # pyright: ignore
        return loader

    def val_dataloader(self) -> Loader | list[Any]:
        """This rank's test images in a fixed order, as training sees them in epoch 0; labeled: their central crops.

        Empty where a remote stream has no test images.
        """
        if not self.can_evaluate:
            return []
        if self.labeled:
            return self.test_dataloader()
        self._augmentation = self._training_transform()
        sampler = FixedSampler(self.eval_index("test"), *self._ranks())
        return self._loader(self._eval_split("test"), self._augmentation, sampler)

    def test_dataloader(self) -> Loader:
        """Central crops of this rank's test images, in a fixed order."""
        return self.eval_dataloader("test", ranks=self._ranks())

    def predict_dataloader(self) -> Loader:
        """Central crops of this rank's images of data.path, all of them, in their own order."""
        self.setup()
        source = self._source()
        images = EvalSplit(source, source.labels, np.arange(len(source)))
        return self._loader(images, self._center_crop(), FixedSampler(images.index, *self._ranks()))

    def _center_crop(self) -> CenterCrop:
        return CenterCrop(self.image_size, self.data.eval_crop)

    def _source(self) -> Source:
        if self._train is None:
            rule = "images on this machine to train on labels or to predict: a remote stream has no numbers"
            raise ValueError(f"data.path={self.data.path} must be {rule}")
        return self._train

    def _open_shards(self) -> Shards:
        if self._shards is None:
            self._shards = open_shards(self.data, self._train)
            self.read_errors.images += self._stream_length(self._shards) if self._train is None else 0
        return self._shards

    def _source_loader(self, transform: Transform, ranks: tuple[int, int]) -> TrainLoader:
        source = self._source()
        if self.labeled and not self.has_labels:
            line = f"labeled=True, but no image of data.source={self.data.source} has a label"
            raise ValueError(f"{line}: give labels, or labeled=False")
        index = self._eval_split("train").index if self.labeled else np.arange(len(source))
        sampler = EpochSampler(index, self.seed, *ranks)
        dataset = self._dataset(EvalSplit(source, source.labels, index), transform, self.data.on_error == "skip")
        whole, options = self._fills_a_batch(len(sampler)), loader_options(self.workers(source))
        return TrainLoader(dataset, batch_size=self.batch_size, sampler=sampler, drop_last=whole, **options)

    def _stream_loader(self, shards: Shards, transform: Transform, ranks: tuple[int, int]) -> TrainLoader:
        own = max(1, self._stream_length(shards) // ranks[1])
        batch_size = self.batch_size if self._fills_a_batch(own) else own
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
        given = self.batch_size
        if own < given:
            log.warning(f"data.batch_size={given} is more than a process's {own} training images: a step takes {own}")
        return own >= given

    def eval_dataloader(
        self, split: Split, limit: int = 0, seed: int | None = None, ranks: tuple[int, int] = (0, 1)
    ) -> Loader:
        """Central crops of the training or test images in a fixed order; with labels only labeled ones.

        limit: most images, 0 for all, drawn by seed; with labels each class keeps its fraction. ranks: (rank,
        world_size), every world_size-th image from rank on; the first come again where they do not divide.
        """
        sampler = FixedSampler(self.eval_index(split, limit, seed), *ranks)
        return self._loader(self._eval_split(split), self._center_crop(), sampler)

    def augmented_dataloader(
        self, transform: Transform, batch_size: int, limit: int, seed: int | None, ranks: tuple[int, int]
    ) -> Loader:
        """eval_dataloader's training images through a transform, shuffled by the `epoch` set in its sampler."""
        sampler = EpochSampler(self.eval_index("train", limit, seed), self.seed, *ranks, drop_last=False)
        return self._loader(self._eval_split("train"), transform, sampler, batch_size)

    def _loader(self, images: EvalSplit, transform: Transform, sampler: EpochSampler, batch_size: int = 0) -> Loader:
        size, options = batch_size or self.data.batch_size, loader_options(self.workers(images.source))
        return Loader(self._dataset(images, transform), batch_size=size, sampler=sampler, **options)

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
        """The batch with its uint8 images normalized, on the device; floats stay as the transform has made them."""
        if not isinstance(batch, dict) or "images" not in batch:  # of a loader that a subclass has made
            return batch
        images = batch["images"]
        if "random" in batch:  # of a batch whose transform changes colors
            statistics = (self.data.mean, self.data.std)
            return batch | {"images": self._augmentation.color(images, batch["random"], statistics)}  # pyright: ignore
        crops = images if isinstance(images, list) else [images]
        normalized = [crop if crop.is_floating_point() else self.normalize(crop) for crop in crops]
        return batch | {"images": normalized if isinstance(images, list) else normalized[0]}


expose(ImageDataModule, DataConfig())
