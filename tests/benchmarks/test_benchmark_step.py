import json
import math

import pytest
import torch
from benchmarks import baselines, startup, step, step_beit, step_dino, step_mae
from benchmarks.baselines import StepSetting

from ssl_vit.config.evaluation_schema import BenchmarkConfig
from ssl_vit.config.schema import SIZES
from ssl_vit.methods.beit import BEiT
from ssl_vit.methods.mae import MAE

CPU = torch.device("cpu")
FP32 = StepSetting(CPU, "small", bf16=False)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(SIZES, "small", (48, 2, 3))
    monkeypatch.setattr(step, "MATRIX", 64)
    for module, name, value in (
        (step_mae, "IMAGE", 48),
        (step_mae, "DECODER", {"decoder_embed_dim": 32, "decoder_depth": 2, "decoder_num_heads": 4}),
        (step_beit, "IMAGE", 48),
        (step_beit, "VOCABULARY", 64),
        (step_dino, "GLOBAL", 32),
        (step_dino, "LOCAL", 16),
        (step_dino, "PROTOTYPES", 64),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(step_beit.GivenTokens, "vocab_size", 64)


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.slow), "fp32"])
@pytest.mark.parametrize(
    ("method", "peers"),
    [
        ("mae", ["lightly + timm", "transformers"]),
        ("dino", ["lightly + timm, by crop", "lightly + timm, by size"]),
        ("beit", ["timm", "transformers"]),
    ],
)
def test_each_side_gives_a_time_and_each_peer_a_ratio(capsys, method, peers, precision):
    step.run(BenchmarkConfig(suite="step", method=method, precision=precision, repeats=1, batch_size=2))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["who"] for line in lines] == ["ours", *peers, *peers]
    for line in lines:
        assert (line["method"], line["precision"], line["batch_size"]) == (method, precision, 2)
    for line in lines[:3]:
        assert line["seconds"] > 0
        assert line["mfu"] > 0
    assert all(line["ratio"] > 0 for line in lines[3:])


@pytest.mark.parametrize("bf16", [True, False])
def test_a_side_has_the_precision_it_was_asked_for(bf16):
    weight, seen = torch.nn.Parameter(torch.ones(3, 3)), []

    def loss(batch):
        product = batch @ weight
        seen.append(product.dtype)
        return product.float().sum()

    baselines.stepping(StepSetting(CPU, "small", bf16), loss, [weight])(torch.ones(2, 3))
    assert seen == [torch.bfloat16 if bf16 else torch.float32]
    assert weight.detach().max() < 1  # it has moved


@pytest.mark.parametrize("method", [step_mae, step_beit])
def test_attention_counts_whatever_kernel_does_it(method):
    counts = []
    for bf16 in (True, False):
        setting = StepSetting(CPU, "small", bf16)
        counts.append(step.operations(method.ours(setting), method.batch_of(2, setting)))
    assert counts[0] == counts[1] > 0


def test_lightlys_parts_lose_what_mae_loses():
    model = step_mae.LightlyMAE("small")
    method = MAE({"size": "small", "image_size": 48}, **step_mae.DECODER)
    theirs = model.state_dict()
    names = {"encoder.": "backbone.vit.", "decoder.mask_token": "decoder.mask_token", "decoder.": "decoder.decoder_"}
    weights = {}
    for name in method.state_dict():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        weights[name] = theirs[names[prefix] + name.removeprefix(prefix)]
    method.load_state_dict(weights)
    images, noise = torch.randn(3, 3, 48, 48), torch.rand(3, 9)
    order = noise.argsort(1)
    kept, hidden = torch.cat([torch.zeros(3, 1).long(), 1 + order[:, :2]], 1), 1 + order[:, 2:]
    expected = model(images, kept, hidden)
    torch.testing.assert_close(method.losses(images, noise)["reconstruction"], expected, atol=1e-5, rtol=1e-5)


def test_timms_parts_lose_what_beit_loses():
    model = step_beit.TimmBEiT("small").eval()
    for parameter in model.parameters():  # biases and tables away from 0, so that a swapped one shows
        torch.nn.init.normal_(parameter, std=0.1)
    method = BEiT({"size": "small", "image_size": 48, "init_values": 0.1}, tokenizer=step_beit.GivenTokens()).eval()
    weights = {}
    for name, tensor in model.state_dict().items():
        block, _, end = name.removeprefix("body.").rpartition(".")
        if end in ("gamma_1", "gamma_2"):
            weights[f"encoder.{block}.ls{end[-1]}.gamma"] = tensor
        elif end == "q_bias":
            biases = [model.state_dict()[f"body.{block}.{which}_bias"] for which in "qv"]
            weights[f"encoder.{block}.qkv.bias"] = torch.cat([biases[0], torch.zeros(48), biases[1]])
        elif end != "v_bias":
            weights[name.replace("body.", "encoder.")] = tensor
    method.load_state_dict(weights)
    batch = step_beit.batch_of(3, FP32)
    loss = method.losses([batch.images, batch.pixels], batch.host_mask)["token"]
    torch.testing.assert_close(loss, model(batch), atol=1e-5, rtol=1e-5)


def test_dinos_peers_two_ways_lose_the_same():
    crops, losses = step_dino.batch_of(2, FP32), []
    for by_crop in (False, True):
        torch.manual_seed(0)
        losses.append(float(step_dino.parts(FP32, by_crop)(crops)))
    assert losses[0] == pytest.approx(losses[1], rel=0.2)  # drop path draws differ


def test_both_sides_of_dino_start_at_a_loss_of_the_same_size():
    crops = step_dino.batch_of(2, FP32)
    for make in (step_dino.ours, step_dino.parts):
        assert 0.3 * math.log(64) < make(FP32)(crops) < 2 * math.log(64)


def test_a_missing_peer_is_one_line_that_says_how_to_get_it():
    baselines.require_peers("torch")
    with pytest.raises(ImportError, match=r"^suite=step compares with nobodys_vit: pip install nobodys_vit$"):
        baselines.require_peers("torch", "nobodys_vit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"suite": "docter"},
            "suite=docter must be one of views, step, .*, memory, spin, differences, doctor .did you mean doctor",
        ),
        ({"method": "simmim"}, "method=simmim must be one of mae, dino, beit"),
        ({"size": "huge"}, "size=huge must be one of small, base"),
        ({"precision": "fp16"}, "precision=fp16 must be one of bf16, fp32"),
        ({"repeats": 0}, "repeats=0 must be a positive integer"),
        ({"batch_size": 0}, "batch_size=0 must be a positive integer"),
    ],
)
def test_settings_that_are_not_legal(options, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkConfig(**options)


def test_startup_times_every_command(capsys, monkeypatch):
    monkeypatch.setattr(startup, "COMMANDS", {"nothing": ["-c", "pass"]})
    startup.run(BenchmarkConfig(suite="startup", repeats=1))
    line = json.loads(capsys.readouterr().out)
    assert line["command"] == "nothing"
    assert line["seconds"] >= 0
