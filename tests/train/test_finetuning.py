"""Whole fine-tunings, small ones, and predictions with their result: what they write, what they refuse."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ssl_vit
from ssl_vit.cli.settings import resolve_evaluation, resolve_run
from ssl_vit.config.evaluation_schema import KNNConfig
from ssl_vit.config.finetune_schema import FinetuneRun, PredictConfig
from ssl_vit.config.recipes import FINETUNE, recipes
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder, save_encoder
from ssl_vit.run.files import newest_run
from ssl_vit.supervised.predict import predict
from ssl_vit.train.finetuning import finetune

ENCODER = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8, "image_size": 32, "pos_embed": "sincos"}
DATA = {"source": "digits", "path": "", "batch_size": 64, "eval_crop": 1.0, "mean": [0.2] * 3, "std": [0.3] * 3}
SHORT = ["trainer.max_steps=4", "trainer.max_minutes=null", "data.workers=0", "monitor.every_epochs=0"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_VIT_RUN_DIR", raising=False)


def pretrained(folder: str = "runs/mae-digits-1", data: dict | None = None, recipe: str = "digits", **changes) -> Path:
    torch.manual_seed(0)
    known = {**DATA, **(data or {})}
    encoder = VisionTransformer(**{**ENCODER, **changes})
    statistics = {"mean": known["mean"], "std": known["std"]}
    save_encoder(encoder, Path(folder), data=known, recipe=recipe, method="mae", **statistics)
    return Path(folder)


def tune(*args: str) -> tuple[Path, dict]:
    settings = dict(arg.split("=", 1) for arg in (*SHORT, *args))
    return finetune(resolve_run(FinetuneRun, [f"{key}={value}" for key, value in settings.items()]).config)


def folder_of(root: str, classes: list[str], count: int = 4, bands: str = "RGB") -> Path:
    noise = np.random.default_rng(0)
    for name in classes:
        for number in range(count):
            path = Path(root) / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (40, 36, len(bands)) if len(bands) > 1 else (40, 36)
            Image.fromarray(noise.integers(0, 255, shape, dtype=np.uint8)).save(path)
    return Path(root)


def test_a_run_leaves_a_model_its_encoder_and_its_result():
    source = pretrained()
    run_dir, result = tune("monitor.every_epochs=1", "trainer.log_every_steps=2", "finetune.ema=0.9")
    assert run_dir.name.startswith("finetune-digits-")
    assert json.loads((run_dir / "finetune.json").read_text()) == result
    assert result["task"] == "finetune"
    assert 0 <= result["top1"] <= result["top5"] <= 1
    assert 0 <= result["calibration_error"] <= 1
    assert list(result["per_class"]) == [str(digit) for digit in range(10)]
    assert (result["encoder"], result["init"], result["test_images"]) == (str(source), "pretrained", 360)
    assert "recipe=digits" in result["protocol"]
    assert "moving average 0.9" in result["protocol"]
    assert "4 steps on 1437 labeled images" in result["protocol"]
    model = ssl_vit.load_classifier(run_dir)
    assert model.classes == [str(digit) for digit in range(10)]
    assert model.metadata["mean"] == [0.2] * 3
    assert load_encoder(run_dir)(torch.randn(1, 3, 32, 32)).shape == (1, 17, 16)
    assert (run_dir / "confusion.png").stat().st_size > 100
    events = EventAccumulator(str(run_dir), size_guidance={"images": 0}).Reload()
    assert {"test/top1", "monitor/top1", "train/classification"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["confusion"]
    assert newest_run() == source  # an evaluation without encoder= is of what was pretrained
    assert resolve_evaluation(KNNConfig, [f"encoder={run_dir}"]).config.pool == "mean"


def test_what_is_reported_is_what_the_saved_model_scores():
    pretrained()
    run_dir, result = tune()
    from ssl_vit.data.datamodule import ImageDataModule

    model = ssl_vit.load_classifier(run_dir)
    data = ImageDataModule(None, source="digits", mean=[0.2] * 3, std=[0.3] * 3, eval_crop=1.0, image_size=32, seed=0)
    hits = [
        model(data.normalize(batch["images"])).argmax(1) == batch["label"] for batch in data.eval_dataloader("test")
    ]
    assert result["top1"] == pytest.approx(float(torch.cat(hits).float().mean()), abs=1e-4)


def test_a_stopped_run_is_resumed_with_its_own_settings():
    pretrained()
    tune("run_dir=runs/finetune-digits-a", "finetune.layer_decay=0.5", "trainer.checkpoint_every_steps=2")
    (Path("runs/finetune-digits-a") / "model.safetensors").unlink()
    run_dir, _ = finetune(
        resolve_run(FinetuneRun, ["resume=auto", "trainer.max_steps=6", "encoder=runs/mae-digits-1"]).config
    )
    assert run_dir == Path("runs/finetune-digits-a")
    assert (run_dir / "checkpoints/step-0000006.ckpt").exists()
    by_path = resolve_run(FinetuneRun, [f"resume={run_dir}"])
    assert by_path.config.finetune.layer_decay == 0.5
    assert by_path.config.encoder == "runs/mae-digits-1"


def test_scratch_is_the_same_network_from_other_weights():
    pretrained()
    model = {}
    for init in ("pretrained", "scratch"):
        run_dir, result = tune(
            f"init={init}", "optim.base_lr=1e-12", "optim.min_lr=0", "trainer.max_steps=1", f"run_dir=runs/{init}"
        )
        assert result["init"] == init
        model[init] = ssl_vit.load_classifier(run_dir)
    start = load_encoder("runs/mae-digits-1")
    shapes = [{name: tensor.shape for name, tensor in m.state_dict().items()} for m in model.values()]
    assert shapes[0] == shapes[1]
    theirs = start.blocks[0].attn.qkv.weight
    torch.testing.assert_close(model["pretrained"].encoder.blocks[0].attn.qkv.weight, theirs, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(model["scratch"].encoder.blocks[0].attn.qkv.weight, theirs, atol=1e-3)
    torch.testing.assert_close(model["scratch"].encoder.pos_embed[:, 1:], start.pos_embed[:, 1:], atol=1e-6, rtol=1e-5)


def test_another_size_a_teacher_and_every_augmentation():
    pretrained()
    teacher, _ = tune("run_dir=runs/teacher")
    args = [f"distill.teacher={teacher}", "distill.kind=soft", "image_size=40", "finetune.randaugment=9"]
    args += ["finetune.cutmix=1.0", "finetune.erasing_p=0.5", "finetune.jitter=0.3", "finetune.class_weights=true"]
    run_dir, result = tune(*args, "finetune.pool=cls", "run_dir=runs/student")
    model = ssl_vit.load_classifier(run_dir)
    assert model.distilled
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 10)
    assert model.encoder.grid == (5, 5)
    assert result["test_images"] == 360


def test_labeled_training_skips_held_out_and_unlabeled_images():
    from ssl_vit.data.datamodule import ImageDataModule
    from ssl_vit.data.transforms.crops import RandomCrop

    folder_of("images", ["a", "b"], count=20)
    transform = RandomCrop((32, 32), (0.5, 1.0))
    options = {"source": "folder", "path": "images", "batch_size": 4, "workers": 0}
    data = ImageDataModule(transform, image_size=32, seed=0, labeled=True, **options)
    trained = {int(i) for batch in data.train_dataloader() for i in batch["index"]}
    tested = {int(i) for batch in data.eval_dataloader("test") for i in batch["index"]}
    assert len(trained) == 32
    assert len(tested) == 8
    assert not trained & tested


def test_a_folder_of_your_own_and_its_predictions():
    pretrained()
    folder_of("images", ["ant", "bee", "cow"], count=6)
    run_dir, result = tune("data.source=folder", "data.path=images", "data.batch_size=4", "data.cache_gb=0")
    assert result["data"] == "folder:images"
    assert set(result["per_class"]) == {"ant", "bee", "cow"}
    Path("images/bee/unreadable.png").write_bytes(b"no image")
    out, rows = predict(resolve(PredictConfig, ["images=images", "top=2", "batch_size=5"]).config)
    assert [row["file"] for row in rows] == sorted(str(path) for path in Path("images").rglob("*.png"))
    unreadable = [row for row in rows if row["error"]]
    assert [Path(row["file"]).name for row in unreadable] == ["unreadable.png"]
    assert "is no image that can be read" in unreadable[0]["error"]
    table = list(csv.DictReader(out.open()))
    assert list(table[0]) == ["file", "prediction", "probability", "class_2", "probability_2", "error"]
    assert len(table) == 19
    for row in table:
        if not row["error"]:
            assert row["prediction"] in ("ant", "bee", "cow")
            assert float(row["probability"]) >= float(row["probability_2"])
    out, rows = predict(resolve(PredictConfig, ["images=images/cow/1.png", f"model={run_dir}", "out=one.json"]).config)
    assert json.loads(out.read_text()) == rows
    assert sum(rows[0]["top"].values()) == pytest.approx(1, abs=1e-5)
    assert len(rows) == 1


def test_predictions_are_those_of_the_evaluation():
    pretrained()
    run_dir, _ = tune()
    from ssl_vit.config.schema import DataConfig
    from ssl_vit.data.sources.digits import Digits

    digits = Digits(DataConfig(source="digits"), 3, "test")
    Path("few").mkdir()
    for number in range(6):
        Image.fromarray(digits.read(number)).save(f"few/{number}.png")
    _, rows = predict(PredictConfig(images="few", model=str(run_dir), out="few.csv"))
    model = ssl_vit.load_classifier(run_dir)
    pixels = torch.stack([torch.from_numpy(digits.read(i).copy()).permute(2, 0, 1) for i in range(6)]).float() / 255
    expected = model((pixels - 0.2) / 0.3).softmax(1)
    assert [row["prediction"] for row in rows] == [str(int(k)) for k in expected.argmax(1)]
    assert [row["probability"] for row in rows] == pytest.approx(expected.amax(1).tolist(), abs=1e-4)


def test_labels_that_cannot_be_learned_are_one_line():
    pretrained(data={"source": "folder"})
    folder_of("flat", [""])
    with pytest.raises(ValueError, match=r"data.path=flat has no labels: give data.path= with a folder"):
        tune("data.path=flat")
    folder_of("train", ["ant", "bee"])
    folder_of("test", ["ant", "bee", "cow", "dog"])
    message = r"data.test_path=test: the test images have the class cow, dog, of which there is no training image"
    with pytest.raises(ValueError, match=message):
        tune("data.path=train", "data.test_path=test")
    folder_of("other", ["elk", "fox"])
    with pytest.raises(ValueError, match=r"data.test_path=other: the test images have the class elk, fox, of which"):
        tune("data.path=train", "data.test_path=other")
    assert not list(Path("runs").glob("finetune-*"))


def test_one_class_alone_is_one_line():
    import pyarrow as pa
    import pyarrow.parquet as pq

    pretrained(data={"source": "parquet"})
    encoded = [path.read_bytes() for path in sorted(folder_of("one", ["a"]).rglob("*.png"))]
    pq.write_table(pa.table({"image": encoded, "label": [0] * len(encoded)}), "one.parquet")
    with pytest.raises(
        ValueError, match=r"data.path=one.parquet has training images of one class alone, .*: two are needed"
    ):
        tune("data.path=one.parquet")


def test_an_encoder_of_other_channels_is_one_line():
    pretrained(data={"source": "folder", "mean": [0.5] * 5, "std": [0.5] * 5}, channels=5)
    folder_of("images", ["ant", "bee"])
    message = r"encoder=runs/mae-digits-1 sees 5 channels, but the images of data.path=images have 3: give"
    with pytest.raises(ValueError, match=message):
        tune("data.path=images", "finetune.randaugment=0")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("finetune.pool=max", "finetune.pool=max must be one of mean, cls"),
        ("finetune.layer_decay=0", r"finetune.layer_decay=0.0 must be in \(0, 1\]"),
        ("finetune.ema=1", r"finetune.ema=1.0 must be in \[0, 1\)"),
        ("finetune.mix_p=2", r"finetune.mix_p=2.0 must be in \[0, 1\]"),
        ("finetune.mixup=-1", "finetune.mixup=-1.0 must be in"),
        ("finetune.randaugment=11", r"finetune.randaugment=11.0 must be in \[0, 10\]"),
        ("finetune.randaugment_ops=0", "finetune.randaugment_ops=0 must be in"),
        ("finetune.head_std=0", "finetune.head_std=0.0 must be in"),
        ("distill.kind=warm", "distill.kind=warm must be one of hard, soft"),
        ("distill.alpha=2", r"distill.alpha=2.0 must be in \[0, 1\]"),
        ("distill.temperature=0", "distill.temperature=0.0 must be in"),
        ("init=random", "init=random must be one of pretrained, scratch"),
        ("image_size=-1", r"image_size=-1 must be a side in pixels, or \[height, width\]"),
        ("recipe=digts", r"recipe=digts is not a recipe: there has .*digits"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(args, message):
    pretrained()
    with pytest.raises(ConfigError, match=message):
        resolve_run(FinetuneRun, args.split())


def test_a_size_that_is_no_multiple_of_the_patch_is_one_line():
    pretrained()
    with pytest.raises(ValueError, match=r"^image_size=36 must be a multiple of 8, the encoder's patch"):
        tune("image_size=36")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("out=x.txt", "out=x.txt must be a file that ends in .csv, .json or .html"),
        ("top=0", "top=0 must be a positive integer"),
        ("batch_size=0", "batch_size=0 must be a positive integer"),
    ],
)
def test_settings_of_a_prediction_that_make_no_sense_are_one_line(args, message):
    with pytest.raises(ConfigError, match=message):
        resolve(PredictConfig, args.split())


def test_predicting_nothing_is_one_line():
    with pytest.raises(FileNotFoundError, match="images=nowhere: there is no such file or folder"):
        predict(PredictConfig(images="nowhere"))
    folder_of("images", ["ant"])
    with pytest.raises(FileNotFoundError, match=r"no runs/\* has model.safetensors: make one with `ssl-vit finetune"):
        predict(PredictConfig(images="images"))
    pretrained()
    run_dir, _ = tune("trainer.max_steps=1")
    Path("empty").mkdir()
    Path("empty/notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"images=empty holds no images: 1 files seen \(1 .txt\)"):
        predict(PredictConfig(images="empty", model=str(run_dir)))


@pytest.mark.parametrize("name", recipes(FINETUNE))
def test_every_recipe_is_legal_and_says_how_it_is_run(name):
    pretrained(recipe=name)
    resolved = resolve_run(FinetuneRun, ["encoder=runs/mae-digits-1"])
    assert (resolved.config.recipe, resolved.origin["recipe"]) == (name, "encoder")
    text = recipes(FINETUNE)[name].read_text()
    assert all(f"# {arg}" in text for arg in ("command", "hardware", "duration", "expected"))


def test_the_defaults_are_maes_for_a_base_model():
    run, own = FinetuneRun(), FinetuneRun().finetune
    assert (run.optim.base_lr, run.optim.betas, run.optim.weight_decay, run.optim.min_lr) == (
        5e-4,
        (0.9, 0.999),
        0.05,
        1e-6,
    )
    assert (run.optim.warmup_epochs, run.optim.clip_grad, run.trainer.max_epochs) == (5, 0, 100)
    assert (own.layer_decay, own.drop_path, own.label_smoothing, own.mixup, own.cutmix) == (
        0.65,
        0.1,
        0.1,
        0.8,
        1.0,
    )
    assert (own.randaugment, own.randaugment_std, own.randaugment_ops, own.erasing_p) == (9, 0.5, 2, 0.25)
    assert (own.pool, own.ema, own.head_std, own.crop_scale) == ("mean", 0, 2e-5, (0.08, 1.0))


def test_an_encoder_without_a_recipe_of_its_own_needs_one():
    pretrained(recipe="steel")
    with pytest.raises(
        ConfigError, match=r"recipe= is missing for encoder=.*: its recipe=steel has no counterpart; give"
    ):
        resolve_run(FinetuneRun, [])
    assert resolve_run(FinetuneRun, ["recipe=digits"]).config.recipe == "digits"


def test_data_is_the_encoders_until_another_place_is_given():
    pretrained(data={"source": "parquet", "path": "old", "test_path": "older", "white_16bit": 4095})
    own = resolve_run(FinetuneRun, []).config.data
    assert (own.source, own.path, own.test_path) == ("parquet", "old", "older")
    folder_of("new", ["ant"])
    moved = resolve_run(FinetuneRun, ["data.path=new"]).config.data
    assert (moved.source, moved.path, moved.test_path, moved.white_16bit) == ("folder", "new", "", 4095)
    other = resolve_run(FinetuneRun, ["data.source=digits"]).config.data
    assert (other.source, other.path, other.test_path) == ("digits", "", "")
    pretrained(data={"source": "webdataset", "path": "http://a/b.tar", "epoch_size": 5})  # a stream's, of no folder's
    assert resolve_run(FinetuneRun, ["data.path=new"]).config.data.source == "folder"


def test_from_the_command_line(nursery, tmp_path):
    pretrained()
    folder_of("images", ["ant"])

    def printed(tool: str, *args: str) -> str:
        output = tmp_path / "output"
        output.write_text("")
        assert nursery.run(tmp_path, *args, tool=tool) == 0, output.read_text()
        return output.read_text()

    assert json.loads(printed("finetune", *SHORT, "run_dir=made").splitlines()[-1])["task"] == "finetune"
    line = "4 images classified, 0 could not be read: table.json"
    assert line in printed("predict", "model=made", "images=images", "out=table.json")
    dry = printed("finetune", "--dry-run", "image_size=40")
    assert "5 x 5 = 25 patches" in dry
    assert "ViT 16 wide, 2 deep" in dry
