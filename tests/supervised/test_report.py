"""Whole evaluations: every protocol from the command line, what they write, what they refuse."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import timm
from evaluations import make_encoder, make_labeled, on_ranks
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_vit.cli.main import run_command
from ssl_vit.cli.settings import resolve_evaluation
from ssl_vit.config import evaluation_schema
from ssl_vit.config.evaluation_schema import PROTOCOLS, KNNConfig, LinearProbeConfig
from ssl_vit.config.recipes import load_class
from ssl_vit.config.resolve import ConfigError
from ssl_vit.config.schema import LinearProtocol
from ssl_vit.data.sources.folder import Folder
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.supervised.report import evaluate, show

KEYS = {"task", "top1", "top5", "encoder", "data", "layer", "protocol", "controls", "test_images", "seed", "seconds"}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    return make_labeled(tmp_path_factory.mktemp("labeled"))


@pytest.fixture
def encoder():
    return make_encoder()


@pytest.fixture
def run_dir(tmp_path, monkeypatch, encoder, labeled):
    """A run's folder: an encoder with its data and readout settings."""
    monkeypatch.chdir(tmp_path)
    data = {"source": "folder", "path": str(labeled), "batch_size": 7, "workers": 0}
    readout = {"pool": "both", "layer": 2, "blocks": 1}
    save_encoder(encoder, tmp_path / "run", mean=[0.4] * 3, std=[0.2] * 3, data=data, readout=readout, step=17)
    return tmp_path / "run"


def linear(run_dir: Path, *args: str):
    return evaluate(resolve_evaluation(LinearProbeConfig, [f"encoder={run_dir}", *args]).config)


def knn(run_dir: Path, *args: str):
    return evaluate(resolve_evaluation(KNNConfig, [f"encoder={run_dir}", *args]).config)


def test_every_protocol_has_settings_and_a_function():
    assert PROTOCOLS.keys() == set(get_args(LinearProtocol))
    assert all(callable(load_class(protocol.home)) for protocol in PROTOCOLS.values())


def test_the_runs_protocol_is_the_default_of_the_command(tmp_path, encoder):
    data, readout = {"source": "digits"}, {"pool": "cls", "layer": "best", "blocks": 1, "protocol": "logreg"}
    save_encoder(encoder, tmp_path / "run", data=data, readout=readout)
    save_encoder(encoder, tmp_path / "silent", data=data)

    def resolved(run: str, config_class: type, *args: str):
        return resolve_evaluation(config_class, [f"encoder={tmp_path / run}", *args]).config

    as_trained = resolved("run", LinearProbeConfig)
    assert (as_trained.protocol, as_trained.pool, as_trained.layer) == ("logreg", "cls", "best")
    typed = resolved("run", LinearProbeConfig, "protocol=grid")
    assert (typed.protocol, typed.pool, typed.layer) == ("grid", None, None)
    assert resolved("run", LinearProbeConfig, "layer=2").layer == 2
    assert resolved("run", KNNConfig).layer == "best"
    assert (
        resolved("run", KNNConfig, "shots=1,5").layer == resolved("run", LinearProbeConfig, "shots=5").layer == "last"
    )
    assert resolved("silent", LinearProbeConfig).protocol == "auto"
    assert resolved("run", LinearProbeConfig, "protocol=auto").protocol == "logreg"


def test_another_source_does_not_inherit_the_path_of_the_runs_own(tmp_path, encoder):
    """The line said `digits:images`, and data.source=parquet looked for tables where the run had found its images."""
    save_encoder(encoder, tmp_path / "run", data={"source": "folder", "path": "images", "test_path": "others"})
    inherited = resolve_evaluation(KNNConfig, [f"encoder={tmp_path / 'run'}"]).config.data
    assert (inherited.path, inherited.test_path) == ("images", "others")
    typed = resolve_evaluation(KNNConfig, [f"encoder={tmp_path / 'run'}", "data.source=digits"]).config.data
    assert (typed.path, typed.test_path) == ("", "")


def test_a_path_that_is_typed_is_read_as_what_lies_there_and_not_as_the_encoders_own(tmp_path, encoder):
    """k-NN on a folder by an encoder of digits, or of a stream, asked for data.source=folder too."""
    (tmp_path / "new" / "cat").mkdir(parents=True)
    (tmp_path / "new" / "cat" / "a.jpg").touch()
    stream = {"source": "webdataset", "path": "http://a/b.tar", "epoch_size": 5, "test_path": "old"}
    for number, data in enumerate(({"source": "digits"}, {"source": "parquet", "path": "old"}, stream)):
        save_encoder(encoder, tmp_path / f"run{number}", data=data | {"white_16bit": 4095})
        args = [f"encoder={tmp_path / f'run{number}'}", f"data.path={tmp_path / 'new'}"]
        found = resolve_evaluation(KNNConfig, args).config.data
        assert (found.source, found.test_path, found.white_16bit) == ("folder", "", 4095)
        typed = resolve_evaluation(KNNConfig, [*args, "data.source=parquet"]).config.data
        assert typed.source == "parquet"


def digits_run(folder: Path) -> Path:
    made = VisionTransformer(embed_dim=16, depth=2, num_heads=2, patch_size=16, image_size=32)
    data = {"source": "digits", "batch_size": 256, "workers": 0}
    save_encoder(made, folder, mean=[0.2] * 3, std=[0.2] * 3, data=data)
    return folder


def test_the_command_prints_the_line_last(tmp_path, capsys):
    run_command(
        "linear_probe", f"encoder={digits_run(tmp_path)}", "protocol=logreg", "train_limit=50", "controls=false"
    )
    printed = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(printed) == json.loads((tmp_path / "linear_probe.json").read_text())


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_each_protocol_evaluates_digits(protocol, tmp_path, capsys):
    args = [f"protocol={protocol}", "train_limit=100", "controls=false", *["epochs=2"] * (protocol != "logreg")]
    show(linear(digits_run(tmp_path), *args))
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "linear_probe.json").read_text())
    assert KEYS | {"calibration_error", "per_class", "head"} <= result.keys()
    assert 0 <= result["top1"] <= result["top5"] <= 1
    assert result["test_images"] == 360


def test_two_processes_evaluate_as_one_does_and_the_first_has_the_result(run_dir, free_port):
    """Live crops: each process extracts the features of half of a batch, both train the same head on all of it."""
    args = ["protocol=dino", "epochs=2", "batch_size=10", "base_lr=1", "controls=false"]
    first, second = on_ranks(2, free_port, lambda: linear(run_dir, *args))
    assert second is None
    assert first | {"seconds": 0} == linear(run_dir, *args) | {"seconds": 0}


def test_an_evaluation_leaves_figures_an_image_and_events(run_dir):
    result = linear(run_dir, "protocol=logreg")
    assert json.loads((run_dir / "linear_probe.json").read_text()) == result
    assert set(result["controls"]) == {"random encoder", "raw pixels"}
    assert result["head"] == {"blocks": [2], "pool": "both"}  # as the run says
    assert set(result["per_class"]) == {"bird", "cat", "dog"}
    low, high = result["top1_interval"]
    assert low <= result["top1"] <= high
    assert set(result["controls_interval"]) == set(result["controls_p"]) == set(result["controls"])
    with Image.open(run_dir / "linear_probe-confusion.png") as image:
        assert min(image.size) >= 256
    events = EventAccumulator(str(run_dir / "linear_probe")).Reload()
    (point,) = events.Scalars("linear_probe/top1")
    assert (point.step, round(point.value, 4)) == (17, result["top1"])
    assert "linear_probe/calibration_error" in events.Tags()["scalars"]


def test_the_grid_reads_more_than_the_runs_readout(run_dir):
    result = linear(run_dir, "controls=false", "epochs=1")
    assert "best of 78 linear heads on held-out images" in result["protocol"]
    result = linear(run_dir, "controls=false", "epochs=1", "pool=cls", "blocks=1")
    assert "of 13 linear heads" in result["protocol"]
    assert (result["head"]["pool"], result["head"]["blocks"]) == ("cls", [3])


def test_test_labels_choose_nothing(run_dir, labeled, tmp_path):
    """With the test images' folders renamed around, all that is chosen stays."""
    moved = tmp_path / "moved"
    (moved / "test").mkdir(parents=True)
    (moved / "train").symlink_to(labeled / "train")
    for name, other in zip(("bird", "cat", "dog"), ("cat", "dog", "bird"), strict=True):
        (moved / "test" / name).symlink_to(labeled / "test" / other)
    for probe, args in ((linear, ["epochs=2"]), (knn, ["layer=best"]), (linear, ["protocol=beit", "epochs=1"])):
        args = [*args, "controls=false"]
        assert probe(run_dir, *args)["head"] == probe(run_dir, *args, f"data.path={moved}")["head"]


def test_knn_says_which_k(run_dir):
    result = knn(run_dir, "neighbors=2")
    assert result["head"] == {"blocks": [2], "pool": "both", "neighbors": 2}
    assert "2-NN, cosine, T=0.07" in result["protocol"]
    assert knn(run_dir, "neighbors=1,3")["head"]["neighbors"] in (1, 3)


def test_a_table_says_how_sure_it_is_and_which_rows_do_not_differ(run_dir, capsys):
    result = linear(run_dir, "protocol=logreg")
    show(result | {"controls_p": {"random encoder": 0.3, "raw pixels": 0.001}})
    table = " ".join(capsys.readouterr().out.split())
    assert "does not differ, p = 0.3" in table
    assert "differs, p = 0.001" in table
    low, high = result["top1_interval"]
    assert f"{low:.1%} .. {high:.1%}" in table


def test_a_small_set_has_logistic_regression_by_itself_and_a_large_one_the_grid(run_dir, monkeypatch, capsys):
    """561 images, ViT-tiny: the grid took 386 s where logistic regression takes one."""
    small = linear(run_dir, "controls=false")
    assert small["protocol"].startswith("logistic regression, C=1 (auto took logreg: 30 labeled training images, at ")
    assert small["head"] == {"blocks": [2], "pool": "both"}  # as the run says
    assert "protocol      logreg: 30 labeled" in capsys.readouterr().out
    named = linear(run_dir, "controls=false", "protocol=logreg")
    assert {"top1": small["top1"], "per_class": small["per_class"]}.items() <= named.items()
    monkeypatch.setattr(evaluation_schema, "LOGREG_UP_TO", 29)
    large = linear(run_dir, "controls=false")
    assert "best of 78 linear heads" in large["protocol"]
    assert "auto took grid: 30 labeled training images, more than 29" in large["protocol"]
    assert "lr" in large["head"]
    best = linear(run_dir, "controls=false", "layer=best")
    assert "auto took logreg: which can choose the block" in best["protocol"]


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (
            ["linear_probe"],
            ["protocol      logreg: 30", "reads         both of block 2", "work          logistic regr"],
        ),
        (
            ["linear_probe", "protocol=grid", "pool=cls"],
            ["work          26 heads on 2 features, 70 epochs of batch 30"],
        ),
        (["linear_probe", "protocol=mae"], ["memory        no features", "90 epochs of batch 30"]),
        (["linear_probe", "protocol=attentive"], ["memory        tokens of 0.0 MB"]),
        (["linear_probe", "shots=1,5"], ["logistic regression, on 5 random subsets"]),
        (
            ["knn", "controls=false"],
            ["k-NN, k = 10, 20, 100, 200, 5 times", "controls      none", "memory        features of"],
        ),
    ],
)
def test_a_dry_run_says_what_an_evaluation_would_do_and_does_nothing(args, lines, run_dir, monkeypatch, capsys):
    before = sorted(run_dir.iterdir())
    monkeypatch.setattr(Folder, "read", None)
    run_command(*args, f"encoder={run_dir}", "--dry-run")
    shown = capsys.readouterr().out
    assert [line for line in lines if line not in shown] == []
    assert "images        30 for training, 12 for evaluation" in shown
    assert f"encoder       {run_dir}: 3 blocks, 24 wide" in shown
    assert "trained       step 17, images folder:" in shown
    assert len(shown.splitlines()) <= 20
    assert sorted(run_dir.iterdir()) == before


@pytest.mark.parametrize("probe", [linear, knn])
def test_few_labels_are_means_of_five_subsets(run_dir, probe):
    result = probe(run_dir, "shots=1,5", "fraction=0.2")
    assert set(result["shots"]) == {"1", "5"}
    assert result["top1"] == result["fraction"]["0.2"]["mean"]
    assert set(result["shots"]["1"]) == {"mean", "std", "interval", "top5"}
    low, high = result["top1_interval"]
    assert [low, high] == result["fraction"]["0.2"]["interval"]
    assert low <= result["top1"] <= high
    assert set(result["controls_interval"]) == set(result["controls_p"]) == set(result["controls"])
    assert set(result["controls"]) == {"random encoder", "raw pixels"}
    assert "per_class" not in result
    events = EventAccumulator(str(run_dir / result["task"])).Reload()
    assert f"{result['task']}/shots_5" in events.Tags()["scalars"]


def test_a_model_of_timm_is_evaluated_by_name(labeled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **options: create(name, **options))
    args = ["encoder=timm:resnet10t", "data.source=folder", f"data.path={labeled}", "data.workers=0"]
    result = evaluate(resolve_evaluation(LinearProbeConfig, [*args, "protocol=logreg"]).config)
    assert (result["encoder"], result["layer"], result["head"]["pool"]) == ("timm:resnet10t", 1, "whole")
    assert (tmp_path / "runs" / "timm-resnet10t" / "linear_probe.json").exists()
    with pytest.raises(ConfigError, match="encoder=timm:resnet10t does not say what it was trained on: give data"):
        resolve_evaluation(KNNConfig, ["encoder=timm:resnet10t"])


def make_images(folder: Path, names: list[str]) -> str:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / name)
    return str(folder)


def test_a_path_is_no_markup(capsys):
    """Figures were computed, and a bracket in a folder's name ended the command before it printed them."""
    show({"task": "knn", "data": "folder:a[/b]", "test_images": 3, "top1": 0.5, "controls": {}})
    assert "knn on folder:a[/b]: 3 images" in capsys.readouterr().out


def test_images_and_labels_are_named_before_they_are_used(run_dir, capsys):
    knn(run_dir, "controls=false", "train_limit=20")
    assert capsys.readouterr().out.splitlines()[:2] == [
        "images        20 for training, 12 for evaluation: its own test split",
        "labels        3 classes from folder names: bird, cat, dog",
    ]
    with pytest.raises(ValueError, match=r"has no labels \(data.labels=false\): give data.path="):
        knn(run_dir, "data.labels=false")


@pytest.mark.parametrize("probe", [linear, knn])
def test_images_without_use_are_one_line(run_dir, tmp_path, probe):
    flat = make_images(tmp_path / "flat", [f"{i}.png" for i in range(4)])
    with pytest.raises(ValueError, match=r"data.path=.*flat has no labels: give data.path= with a folder"):
        probe(run_dir, f"data.path={flat}")
    names = [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(4)]
    with pytest.raises(ValueError, match="training images of one class alone, bird: two are needed"):
        probe(run_dir, "train_limit=1")
    more = make_images(tmp_path / "more", [*names, "test/zebra/0.png"])
    with pytest.raises(ValueError, match="the class zebra, of which there is no training image"):
        probe(run_dir, f"data.path={more}")


@pytest.mark.parametrize("args", [["protocol=grid"], ["protocol=attentive"], ["protocol=dino", "epochs=1"]])
def test_damaged_weights_are_one_line(run_dir, encoder, args):
    encoder.norm.weight.data[:] = 3e38  # finite, as a file's weights must be
    metadata = json.loads((run_dir / "encoder.json").read_text())
    metadata.pop("encoder")
    save_encoder(encoder, run_dir, **metadata)
    with pytest.raises(ValueError, match="features are not finite: the encoder's weights are damaged"):
        linear(run_dir, *args)


def test_an_encoder_of_other_channels_is_one_line(tmp_path, labeled):
    save_encoder(
        VisionTransformer(embed_dim=8, depth=1, num_heads=1, patch_size=8, image_size=16, channels=4), tmp_path
    )
    args = ["data.source=folder", f"data.path={labeled}"]
    with pytest.raises(ValueError, match="does not say by which mean and std its images were normalized"):
        linear(tmp_path, *args)
    with pytest.raises(ValueError, match=r"takes images of 4 channels, data.mean=\[.*\] is of 3"):
        linear(tmp_path, *args, "data.mean=[0,0,0]", "data.std=[1,1,1]")
    with pytest.raises(ValueError, match=r"has 3 bands \(RGB\), encoder.channels=4 needs 4"):
        linear(tmp_path, *args, "data.mean=[0,0,0,0]", "data.std=[1,1,1,1]", "protocol=logreg", "controls=false")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["protocol=gird"], r"protocol=gird must be one of auto, grid, .*did you mean grid\?"),
        (["protocol=logreg", "epochs=3"], "epochs=3 must be null with protocol=logreg, which has none"),
        (["base_lr=0.1"], "base_lr=0.1 must be null with protocol=auto, which has none"),
        (["protocol=mae", "batch_size=0"], "batch_size=0 must be a positive integer or null"),
        (["protocol=beit", "pool=cls"], "pool=cls must be null with protocol=beit, which says itself what it reads"),
        (["protocol=attentive", "blocks=2"], "blocks=2 must be null with protocol=attentive"),
        (
            ["layer=best", "epochs=3"],
            "layer=best must be last or a number with protocol=auto; protocol=logreg and k-NN",
        ),
        (["layer=best", "protocol=grid"], "layer=best must be last or a number with protocol=grid; protocol=logreg"),
        (["shots=0"], r"shots=\[0\] must be positive integers"),
        (["fraction=1.5"], r"fraction=\[1.5\] must be fractions in \(0, 1\]"),
        (["layer=best", "shots=1"], "layer=best must be last or a number with shots= or fraction="),
        (["protocol=logreg", "layer=best", "blocks=2"], "blocks=2 must be 1 with layer=best"),
        (["train_limit=-1"], "train_limit=-1 must be 0 or more"),
        (["pool=max"], "pool=max must be one of cls, mean, both"),
        (["blocks=0"], "blocks=0 must be a positive integer"),
        (["seed=-1"], r"seed=-1 must be in \[0, 4294967295\]"),
    ],
)
def test_a_wrong_setting_is_one_line(run_dir, args, message):
    with pytest.raises(ConfigError, match=message):
        resolve_evaluation(LinearProbeConfig, [f"encoder={run_dir}", *args])


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("neighbors=0", r"neighbors=\[0\] must be positive integers"),
        ("neighbors=", r"neighbors=\[\] must be one or more"),
        ("temperature=0", r"temperature=0.0 must be in \[0.001, 1000\]"),
    ],
)
def test_a_wrong_setting_of_knn_is_one_line(run_dir, arg, message):
    with pytest.raises(ConfigError, match=message):
        resolve_evaluation(KNNConfig, [f"encoder={run_dir}", arg])
