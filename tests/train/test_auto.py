"""recipe=auto: settings from images and the time of a step."""

import numpy as np
import pytest
import yaml
from PIL import Image

from ssl_vit.cli.main import run_command
from ssl_vit.cli.settings import resolve_command
from ssl_vit.config.checks import ConfigError
from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.schema import DataConfig, EncoderConfig, RunConfig
from ssl_vit.config.tokenizer_schema import TokenizerRun
from ssl_vit.data.sources import open_source
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder, save_encoder
from ssl_vit.train import auto


@pytest.fixture
def images(tmp_path):
    """A folder of 100 gray images of 12 bits and 36 x 40 pixels, in two classes."""
    rng = np.random.default_rng(0)
    for number in range(100):
        folder = tmp_path / "my images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 4096, (36, 40), dtype=np.uint16)).save(folder / f"{number}.png")
    return tmp_path / "my images"


def test_a_step_is_timed_on_images_that_can_be_read(images):
    (images / "a" / "0.png").write_bytes(b"no image")  # the first
    source = open_source(DataConfig(path=str(images)), 1, "train")
    sample = auto.Repeated(source, budget=1e9, images=200)
    assert len(sample) == 200
    assert all(sample[number].shape == (36, 40, 1) for number in range(200))
    assert len(sample.kept) == 64


@pytest.fixture
def seconds(monkeypatch):
    """What each step would take, for networks of so many channels, in place of a measurement."""
    times = {128: 0.1, 192: 0.2, 256: 0.4, 384: 0.8}
    monkeypatch.setattr(auto, "seconds_of_step", lambda base, name, known: times[known["encoder.embed_dim"]])
    return times


def settled(images, *args, config_class=RunConfig):
    args = (*args, f"data.path={images}", "data.source=folder")
    return resolve_command(config_class, [*args, *["method=mae"] * (config_class is RunConfig)])


def test_a_path_alone_settles_what_images_decide(images, seconds, capsys):
    resolved = settled(images)
    config = resolved.config
    assert config.recipe == "auto"
    assert (config.encoder.channels, config.data.white_16bit) == (1, 4095)
    assert (config.encoder.image_size, config.encoder.patch_size) == (36, 4)
    assert config.data.mean == pytest.approx([0.5], abs=0.01)
    assert config.data.batch_size == 8  # of 100 images, so that an epoch has ten steps
    assert config.data.eval_crop == 1.0
    assert resolved.origin["data.mean"] == resolved.origin["trainer.max_epochs"] == "auto"
    printed = capsys.readouterr().out
    assert "100 images; of 100 that were read the median is 36 x 40 pixels, gray, 16 bits up to 4,095" in printed
    assert f"data.white_16bit=4095 trainer.max_epochs={config.trainer.max_epochs}" in printed


def test_the_largest_network_of_which_enough_steps_fit_is_taken(images, seconds):
    config = settled(images, "trainer.plan_minutes=8").config  # 4,800, 2,400, 1,200 or 600 steps
    assert config.encoder.embed_dim == 256
    assert config.trainer.max_epochs == round(1200 / 12)
    seconds.update({width: 2.0 for width in seconds})
    config = settled(images, "trainer.plan_minutes=8").config
    assert config.encoder.embed_dim == 128  # the smallest, however slow
    assert config.trainer.max_epochs == round(240 / 12)
    assert config.optim.warmup_epochs == pytest.approx(0.05 * 20)


def test_several_machines_time_no_step_and_agree(images, monkeypatch):
    """Each with one process: their steps would take different times, and their runs have different lengths."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("NODE_RANK", "0")
    monkeypatch.setattr(auto, "seconds_of_step", None)
    config = settled(images, "trainer.num_nodes=2", "trainer.devices=1").config
    assert config.trainer.max_epochs == round(auto.ENOUGH / 12)


def test_what_is_typed_stays_and_the_rest_follows_it(images, seconds):
    config = settled(images, "encoder.image_size=32", "encoder.patch_size=8", "encoder.embed_dim=192").config
    assert (config.encoder.image_size, config.encoder.patch_size) == (32, 8)
    assert config.encoder.embed_dim == 192
    assert config.optim.base_lr == pytest.approx(1e-3 * 256 / 192 * (8 / 64) ** 0.5 * 256 / 8, rel=0.05)


def test_with_weights_of_another_encoder_its_network_is_taken(images, seconds, tmp_path):
    encoder = EncoderConfig(embed_dim=48, depth=2, num_heads=3, image_size=32, patch_size=8, channels=3)
    save_encoder(VisionTransformer(encoder), tmp_path / "encoder")
    seconds[48] = 1.0
    config = settled(images, f"init_from={tmp_path / 'encoder'}").config
    assert (config.encoder.shape, config.encoder.patch_size, config.encoder.channels) == ((48, 2, 3), 8, 3)
    assert len(config.data.mean) == 3
    assert config.encoder.image_size == 32  # whole patches of 36 pixels


def test_any_recipe_may_have_single_settings_found(images):
    config = settled(images, "recipe=imagenette", "data.mean=auto", "data.std=auto", "encoder.channels=auto").config
    assert len(config.data.mean) == config.encoder.channels == 1
    assert config.trainer.max_epochs == 400


def test_a_tokenizer_sees_pixels_as_they_are(images):
    config = settled(images, config_class=TokenizerRun).config
    assert (config.data.mean, config.data.std, config.tokenizer.channels) == ([0.0], [1.0], 1)


def test_a_planned_time_that_plans_nothing_is_refused(images):
    with pytest.raises(ConfigError, match=r"trainer.plan_minutes=5.0 must be left out: it is for"):
        settled(images, "recipe=imagenette", "trainer.plan_minutes=5")


def test_auto_is_for_some_settings_of_trainings_alone(images):
    with pytest.raises(ConfigError, match=r"method.mask_ratio=auto must be a number"):
        settled(images, "method.mask_ratio=auto")


def test_a_step_is_timed_and_the_run_is_what_its_config_says(images, tmp_path, monkeypatch, capsys):
    """The whole way once, with a real step; what was found lies in config.yaml, from which the run is made again."""
    monkeypatch.chdir(tmp_path)
    args = [
        f"data.path={images}",
        "data.source=folder",
        "encoder.embed_dim=16",
        "encoder.depth=1",
        "encoder.num_heads=2",
    ]
    args += ["trainer.plan_minutes=0.0001", "trainer.logger=none", "monitor.every_epochs=0"]
    run_command("pretrain", "method=mae", *args, "run_dir=run")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 1
    assert config["data"]["white_16bit"] == 4095
    run_command("pretrain", "method=mae", "recipe=run/config.yaml", "run_dir=again")
    first, again = (load_encoder(tmp_path / run).state_dict() for run in ("run", "again"))
    assert all((first[name] == again[name]).all() for name in first)
    monkeypatch.setattr(auto, "automatic", None)  # nothing is measured anew of a run that goes on
    run_command("pretrain", "method=mae", *args, "run_dir=run", "resume=auto", "recipe=auto")


def test_fine_tuning_few_images_has_several_steps_an_epoch(images, tmp_path):
    encoder = EncoderConfig(embed_dim=16, depth=1, num_heads=2, image_size=32, patch_size=8, channels=1)
    save_encoder(VisionTransformer(encoder), tmp_path / "encoder", mean=[0.5], std=[0.2])
    config = settled(images, f"encoder={tmp_path / 'encoder'}", config_class=FinetuneRun).config
    assert config.recipe == "auto"
    assert config.data.batch_size == 8  # of 80 that are not held out
    assert config.trainer.max_epochs == 100
