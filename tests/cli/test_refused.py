"""What cannot end well, or has no effect, is refused before anything is written, by the dry run as by the run."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from ssl_vit.cli.main import guarded
from ssl_vit.cli.settings import require_effect
from ssl_vit.config.memory import NEEDS, training_bytes
from ssl_vit.config.pretrain_schema import METHODS, DINORun, MAERun
from ssl_vit.config.recipes import FINETUNE, TOKENIZER, recipes
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import DataConfig, EncoderConfig, RunConfig
from ssl_vit.config.tokenizer_schema import DVAERun, TokenizerRun
from ssl_vit.config.values import usual_values
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.mae import MAE
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.tokenizers.dvae import DVAE
from ssl_vit.train import plan
from ssl_vit.train.pretraining import pretrain

MAE_ON_DIGITS, BEIT_ON_DIGITS = "pretrain method=mae", "pretrain method=beit"
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2, "image_size": 16, "patch_size": 4}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty folder to run in, beside one with files that commands name."""
    data = {"source": "folder", "path": str(tmp_path / "images")}
    save_encoder(VisionTransformer(**TINY), tmp_path / "run", mean=[0.5] * 3, std=[0.5] * 3, data=data, recipe="digits")
    for file in ("tars/x.tar", "tables/x.parquet", *(f"images/{'ab'[i % 2]}/{i}.png" for i in range(8))):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / file, "png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


ABSURD = {
    MAE_ON_DIGITS: {
        "readout.layer=99": "must be last, best, or a number from 1 to 4, the encoder's blocks",
        "readout.blocks=99": "must be at most the 4 blocks up to readout.layer=last",
        "optim.min_lr=1.0": "must be at most the peak rate 0.001 = base_lr 0.004 x 64 images / 256",
        "optim.warmup_epochs=200.0": "with trainer.max_epochs=105 the learning rate never reaches its peak",
        "seed=4294967296": "must be in [0, 4294967295]",
        "seed=-1": "must be in [0, 4294967295]",
        "trainer.devices=1000000": "must be auto, or at most ",
        "trainer.num_nodes=2": "must be 1 unless torchrun or SLURM starts the run, or MASTER_ADDR",
        "trainer.max_minutes=1e+300": "must be in (0, 1e9]",
        "method.mask_ratio=1e-20": "must be high enough to hide one of the 64 patches",
        "encoder.mlp_ratio=0.001": "must be large enough for one hidden channel",
        "encoder.depth=100000": "must be in [1, 1000] or null",
        "encoder.init_values=1e+300": "must be in [-100, 100] or null",
        "encoder.num_registers=1000000000000000000": "is too large: a training needs ",
        "trainer.accumulate=1000": "must be at most 22, the batches of an epoch",
        "encoder.embed_dim=1000000": "is too large: a training needs ",
        "encoder.image_size=100000": "is too large: a training needs ",
        "encoder.image_size=[100000, 100000]": "is too large: a training needs ",
        "data.workers=1000000000": "is too large: a training needs ",
        "data.eval_crop=1e-09": "must be in [0.01, 1]",
        "init_from=/nowhere": ": there is no such file or run",
        "init_from=../images/a/0.png": ": ",
        "init_from=../run": ": ",
    },
    "pretrain method=mae data.source=hf": {
        "data.path=/nowhere": "could not be loaded: ",
        "data.path=a/b/c": "could not be loaded: ",
    },
    "pretrain method=mae data.source=torchvision": {"data.path=CIFAR11:there": "must be CLASS:ROOT"},
    "pretrain method=dino": {
        "method.prototypes=1000000000": "is too large: a training needs ",
        "method.local_crops=1000000000": "is too large: a training needs ",
        "method.teacher_temp=1e-30": "must be in [0.001, 1000]",
    },
    BEIT_ON_DIGITS: {
        "tokenizer=/nowhere": ": there is no ",
        "tokenizer=../run": ": there is no ",
        "tokenizer_recipe=none": ": recipe=none is not a recipe",
        "method.smallest_block=1000": "must be at most 24, the patches that are hidden",
    },
    "train_tokenizer recipe=digits-vqkd": {
        "tokenizer.teacher=/nowhere": ": there is no such file or run",
        "tokenizer.vocab_size=1000000000000": "is too large: a training needs ",
    },
    "train_tokenizer recipe=digits-kmeans": {"tokenizer.patches=1000000000000": "is too large: a training needs "},
    "finetune encoder=../run recipe=digits": {
        "image_size=1000000": "is too large: a training needs ",
        "distill.teacher=timm:no_such": ": timm has no model of this name",
        "distill.teacher=../nowhere": ": model=../nowhere: there is no such file or run",
        "optim.min_lr=10.0": "must be at most the peak rate",
    },
}


@pytest.mark.parametrize(("command", "wrong"), [(command, arg) for command, args in ABSURD.items() for arg in args])
def test_what_cannot_end_well_is_refused_before_anything_is_written(command, wrong, capsys, elsewhere):
    answers = set()
    for more in ([], ["--dry-run"]):
        status = guarded([*command.split(), wrong, *more])
        errors = capsys.readouterr().err.splitlines()
        answers.add((status, errors[-1]))
        assert not list(elsewhere.iterdir())
    ((status, line),) = answers
    assert status == (1 if "/" in wrong or "CIFAR11" in wrong or "no_such" in wrong else 2)
    assert line.startswith(f"error: {wrong}")
    assert ABSURD[command][wrong] in line


UNREAD = {
    MAE_ON_DIGITS: {
        "data.test_path=../images": "data.source=digits reads no data.test_path",
        "data.white_16bit=4095": "data.source=digits reads no 16-bit images",
        "data.shuffle_buffer=5": "data.source=digits is no stream",
        "encoder.size=base": "encoder.embed_dim=256, depth=4 and num_heads=8 are set",
    },
    "pretrain method=mae recipe=digits": {
        "data.path=../images": "data.source=digits reads no data.path; add data.source=auto",
    },
    "pretrain method=mae recipe=digits data.source=torchvision data.path=CIFAR10:there": {
        "data.test_path=x": "reads no data.test_path"
    },
    "pretrain method=mae init_from=../run": {"encoder.init=beit": "the weights are those of init_from=../run"},
    "pretrain method=mae data.on_error=raise": {"data.max_unreadable=0.5": "data.on_error=raise stops at the first"},
    "pretrain method=mae recipe=imagenet data.source=digits": {
        "trainer.accumulate=4": "data.global_batch=4096 sets it (data.batch_size: the most of a process)"
    },
    "pretrain method=mae resume=auto": {"init_from=../run": "give one of them"},
    "pretrain method=dino": {"method.center_momentum=0.5": "method.centering=sinkhorn has no center"},
    "pretrain method=dino method.local_crops=0": {"method.local_size=8": "method.local_crops=0: there are none"},
    "pretrain method=beit": {"method.branch_depth=3": "method.class_branch=false"},
    "pretrain method=beit tokenizer=../x": {"tokenizer_recipe=digits-kmeans": "tokenizer=../x is trained already"},
    "train_tokenizer recipe=digits-kmeans": {
        "optim.base_lr=0.1": "k-means is fitted at once",
        "data.global_batch=64": "k-means is fitted at once",
        "trainer.max_epochs=3": "k-means is fitted at once",
    },
    "finetune encoder=../run recipe=digits": {
        "finetune.switch_p=0.3": "are not both on",
        "finetune.randaugment_ops=3": "finetune.randaugment=0 has no operations",
        "distill.alpha=0.3": "there is no distill.teacher",
    },
    "linear_probe encoder=../run shots=1": {"protocol=mae": "few labels", "epochs=3": "few labels"},
    "knn encoder=../run": {
        "data.shuffle_buffer=3": "reads images by number",
        "data.global_batch=64": "nothing is trained in steps",
    },
    "make_shards data.source=digits out=shards": {
        "data.batch_size=3": "packed as they are",
        "data.global_batch=3": "as they are",
    },
    "benchmark suite=views": {"precision=fp32": "it is of suite=step"},
}


@pytest.mark.parametrize(("command", "vain"), [(command, arg) for command, args in UNREAD.items() for arg in args])
def test_a_value_without_effect_is_refused(command, vain, capsys, elsewhere):
    """data.path=MY_IMAGES with the default recipe trained four minutes on digits, and ended as a success."""
    assert guarded([*command.split(), vain]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {vain} has no effect: ")
    assert UNREAD[command][vain] in line
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_shell_command_in_braces_is_refused_before_a_run_is_made(elsewhere, capsys, more):
    path = "data.path={pipe:touch MARK; true /,http://h/x.tar}"
    args = ["method=mae", "data.source=webdataset", path, "data.epoch_size=100", "monitor.every_epochs=0", *more]
    assert guarded(["pretrain", *args]) == 2
    assert "is a shell command: set SSL_VIT_ALLOW_PIPE=1" in capsys.readouterr().err
    assert not list(elsewhere.iterdir())


def test_another_mean_than_the_encoders_is_refused(capsys):
    for command in (["knn"], ["finetune", "recipe=digits", "--dry-run"]):
        assert guarded([*command, "encoder=../run", "data.mean=0.1,0.1,0.1", "data.std=1,1,1"]) == 2
        expected = "data.mean=[0.1, 0.1, 0.1] data.std=[1.0, 1.0, 1.0]: encoder=../run was trained with [0.5, 0.5, 0.5]"
        assert expected in capsys.readouterr().err


def test_a_recipe_of_ones_own_is_held_to_it_and_what_overrules_it_is_not(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {source: digits, path: images}\n")
    with pytest.raises(ConfigError, match=r"^data.path=images has no effect: "):
        require_effect(resolve(RunConfig, ["method=mae", f"recipe={recipe}"]))
    recipe.write_text("data: {source: folder, path: images}\n")
    require_effect(resolve(RunConfig, ["method=mae", f"recipe={recipe}", "data.source=digits"]))


def as_usual(base, name, values, wanted):
    """What is auto, as if it were not given."""
    return usual_values(base, wanted)


def test_no_recipe_has_a_value_without_effect_or_a_rate_above_its_peak():
    trainings = [(RunConfig, method, [f"method={method}"]) for method in METHODS] + [(TokenizerRun, TOKENIZER, [])]
    for config_class, folder, args in trainings:
        for path in recipes(folder).values():
            resolved = resolve(config_class, [*args, f"recipe={path}"], automatic=as_usual)
            require_effect(resolved)
            plan.require_rate(resolved.config, resolved.config.data.batch_size)
    assert recipes(FINETUNE)


@pytest.mark.parametrize(("method", "run"), [(MAE, MAERun()), (DINO, DINORun())])
def test_the_least_that_a_training_needs_is_never_more_than_it_has(method, run):
    """Matrices of the paper's networks are nearly all of their weights; what is left out is below a tenth."""
    with torch.device("meta"):
        trained = sum(p.numel() for p in method.from_run(run).parameters() if p.requires_grad)
    weights = NEEDS[type(run)](run)[0] / (1.25 if method is DINO else 1)
    assert 0.9 * trained < weights <= trained


def test_the_least_that_a_dvae_needs_is_never_more_than_it_has():
    run = DVAERun()
    with torch.device("meta"):
        trained = sum(p.numel() for p in DVAE(run.tokenizer).parameters())
    assert NEEDS[DVAERun](run)[0] <= trained


def test_a_batch_larger_than_all_images_is_no_larger_than_they_are(capsys):
    """It fits, and is not refused: a step takes the images that there are."""
    assert guarded([*MAE_ON_DIGITS.split(), "data.batch_size=1000000000", "--dry-run"]) == 0
    assert "global batch  1437" in capsys.readouterr().out


def test_memory_is_compared_with_what_there_is(monkeypatch):
    run = MAERun(encoder=EncoderConfig(**TINY), data=DataConfig(batch_size=1, path="../images"))
    plan.require_possible(run)
    monkeypatch.setattr(plan.os, "sysconf", lambda name: training_bytes(run) ** 0.5 - 1)
    with pytest.raises(ConfigError, match="is too large: a training needs"):
        plan.require_possible(run)


def test_more_blocks_than_the_encoder_has_are_no_longer_fewer_without_notice(capsys):
    assert guarded(["linear_probe", "encoder=../run", "protocol=logreg", "blocks=99"]) == 2
    assert capsys.readouterr().err == "error: blocks=99 must be at most 2, the encoder's blocks\n"


def test_memory_that_runs_out_is_one_line(monkeypatch, capsys):
    def run(resolved: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("ssl_vit.cli.visualize.run", run)
    assert guarded(["visualize", "images=../images"]) == 1
    assert capsys.readouterr().err.startswith("error: out of memory: smaller images, batches (data.batch_size)")


def test_a_run_that_began_from_other_weights_is_resumed(capsys):
    """Its config.yaml holds init_from, which was refused beside resume."""
    shape = [f"encoder.{key}={value}" for key, value in TINY.items()]
    args = ["method=mae", "init_from=../run", "run_dir=run", "trainer.max_steps=1", "data.source=folder", *shape]
    small = ["encoder.pos_embed=learned", "method.decoder_embed_dim=16", "method.decoder_num_heads=2"]
    images = ["data.path=../images", "data.batch_size=4", "data.workers=0"]
    assert guarded(["pretrain", *args, *small, "monitor.every_epochs=0", *images]) == 0, capsys.readouterr().err
    assert guarded(["pretrain", "method=mae", "resume=run", "trainer.max_steps=2"]) == 0, capsys.readouterr().err
    assert "init_from: ../run" in Path("run/config.yaml").read_text()
    assert guarded(["pretrain", "method=mae", "resume=run", "run_dir=x"]) == 2
    assert "run_dir=x has no effect: resume=run goes on in the run's own directory" in capsys.readouterr().err


def test_weights_are_loaded_before_the_directory_is_made(elsewhere):
    config = resolve(RunConfig, ["method=mae", "init_from=../nowhere"]).config
    with pytest.raises(FileNotFoundError, match=r"^init_from=../nowhere: there is no such file or run$"):
        pretrain(config, "mae")
    assert not list(elsewhere.iterdir())
