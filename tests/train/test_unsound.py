"""A result has finite weights, of a run that has taken a step; else it is a failure, and no result is left."""

import math
from pathlib import Path

import pytest
import torch
from small_runs import args_of

import ssl_vit
from ssl_vit.cli.main import guarded
from ssl_vit.config.tokenizer_schema import KMeansConfig
from ssl_vit.methods.mae import MAE
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import save_encoder
from ssl_vit.supervised.finetune import FineTune
from ssl_vit.tokenizers.base import save_tokenizer
from ssl_vit.tokenizers.kmeans import KMeans

SHORT = ["run_dir=made", "monitor.every_epochs=0", "trainer.max_steps=4"]
ENCODER = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8, "image_size": 32}


class LostMAE(MAE):
    """Its loss is never a number."""

    def losses(self, images, noise=None):
        return {name: loss * math.nan for name, loss in super().losses(images, noise).items()}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSL_VIT_RUN_DIR", raising=False)


def one_line(capsys: pytest.CaptureFixture) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_a_pretraining_that_ends_without_finite_weights_fails(capsys):
    settings = [*SHORT, "optim.base_lr=1e300", "optim.warmup_epochs=0"]
    assert guarded(["pretrain", *args_of("mae", *settings)]) == 1
    assert one_line(capsys).startswith("error: made/encoder.safetensors is not written: of ")
    assert not list(Path("made").glob("encoder.*"))
    assert list(Path("made/checkpoints").iterdir())


def test_features_that_are_not_finite_do_not_end_the_evaluation(capsys):
    """Its effective rank was a traceback of linear algebra; the run itself is what fails, in one line."""
    settings = ["run_dir=made", "optim.base_lr=1e300", "optim.warmup_epochs=0", "trainer.max_steps=2"]
    assert guarded(["pretrain", *args_of("mae", *settings)]) == 1
    assert one_line(capsys).startswith("error: made/encoder.safetensors is not written: of ")


def test_a_run_whose_steps_were_all_skipped_fails_also_when_it_is_resumed(capsys):
    recipe = Path(__file__).resolve().parents[2] / "configs/mae/digits.yaml"
    settings = args_of("mae", *SHORT, "method=test_unsound:LostMAE", f"recipe={recipe}", "trainer.max_steps=3")
    assert guarded(["pretrain", *settings]) == 1
    assert "loss or gradient was not finite in all 3 steps; the weights are those of the start" in one_line(capsys)
    assert guarded(["pretrain", *settings, "resume=auto"]) == 1
    assert "in all 3 steps" in one_line(capsys)
    assert not list(Path("made").glob("encoder.*"))


def test_a_fine_tuning_and_a_tokenizer_without_finite_weights_fail(capsys):
    save_encoder(VisionTransformer(**ENCODER), "start", data={"source": "digits"}, mean=[0.2] * 3, std=[0.3] * 3)
    steep = ["recipe=digits", "optim.base_lr=1e300", "optim.warmup_epochs=0", "trainer.max_steps=2", "data.workers=0"]
    steep += ["trainer.max_minutes=null", "monitor.every_epochs=0"]
    assert guarded(["finetune", "encoder=start", "run_dir=tuned", *steep]) == 1
    assert one_line(capsys).startswith("error: tuned/model.safetensors is not written: ")
    small = ["tokenizer.width=16", "tokenizer.residuals=1", "tokenizer.vocab_size=8"]
    assert guarded(["train_tokenizer", "tokenizer=dvae", "run_dir=token", *small, *steep]) == 1
    assert one_line(capsys).startswith("error: token/tokenizer.safetensors is not written: ")
    assert not [*Path("tuned").glob("*.safetensors"), *Path("token").glob("*.safetensors")]


def test_in_python_too_nothing_is_exported_that_is_not_finite():
    """Of a classifier whose head alone is broken the encoder is not left behind either."""
    mae = ssl_vit.MAE(encoder=ENCODER, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)
    tuned, tokenizer = FineTune(ENCODER, ["a", "b"]), KMeans(KMeansConfig(patch_size=8, image_size=32, vocab_size=4))
    broken = [mae.encoder.norm.weight, tuned.model.head.bias, tokenizer.centers]
    for weights, export in zip(
        broken, (mae.export, tuned.export, lambda to: save_tokenizer(tokenizer, to)), strict=True
    ):
        with torch.no_grad():
            weights.view(-1)[0] = math.inf
        with pytest.raises(FloatingPointError, match=r"tensors is not written: of \d+ weights 1 are not finite, such"):
            export(Path("result"))
    assert not Path("result").exists()
