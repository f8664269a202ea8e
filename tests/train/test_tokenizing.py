"""Whole trainings of tokenizers, small ones: what they write, what BEiT finds, what is refused."""

import json
from pathlib import Path

import pytest
import torch

from ssl_vit.cli.settings import resolve_run
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import RunConfig
from ssl_vit.config.tokenizer_schema import TokenizerRun
from ssl_vit.run.files import newest_checkpoint
from ssl_vit.tokenizers.base import load_tokenizer
from ssl_vit.train.pretraining import pretrain
from ssl_vit.train.tokenizing import train_tokenizer

SMALL = {
    "kmeans": ["recipe=digits-kmeans", "tokenizer.vocab_size=16", "tokenizer.patches=2000"],
    "dvae": [
        "recipe=digits",
        "tokenizer.width=16",
        "tokenizer.vocab_size=16",
        "tokenizer.image_size=16",
        "trainer.max_epochs=1",
        "data.batch_size=256",
    ],
    "vqkd": [
        "recipe=digits-vqkd",
        "tokenizer.width=16",
        "tokenizer.depth=1",
        "tokenizer.vocab_size=16",
        "trainer.max_steps=4",
    ],
}
BEIT = ["method=beit", "encoder.embed_dim=16", "encoder.depth=2", "encoder.num_heads=2", "trainer.max_steps=2"]
BEIT += ["monitor.every_epochs=0", "data.batch_size=16"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_VIT_RUN_DIR", raising=False)


def train(kind: str, *tokens: str) -> tuple[Path, dict]:
    resolved = resolve_run(TokenizerRun, [*SMALL[kind], "data.workers=0", *tokens])
    assert resolved.name == kind
    return train_tokenizer(resolved.config, resolved.name)


def beit(*tokens: str) -> Path:
    resolved = resolve_run(RunConfig, [*BEIT, "data.workers=0", *tokens])
    return pretrain(resolved.config, "beit")


@pytest.mark.parametrize("kind", ["kmeans", "dvae"])
def test_a_run_leaves_the_tokenizer_its_metrics_and_images(kind):
    run_dir, result = train(kind)
    tokenizer = load_tokenizer(run_dir)
    assert tokenizer(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    metadata = json.loads((run_dir / "tokenizer.json").read_text())
    assert metadata["kind"] == result["kind"] == kind
    assert 1 <= metadata["codes_used"] <= metadata["vocab_size"] == 16
    assert 1 <= metadata["perplexity"] <= 16
    assert metadata["psnr"] > 5
    found = [*(run_dir / "images").glob("*reconstruction*.png")]
    assert found
    assert all(image.stat().st_size > 500 for image in found)
    assert (run_dir / "config.yaml").exists()
    assert list(run_dir.glob("events.out.tfevents*"))


def test_from_an_encoder_to_its_tokens_to_an_encoder():
    teacher = beit("tokenizer_recipe=" + _recipe("kmeans"))
    run_dir, result = train("vqkd", f"tokenizer.teacher={teacher}")
    assert result["psnr"] is None
    student = beit(f"tokenizer={run_dir}")
    assert (student / "encoder.safetensors").exists()


def _recipe(kind: str) -> str:
    settings = {token.split("=")[0].removeprefix("tokenizer."): token.split("=")[1] for token in SMALL[kind][1:]}
    lines = [f"tokenizer: {{name: {kind}, patch_size: 4, image_size: 32, flip: false,"]
    lines += [f"  {name}: {value}," for name, value in settings.items()]
    Path("tokens.yaml").write_text("\n".join([*lines, "}", "data: {source: digits, eval_crop: 1.0}"]))
    return "tokens.yaml"


def test_beit_without_a_tokenizer_trains_one_first_and_the_next_run_finds_it(capsys):
    recipe = f"tokenizer_recipe={_recipe('kmeans')}"
    first = beit(recipe, "run_dir=runs/first")
    assert "tokenizer     none given: kmeans is trained first" in capsys.readouterr().out
    (made,) = Path("runs").glob("tokenizer-tokens-*")
    changed = (made / "tokenizer.safetensors").stat().st_mtime_ns
    second = beit(recipe, "run_dir=runs/second")
    assert f"tokenizer     {made}, kept from an earlier run" in capsys.readouterr().out
    assert (made / "tokenizer.safetensors").stat().st_mtime_ns == changed
    tokens = [
        load_tokenizer(made).centers,
        *(
            torch.load(newest_checkpoint(run), weights_only=True)["state_dict"]["tokenizer.centers"]
            for run in (first, second)
        ),
    ]
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[0], tokens[2])
    assert f"tokenizer: {made}" in (first / "config.yaml").read_text()


def test_a_tokenizer_that_another_run_is_making_is_waited_for(monkeypatch, capsys):
    recipe = f"tokenizer_recipe={_recipe('kmeans')}"
    beit(recipe, "run_dir=runs/first")
    (made,) = Path("runs").glob("tokenizer-tokens-*")
    weights, elsewhere = made / "tokenizer.safetensors", made / "elsewhere"
    weights.rename(elsewhere)
    waited = []

    def held(run_dir: Path) -> None:
        waited.append(run_dir)
        if len(waited) == 2:  # the other run has made it
            elsewhere.rename(weights)
        raise BlockingIOError(f"run_dir={run_dir} is being written by process 7 on here")

    monkeypatch.setattr("ssl_vit.train.tokenizing.hold", held)
    monkeypatch.setattr("ssl_vit.train.tokenizing.time.sleep", lambda seconds: None)
    beit(recipe, "run_dir=runs/second")
    shown = capsys.readouterr().out
    assert shown.count("another run is making it, which is waited for: run_dir=") == 1
    assert waited[:2] == [made.relative_to(Path())] * 2


@pytest.mark.parametrize("change", ["seed=1", pytest.param("encoder.image_size=40", marks=pytest.mark.slow)])
def test_another_run_gets_another_tokenizer(change):
    recipe = f"tokenizer_recipe={_recipe('kmeans')}"
    beit(recipe, "run_dir=runs/first")
    beit(recipe, "run_dir=runs/second", change)
    assert len(list(Path("runs").glob("tokenizer-tokens-*"))) == 2


@pytest.mark.slow
def test_a_tokenizer_that_was_interrupted_is_made_again():
    recipe = f"tokenizer_recipe={_recipe('kmeans')}"
    beit(recipe, "run_dir=runs/first")
    (made,) = Path("runs").glob("tokenizer-tokens-*")
    (made / "tokenizer.safetensors").unlink()
    beit(recipe, "run_dir=runs/second")
    assert (made / "tokenizer.safetensors").exists()


def test_a_dvae_is_resumed_where_it_was_stopped():
    run_dir, _ = train("dvae", "run_dir=runs/tokens", "trainer.max_steps=2", "monitor.every_epochs=0")
    resolved = resolve_run(TokenizerRun, ["resume=runs/tokens", "trainer.max_steps=3"])
    again, _ = train_tokenizer(resolved.config, resolved.name)
    assert again == run_dir
    assert newest_checkpoint(run_dir).name == "step-0000003.ckpt"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["recipe=digitz"], r"recipe=digitz is not a recipe: there has .*digits.* \(did you mean digits\?\)"),
        (["tokenizer=vae"], "tokenizer=vae must be one of kmeans, dvae, vqkd"),
        (["tokenizer=kmeans"], r".*digits.yaml is a recipe for tokenizer=dvae, not for tokenizer=kmeans"),
        (["tokenizer.vocab_size=1"], "tokenizer.vocab_size=1 must be 2 or more"),
        (
            ["recipe=digits-kmeans", "tokenizer.patches=100"],
            "tokenizer.patches=100 must be tokenizer.vocab_size=256 or more",
        ),
        (["data.mean=[0.5,0.5,0.5]"], r"data.mean=.* must be \[0.0, 0.0, 0.0\], one for each of tokenizer.channels=3"),
        (["tokenizer.image_size=30"], "tokenizer.image_size=30 must be a multiple of tokenizer.patch_size=4"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(tokens, message):
    with pytest.raises(ConfigError, match=message):
        resolve(TokenizerRun, tokens)
