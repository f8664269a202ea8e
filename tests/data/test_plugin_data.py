"""ImageDataModule, and other loaders' batches, in a Lightning user's own Trainer."""

import logging
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger
from tiny_methods import ENCODER, OPTIONS
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

import ssl_vit
from ssl_vit import ImageDataModule
from ssl_vit.config.checks import hints_of
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from ssl_vit.data.corrupt import ReadErrors
from ssl_vit.data.loader import batch_images, batch_labels, batch_length, full_length
from ssl_vit.data.sources.map_style import MapStyle
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.models.preprocess import CenterCrop

COUNT = 24
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def method(name: str = "MAE", size: int = 16, **changes: Any) -> Any:
    encoder = ENCODER | {"image_size": size} | changes.pop("encoder", {})
    return getattr(ssl_vit, name)(encoder=encoder, optim={"warmup_epochs": 0}, **(OPTIONS[name] | changes))


class Sees(pl.LightningModule):
    """A user's own module that keeps the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[Any]] = {"fit": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["fit"].append(batch)
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], 0.1)


class SeesCrops(Sees):
    """One that brings its transform and size."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.image_size = size

    def transform(self):
        return RandomCrop((self.image_size, self.image_size), (0.2, 1.0))


class Photos(Dataset):
    """Random images whose first pixel is their number; `kind` of image, `labels` where they are attributes."""

    def __init__(self, kind: str = "pil", count: int = COUNT, first: int = 0, **attributes: Any) -> None:
        pixels = np.random.default_rng(first).integers(0, 256, (count, 20, 20, 3), dtype=np.uint8)
        pixels[:, 0, 0] = np.arange(first, first + count)[:, None]
        self.pixels, self.kind, self.reads = pixels, kind, 0
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        pixels = self.pixels[index]
        kinds = {
            "pil": lambda: Image.fromarray(pixels),
            "tensor": lambda: torch.from_numpy(pixels).permute(2, 0, 1),
            "array": lambda: pixels,
            "gray": lambda: pixels[:, :, 0],
            "float": lambda: pixels / 255,
            "float tensor": lambda: torch.rand(3, 20, 20),
            "dict": lambda: {"image": pixels},
        }
        return kinds[self.kind](), index % 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Twenty-four images in two classes."""
    root, pixels = tmp_path_factory.mktemp("images"), Photos().pixels
    for number in range(COUNT):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[number]).save(path)
    return root


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Where a Trainer has no logger, images are written beside its root."""
    monkeypatch.chdir(tmp_path)


def trainer(**changes: Any) -> pl.Trainer:
    return pl.Trainer(**{"accelerator": "cpu", "devices": 1, "max_epochs": 1, **QUIET, **changes})


def fitted(data: ImageDataModule, module: Any = None, **changes: Any) -> Any:
    module = Sees() if module is None else module
    trainer(**changes).fit(module, data)
    return module


def images_of(batches: list[Any]) -> list[torch.Tensor]:
    """All images of batches, crops one after the other."""
    given = [batch["images"] for batch in batches]
    return [crop for images in given for crop in (images if isinstance(images, list) else [images])]


def same(ours: list[Any], theirs: list[Any]) -> bool:
    pairs = list(zip(images_of(ours), images_of(theirs), strict=True))
    return all(torch.equal(*pair) for pair in pairs)


def numbers(batches: list[Any]) -> list[int]:
    return [index for batch in batches for index in batch["index"].tolist()]


def by_number(batches: list[Any]) -> dict[int, torch.Tensor]:
    return dict(zip(numbers(batches), torch.cat(images_of(batches)), strict=True))


# 1. what is not given is the module's


@pytest.mark.parametrize("name", OPTIONS)
def test_a_path_is_all_that_a_method_needs(name, folder):
    module = method(name)
    before = [p.clone() for p in module.parameters()]
    data = ImageDataModule(source="folder", path=str(folder), batch_size=8, workers=0)
    fitted(data, module)
    assert any(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))
    assert data.image_size == (16, 16)


def test_each_module_brings_its_own_transform_and_size(folder):
    data = ImageDataModule(source="folder", path=str(folder), batch_size=8, workers=0)
    for size in (8, 12):
        module = fitted(data, SeesCrops(size))
        assert {images.shape[-2:] for images in images_of(module.seen["fit"] + module.seen["val"])} == {(size, size)}
        trainer().test(module, data, verbose=False)
        assert {images.shape[-2:] for images in images_of(module.seen["test"])} == {(size, size)}


def test_what_is_given_comes_before_the_module(folder):
    module = SeesCrops(8)
    module.channels = 64  # of a layer, say
    crop = RandomCrop((12, 12), (0.2, 1.0))
    data = ImageDataModule(crop, path=str(folder), batch_size=8, workers=0, image_size=(4, 6), channels=3)
    fitted(data, module)
    trainer().test(module, data, verbose=False)
    assert {images.shape[1:] for images in images_of(module.seen["fit"])} == {(3, 12, 12)}
    assert {images.shape[1:] for images in images_of(module.seen["test"])} == {(3, 4, 6)}


@pytest.mark.parametrize(
    ("module", "run", "message"),
    [
        (Sees(), "fit", "transform= is not given, and Sees has no transform to take it from: give ImageDataModule "),
        (Sees(), "test", "image_size= is not given, and Sees has no image_size to take it from: give ImageDataModule"),
        (method(encoder={"channels": 1}), "fit", "data.mean=[0.485, 0.456, 0.406] must be one number a channel: 1"),
    ],
)
def test_what_neither_says_is_an_error_in_one_line(folder, module, run, message):
    data = ImageDataModule(source="folder", path=str(folder), batch_size=8, workers=0)
    with pytest.raises(ValueError, match="=") as caught:
        getattr(trainer(), run)(module, data)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# 2. any map-style Dataset


@pytest.mark.parametrize("kind", ["pil", "tensor", "array"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_gives_the_batches_of_its_images_in_a_folder(kind, workers):
    """The images are those of the data set, cropped as images of any source with these numbers."""
    dataset, crop = Photos(kind), CenterCrop((16, 16), 0.8)
    batches = fitted(ImageDataModule(crop, source=dataset, batch_size=8, workers=workers, image_size=16)).seen["fit"]
    assert sorted(numbers(batches)) == list(range(COUNT))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for batch in batches:
        for image, index in zip(batch["images"], batch["index"].tolist(), strict=True):
            pixels = crop(torch.from_numpy(Photos().pixels[index]).permute(2, 0, 1)) / 255
            torch.testing.assert_close(image, (pixels - mean) / std)


def test_gray_arrays_become_rgb_and_a_list_is_a_dataset():
    gray = [Photos("gray")[i][0] for i in range(4)]
    source = MapStyle(DataConfig(), 3, gray, "train")
    assert np.array_equal(source.read(1), np.repeat(gray[1][:, :, None], 3, axis=2))
    assert source.labels.tolist() == [-1] * 4


def test_the_data_sets_own_image_stays_as_it_is():
    image = Image.fromarray(Photos().pixels[0])
    image.getexif()[0x0112] = 6  # lies on its side
    MapStyle(DataConfig(), 3, [image], "train").read(0)
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_labels_of_an_attribute_cost_no_pass(attribute):
    labels = np.arange(COUNT) % 2
    dataset = Photos(**{attribute: labels.tolist(), "classes": ["even", "odd"]})
    data = ImageDataModule(source=dataset, image_size=16)
    data.setup()
    assert data.classes == ["even", "odd"]
    assert dataset.reads == 1  # the first, for its kind
    whole = MapStyle(DataConfig(), 3, Subset(dataset, [1, 3, 4]), "train")
    assert whole.labels.tolist() == [1, 1, 0]
    assert whole.classes == ["even", "odd"]


def test_labels_of_items_are_read_when_they_are_needed_and_once():
    dataset = Photos()
    data = ImageDataModule(SeesCrops().transform(), source=dataset, batch_size=8, workers=0, image_size=16)
    data.train_dataloader()
    assert dataset.reads == 1
    assert data.has_labels
    assert data.classes == ["0", "1"]
    assert sum(data.labels("train")) + sum(data.labels("test")) == COUNT // 2
    assert dataset.reads == 1 + COUNT


def test_labeled_training_and_a_test_data_set():
    test = Photos(count=6, first=100)
    data = ImageDataModule(source=Photos(), test=test, labeled=True, batch_size=8, workers=0)
    module = fitted(data, SeesCrops())
    trainer().test(module, data, verbose=False)
    assert data.split_note == "its own test split"
    assert sorted(numbers(module.seen["fit"])) == list(range(COUNT))
    assert all((batch["label"] == batch["index"] % 2).all() for batch in module.seen["fit"] + module.seen["test"])
    assert numbers(module.seen["test"]) == list(range(6))


def test_test_images_of_a_data_set_may_be_a_folder(folder):
    data = ImageDataModule(source=Photos(classes=["a", "b"]), test_path=str(folder), image_size=8)
    assert len(data.labels("test")) == COUNT
    assert data.split_note == "its own test split"


def test_a_data_set_is_not_copied_for_each_worker():
    class Unpicklable(Photos):
        def __reduce__(self):
            raise TypeError("copied")

    module = fitted(ImageDataModule(source=Unpicklable(), workers=2, batch_size=8), SeesCrops())
    assert len(numbers(module.seen["fit"])) == COUNT


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Photos("float"), "Photos gives float64 [20, 20, 3], but must give a PIL image, a uint8 tensor [C, H, W] or "),
        (Photos("float tensor"), "Photos gives torch.float32 [3, 20, 20], but must give "),
        (Photos("dict"), "Photos gives dict, but must give "),
        ([], "source=list must be a name, or a Dataset with __len__ and __getitem__ by integer that is not empty"),
        (3, "source=int must be a name, or a Dataset "),
    ],
)
def test_what_is_no_data_set_of_uint8_images_is_refused(dataset, message):
    with pytest.raises(ValueError, match="must") as caught:
        ImageDataModule(source=dataset, image_size=8).setup()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_labeled_training_without_labels_is_refused():
    data = ImageDataModule(SeesCrops().transform(), source=[Photos()[0][0]] * 4, labeled=True, image_size=8)
    with pytest.raises(ValueError, match=r"^labeled=True, but no image of data.source=builtins:list has a label: give"):
        data.train_dataloader()


def test_an_image_that_a_data_set_cannot_give_is_replaced_and_listed(caplog):
    class Damaged(Photos):
        def __getitem__(self, index):
            if index == 0:
                raise OSError("no such file")
            return super().__getitem__(index)

    data = ImageDataModule(
        SeesCrops().transform(), source=Damaged(), batch_size=8, workers=0, image_size=8, max_unreadable=0.1
    )
    assert len(numbers(fitted(data).seen["fit"])) == COUNT
    assert data.read_errors.found == {"Damaged train image 0": "no such file"}


# 3. any transform


def drawing(image):
    """A crop by each of the three global generators."""
    left, top = random.randrange(4), np.random.randint(4)
    tensor = v2.functional.pil_to_tensor(image)[:, top : top + 16, left : left + 16]
    return tensor.flip(-1) if torch.rand(()) < 0.5 else tensor


def pipelines() -> dict[str, Any]:
    from torchvision import transforms as v1

    normalize = (IMAGENET_MEAN, IMAGENET_STD)
    floats = v2.ToDtype(torch.float32, scale=True)
    return {
        "function of a tensor": lambda image: image[:, :16, :16] / 255 * torch.rand(()),
        "v1": v1.Compose([v1.RandomResizedCrop(16), v1.ToTensor(), v1.Normalize(*normalize)]),
        "v2": v2.Compose(
            [v2.RandomResizedCrop(16), v2.ToImage(), v2.ColorJitter(0.4), floats, v2.Normalize(*normalize)]
        ),
        "v2 of tensors": v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(16, antialias=True)]),
        "v2 of PIL": v2.RandomResizedCrop(16),
        "function": drawing,
    }


@pytest.mark.parametrize("name", pipelines())
def test_any_transform_makes_the_same_bits_whatever_the_workers_and_moves_no_generator(name, folder):
    def run(seed: int, workers: int) -> list[Any]:
        transform = pipelines()[name]
        data = ImageDataModule(transform, path=str(folder), batch_size=8, workers=workers, seed=seed)
        loader = data.train_dataloader()
        return [data.on_after_batch_transfer(b, 0) for epoch in (0, 1) for b in at(loader, epoch)]

    # that of `random` is moved by the tests' type checks: test_augment compares it around seeded_globals alone
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = run(0, 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert same(first, run(0, 2))
    assert not same(first, run(1, 0))
    assert {images.shape[-2:] for images in images_of(first)} == {(16, 16)}
    assert all(images.is_floating_point() and float(images.mean().abs()) < 1 for images in images_of(first))
    epochs = [by_number(first[:3]), by_number(first[3:])]
    assert any(not torch.equal(image, epochs[1][index]) for index, image in epochs[0].items())


def at(loader: Any, epoch: int) -> list[Any]:
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_a_resumed_epoch_has_the_same_random_images(folder):
    loaders = [ImageDataModule(drawing, path=str(folder), batch_size=8, workers=n).train_dataloader() for n in (0, 2)]
    whole = at(loaders[0], 0)
    loaders[1].load_state_dict({"epoch": 0, "batches": 1})
    assert same(whole[1:], at(loaders[1], 0))


def test_floats_stay_as_the_transform_makes_them(folder):
    data = ImageDataModule(v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32)]), path=str(folder), workers=0)
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(data.on_after_batch_transfer(batch, 0)["images"], batch["images"])
    assert float(batch["images"].max()) > 200


@pytest.mark.filterwarnings("ignore")
def test_lightlys_transforms_train_our_methods(folder):
    lightly = pytest.importorskip("lightly.transforms")
    crops = lightly.DINOTransform(global_crop_size=16, local_crop_size=8, n_local_views=2)
    for name, transform in (("DINO", crops), ("MAE", lightly.MAETransform(input_size=16))):
        data = ImageDataModule(transform, path=str(folder), batch_size=8, workers=2)
        runner = trainer()
        runner.fit(method(name), data)
        assert runner.global_step == 3
    (batch,) = ImageDataModule(crops, path=str(folder)).train_dataloader()
    assert [tuple(images.shape) for images in batch["images"]] == [(24, 3, 16, 16)] * 2 + [(24, 3, 8, 8)] * 2


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v2.Normalize([0.5] * 3, [0.5] * 3), "transform= raised TypeError ("),
        (lambda image: image.nothing, "transform= raised AttributeError ("),
        (
            lambda image: np.asarray(image),
            "transform= made ndarray, but must make tensors [C, h, w] of uint8 or floats",
        ),
        (lambda image: torch.zeros(3), "transform= made torch.float32 [3], but must make tensors "),
    ],
)
def test_a_transform_that_does_not_fit_is_an_error_in_one_line(folder, transform, message, workers):
    data = ImageDataModule(transform, path=str(folder), batch_size=8, workers=workers)
    with pytest.raises(ValueError, match="transform=") as caught:
        next(iter(data.train_dataloader()))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    if "raised" in message:
        assert ") on a PIL image, and " in str(caught.value)
        assert str(caught.value).endswith(") on a uint8 tensor [C, H, W]")


# 4. the seed


def test_the_seed_is_pytorchs_when_training_starts(folder):
    def run(global_seed: int, first: bool, **options: Any) -> list[Any]:
        if first:
            pl.seed_everything(global_seed, verbose=False)
        data = ImageDataModule(path=str(folder), batch_size=8, workers=0, **options)
        if not first:
            pl.seed_everything(global_seed, verbose=False)
        return fitted(data, SeesCrops()).seen["fit"]

    ours = run(1, True)
    assert same(ours, run(1, False))
    assert same(ours, run(2, True, seed=1))
    assert not same(ours, run(2, True))
    assert numbers(ours) != numbers(run(2, False))


def test_the_seed_stays_while_a_method_seeds_pytorch(folder):
    """The split held out for testing is the same before and after the training."""
    pl.seed_everything(3, verbose=False)
    data = ImageDataModule(path=str(folder), batch_size=8, workers=0)
    fitted(data, method())
    assert data.seed == 3
    assert data.split_note == "held-out 20 % of data.path, seed 3"


def test_a_resumed_run_has_the_seed_of_the_run_before(folder):
    torch.manual_seed(1)
    before = ImageDataModule(path=str(folder))
    before.setup()
    torch.manual_seed(2)
    resumed, other = ImageDataModule(path=str(folder)), ImageDataModule(path=str(folder), seed=5)
    for data in (resumed, other):
        data.setup()  # as Lightning calls it, before it loads a checkpoint
        data.load_state_dict(before.state_dict())
    assert (before.seed, resumed.seed, other.seed) == (1, 1, 5)


# 5. hyper-parameters and signature


def test_loggers_get_the_options_though_the_module_has_a_seed_of_its_own(folder, tmp_path):
    data = ImageDataModule(drawing, path=str(folder), batch_size=8, workers=0, seed=7, image_size=16)
    assert data.hparams == vars(data.data) | {"image_size": 16, "channels": None, "seed": 7, "labeled": False}
    logger = CSVLogger(tmp_path)
    fitted(data, method(seed=1), logger=logger, enable_checkpointing=True, log_every_n_steps=1)
    assert logger.experiment.hparams["data"]["batch_size"] == 8
    assert logger.experiment.hparams["seed"] == 1
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    again = ImageDataModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert again.hparams == data.hparams


def test_hyper_parameters_hold_no_objects():
    data = ImageDataModule(drawing, source=Photos(), test=Photos())
    assert data.hparams["source"] == f"{__name__}:Photos"
    kinds = {type(value) for value in data.hparams.values()}
    assert kinds <= {str, int, float, bool, list, type(None)}


def test_a_data_module_may_be_inherited_from(folder):
    class Own(ImageDataModule):
        def __init__(self, root: str) -> None:
            super().__init__(path=root, batch_size=8, workers=0)

    assert len(fitted(Own(str(folder)), SeesCrops()).seen["fit"]) == 3


def cli(*args: str) -> Any:
    pytest.importorskip("jsonargparse")
    from pytorch_lightning.cli import LightningCLI

    return LightningCLI(SeesCrops, ImageDataModule, run=False, args=list(args), save_config_callback=None)


def test_lightning_cli_sets_every_option(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train"])
    given = {"path": str(folder), "batch_size": "8", "workers": "0", "mean": "[0.5]", "std": "[0.25]", "seed": "5"}
    data = cli(*(f"--data.{key}={value}" for key, value in given.items())).datamodule
    assert data.data == DataConfig(path=str(folder), batch_size=8, workers=0, mean=[0.5], std=[0.25])
    assert data.seed == 5
    with pytest.raises(SystemExit):
        cli("--help")
    text = " ".join(capsys.readouterr().out.split())
    for name in hints_of(DataConfig):
        assert f"--data.{name} " in text
    assert "Images per process and step" in text
    assert "on images with a label that are not held out" in text


# 6. batches of other loaders


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3, 3, 16, 16),
        [torch.zeros(3, 3, 16, 16), torch.arange(3)],
        *({key: torch.zeros(3, 3, 16, 16), "label": torch.arange(3)} for key in ("image", "images", "pixel_values")),
        *({"image": torch.zeros(3, 3, 16, 16), key: torch.arange(3)} for key in ("labels", "target")),
    ],
)
def test_batches_of_all_common_forms_are_taken(batch):
    assert batch_length(batch_images(batch)) == full_length(batch) == 3
    if not isinstance(batch, torch.Tensor):
        assert batch_labels(batch).tolist() == [0, 1, 2]
    trainer().fit(method(), DataLoader([batch] * 2, batch_size=None))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"pixels": 1, "text": 2}, "a batch has the keys pixels, text: give it one of images, image, pixel_values"),
        ({"image": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "images arrive as torch.uint8; a method takes norm"),
    ],
)
def test_batches_without_normalized_images_are_refused(batch, message):
    with pytest.raises(ValueError, match=r"batch|images") as caught:
        batch_images(batch)
    assert str(caught.value).startswith(message)


def test_a_dict_without_labels_says_what_it_has():
    with pytest.raises(ValueError, match=r"^a batch has the keys image: give it one of label, labels, target$"):
        batch_labels({"image": torch.zeros(1)})


@pytest.mark.parametrize(("largest", "warned"), [(2.6, 0), (255.0, 1)])
def test_floats_that_are_not_normalized_are_warned_of_once(largest, warned, caplog):
    with caplog.at_level(logging.WARNING, "ssl_vit"):
        trainer(max_epochs=2).fit(method(), DataLoader(torch.full((8, 3, 16, 16), largest), batch_size=4))
    assert len([line for line in caplog.messages if line.startswith("images arrive with values up to 255;")]) == warned


# 7. validation, test and prediction


def test_validation_sees_the_test_images_through_the_training_transform_alike_each_time(folder):
    data = ImageDataModule(path=str(folder), batch_size=4, workers=0, seed=0)
    module = fitted(data, SeesCrops(), max_epochs=2, num_sanity_val_steps=0)
    first, second = module.seen["val"][:2], module.seen["val"][2:]
    assert len(first) == 2
    assert same(first, second)
    assert numbers(first) == data.eval_index("test").tolist()
    # in epoch 0 training sees every image, these too, with the same random numbers
    seen = by_number(module.seen["fit"][:6])
    assert all(torch.equal(seen[index], image) for index, image in by_number(first).items())


def test_validation_of_crops_with_colors(folder):
    class Validates(ssl_vit.DINO):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.losses(batch["images"])["cross_entropy"])

    module = Validates(encoder=ENCODER, optim={"warmup_epochs": 0}, **OPTIONS["DINO"])
    data, runner = ImageDataModule(path=str(folder), batch_size=8, workers=0), trainer()
    runner.fit(module, data)
    assert torch.isfinite(runner.callback_metrics["val/loss"])


def test_test_and_labeled_validation_are_central_crops(folder):
    crop = CenterCrop((8, 8), 0.875)
    data = ImageDataModule(path=str(folder), batch_size=4, workers=0, labeled=True, seed=0)
    module = fitted(data, SeesCrops(), num_sanity_val_steps=0)
    trainer().test(module, data, verbose=False)
    assert same(module.seen["val"], module.seen["test"])
    for image, index in zip(torch.cat(images_of(module.seen["test"])), data.eval_index("test").tolist(), strict=True):
        pixels = torch.from_numpy(data.splits.test.source.read(index).copy()).permute(2, 0, 1)
        torch.testing.assert_close(image, data.normalize(crop(pixels)[None])[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_prediction_sees_all_images_in_their_order(folder, workers):
    module = SeesCrops()
    trainer().predict(module, ImageDataModule(path=str(folder), batch_size=7, workers=workers))
    assert numbers(module.seen["predict"]) == list(range(COUNT))
    assert {images.dtype for images in images_of(module.seen["predict"])} == {torch.float32}


@pytest.mark.parametrize("kind", ["val_dataloader", "test_dataloader", "predict_dataloader"])
def test_every_rank_evaluates_its_part(folder, kind):
    parts = []
    for rank in range(2):
        data = ImageDataModule(SeesCrops().transform(), path=str(folder), workers=0, image_size=8, seed=0)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # pyright: ignore
        parts.append(numbers(getattr(data, kind)()))
    expected = range(COUNT) if kind == "predict_dataloader" else data.eval_index("test")
    assert set(parts[0]) | set(parts[1]) == set(map(int, expected))
    assert len(parts[0]) == len(parts[1]) == -(-len(expected) // 2)


# 8. one data module, several trainers


def test_a_second_fit_has_its_own_rank(folder):
    data = ImageDataModule(path=str(folder), batch_size=4, workers=0, seed=0)
    first = fitted(data, SeesCrops())
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, lightning_module=SeesCrops())  # pyright: ignore
    loader = data.train_dataloader()
    assert len(loader) == 3
    assert loader.batch_size == 4
    again = fitted(data, SeesCrops())
    assert same(first.seen["fit"], again.seen["fit"])


def test_the_record_of_unreadable_images_counts_the_data_sets_images():
    data = ImageDataModule(source=Photos(), test=Photos(count=6), image_size=8)
    data.setup()
    assert isinstance(data.read_errors, ReadErrors)
    assert data.read_errors.images == COUNT + 6
