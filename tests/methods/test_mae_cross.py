"""MAE's cross-attention decoder: against its plainest form, its laws, and behavior in training."""

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from ssl_vit.config.resolve import ConfigError, read_run
from ssl_vit.methods.mae import MAE, CrossDecoder, in_channels, target_pixels, tokens_by_depth
from ssl_vit.models.blocks import CrossAttention, CrossBlock, attend, compile_blocks, run_blocks
from ssl_vit.models.vit import unpatchify

ENCODER = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 4, "image_size": 16}
DECODER = {"decoder": "cross", "decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2}


def make(optim: dict | None = None, encoder: dict | None = None, **options) -> MAE:
    return MAE({**ENCODER, **(encoder or {})}, optim, **{**DECODER, **options})


def decoder_of(method: MAE) -> CrossDecoder:
    assert isinstance(method.decoder, CrossDecoder)
    return method.decoder


def away_from_zero(module: nn.Module) -> None:
    """Biases and gains too, so that a swapped one shows."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)


def trainer(tmp_path, **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**{**quiet, "accelerator": "cpu", "default_root_dir": tmp_path, **options})


def test_cross_attention_agrees_with_pytorchs_gradients_included():
    ours, theirs = CrossAttention(16, 4, 24), nn.MultiheadAttention(16, 4, kdim=24, vdim=24, batch_first=True)
    away_from_zero(ours)
    keys, values = ours.kv.weight.detach().chunk(2)
    weights = {"q_proj_weight": ours.q.weight, "k_proj_weight": keys, "v_proj_weight": values}
    weights |= {"in_proj_bias": torch.cat([ours.q.bias, ours.kv.bias])}
    theirs.load_state_dict(weights | {"out_proj.weight": ours.proj.weight, "out_proj.bias": ours.proj.bias})
    results, gradients = [], []
    for attention in (lambda x, y: ours(x, y), lambda x, y: theirs(x, y, y, need_weights=False)[0]):
        torch.manual_seed(1)
        x, attended = torch.randn(2, 7, 16, requires_grad=True), torch.randn(2, 5, 24, requires_grad=True)
        results.append(attention(x, attended))
        gradients.append(torch.autograd.grad(results[-1].square().sum(), [x, attended]))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


def test_cross_attention_in_bf16_on_a_cpu_agrees_with_the_fused_kernel_gradients_included():
    # bf16 keeps 8 bits: 2 ** -8 of values of order one, a few operations deep.
    q, k, v = torch.randn(2, 3, 37, 16), torch.randn(2, 3, 11, 16), torch.randn(2, 3, 11, 16)
    outputs, gradients = [], []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [tensor.to(dtype).detach().requires_grad_() for tensor in (q, k, v)]
        outputs.append(attend(*leaves).float())
        outputs[-1].square().sum().backward()
        gradients.append(torch.cat([leaf.grad.float() for leaf in leaves], dim=2))
    torch.testing.assert_close(outputs[1], outputs[0], atol=0.02, rtol=0.02)
    torch.testing.assert_close(gradients[1], gradients[0], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("num_registers", [0, 3])
def test_depths_are_the_first_blocks_tokens_and_every_blocks_result(registers):
    encoder = make(encoder={"num_registers": registers}).encoder
    patches = torch.randn(2, 5, 32)
    x = encoder.with_class_token(patches)
    depths = [encoder.without_registers(x)]
    for block in encoder.blocks:
        (x,) = run_blocks([block], [x])
        depths.append(encoder.without_registers(x))
    depths[-1] = encoder.norm(depths[-1])
    found = tokens_by_depth(encoder, patches)
    assert found.shape == (3, 2, 6, 32)
    torch.testing.assert_close(found, torch.stack(depths))
    torch.testing.assert_close(found[-1], encoder.encode(patches))


def plain_prediction(decoder: CrossDecoder, depths: torch.Tensor, patch: int) -> torch.Tensor:
    """One patch of one image, head by head; depths [L, S, D]."""
    x = decoder.mask_token[0, 0] + decoder.pos_embed[0, patch]
    for block, weights in zip(decoder.blocks, decoder.depth_weights, strict=True):
        attn = block.attn
        tokens = block.norm_attended(sum(weight * depth for weight, depth in zip(weights, depths, strict=True)))
        queries, keys, values = attn.q(block.norm1(x)), *attn.kv(tokens).chunk(2, dim=-1)
        mixed = []
        for part in range(attn.heads):
            channels = slice(part * 8, part * 8 + 8)
            scores = keys[:, channels] @ queries[channels] / 8**0.5
            mixed.append(scores.softmax(0) @ values[:, channels])
        x = x + attn.proj(torch.cat(mixed))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    return decoder.pred(decoder.norm(x))


def test_the_decoder_agrees_with_its_plainest_form():
    decoder = decoder_of(make())
    away_from_zero(decoder)
    depths, index = torch.randn(3, 2, 5, 32), torch.tensor([[3, 0, 15], [7, 8, 2]])
    prediction = decoder(depths, index, (4, 4))
    for image in range(2):
        for place, patch in enumerate(index[image].tolist()):
            expected = plain_prediction(decoder, depths[:, image], patch)
            torch.testing.assert_close(prediction[image, place], expected, atol=1e-5, rtol=1e-4)


def test_depth_weights_begin_with_deviation_of_one_by_the_root_of_their_number():
    weights = decoder_of(make(encoder={"depth": 24}, decoder_depth=40)).depth_weights.detach()
    assert weights.shape == (40, 25)
    assert float(weights.std()) == pytest.approx(0.2, rel=0.1)  # of 1,000: its own deviation is 2 %


def test_hidden_pixels_cannot_reach_the_prediction_and_visible_ones_do():
    method, images, noise = make(), torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    prediction, hidden = method.reconstruct(images, noise)
    pixels = target_pixels(images, 4, torch.arange(16).expand(2, -1))
    pixels.scatter_(1, hidden[..., None].expand(-1, -1, 48), 9.0)
    changed, _ = method.reconstruct(unpatchify(in_channels(pixels, 4), 4, 4, 4), noise)
    assert torch.equal(prediction, changed)
    changed, _ = method.reconstruct(images + torch.randn(2, 3, 16, 16), noise)
    assert not torch.allclose(prediction, changed)


def test_a_prediction_does_not_depend_on_which_others_are_made():
    method, images, noise = make(), torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    away_from_zero(method.decoder)
    every, hidden = method.reconstruct(images, noise)
    some, index = method.reconstruct(images, noise, 0.5)
    assert torch.equal(index, hidden[:, :6])
    torch.testing.assert_close(some, every[:, :6], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("side", "predicted", "visible", "count"),
    [(56, None, 49, 49), (16, None, 4, 4), (16, 0.5, 4, 6), (16, 1.0, 4, 12), (16, 0.01, 4, 1)],
)
def test_only_the_chosen_share_of_the_hidden_patches_is_predicted(side, predicted, visible, count):
    method, seen = make(encoder={"image_size": side}, predicted=predicted), {}
    method.encoder.patch_embed.register_forward_hook(lambda _, args, out: seen.update(embedded=out.shape[1]))
    method.decoder.pred.register_forward_hook(lambda _, args, out: seen.update(predicted=out.shape[1]))
    method.losses(torch.randn(2, 3, side, side))
    assert seen == {"embedded": visible, "predicted": count}


def test_every_hidden_patch_is_predicted_equally_often():
    method, images = make(), torch.zeros(4000, 3, 16, 16)
    with torch.no_grad():
        _, index = method.reconstruct(images, fraction=method.config.predicted_fraction)
    fractions = torch.bincount(index.flatten(), minlength=16) / 4000
    assert (fractions - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / 4000) ** 0.5  # binomial, 16 chances


def test_images_have_every_hidden_patch():
    method, images = make(), torch.rand(3, 3, 16, 16)
    every = torch.arange(16).expand(3, -1)
    columns = method.visualize(images, images).values()
    masked, painted, true = (target_pixels(column, 4, every) for column in columns)
    hidden = (masked == 0).all(-1)
    assert (hidden.sum(1) == 12).all()
    assert torch.equal((painted != true).any(-1), hidden)


class Losses(nn.Module):
    """A method whose forward is its loss, for DistributedDataParallel."""

    def __init__(self, method: MAE) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.method.losses(images)["reconstruction"]


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_every_parameter_learns_under_plain_ddp(tmp_path, grad_checkpointing):
    method = make(encoder={"grad_checkpointing": grad_checkpointing}).train()
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shared = nn.parallel.DistributedDataParallel(Losses(method))
        for _ in range(2):  # an unused parameter stops the second step
            method.zero_grad()
            shared(torch.randn(2, 3, 16, 16)).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_compilation_reaches_its_blocks(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module)))
    compile_blocks(make())
    assert compiled.count(CrossBlock) == 2


def test_eight_images_are_learned_by_heart(tmp_path):
    images = torch.randn(8, 3, 16, 16)
    optim = {"base_lr": 0.1, "warmup_epochs": 5, "weight_decay": 0.0}
    method = make(optim, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4)
    before = float(method.losses(images)["reconstruction"].detach())
    method.generator = lambda device: torch.Generator(device).manual_seed(1)  # one mask, so that it can be learned
    run = trainer(tmp_path, max_epochs=250, enable_checkpointing=False)
    run.fit(method, DataLoader(images, batch_size=8))
    assert before > 0.9
    assert float(run.callback_metrics["train/loss"]) < 0.1 * before


def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path):
    images = DataLoader(torch.randn(24, 3, 16, 16), batch_size=8)
    checkpoints = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = make()
    trainer(tmp_path, max_epochs=2, callbacks=[checkpoints]).fit(whole, images)
    torch.manual_seed(99)
    rest, run = make(), trainer(tmp_path, max_epochs=2)
    run.fit(rest, images, ckpt_path=tmp_path / "step=3.ckpt", weights_only=True)
    assert run.global_step == 6
    assert all(torch.equal(tensor, rest.state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_the_share_is_a_third_for_cross_and_all_for_self():
    assert MAE(ENCODER).config.predicted_fraction == 1
    assert make().config.predicted_fraction == pytest.approx(1 / 3)
    assert make(predicted=0.2).config.predicted_fraction == 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("method.decoder=crosss", r"^method.decoder=crosss must be one of self, cross \(did you mean cross\?\)$"),
        ("method.decoder=cross method.predicted=0", r"^method.predicted=0.0 must be in \(0, 1\], or null$"),
        ("method.decoder=cross method.predicted=1.5", r"^method.predicted=1.5 must be in \(0, 1\], or null$"),
        (
            "method.predicted=0.5",
            "^method.predicted=0.5 must be null with method.decoder=self, which predicts every hidden patch; choose "
            "method.decoder=cross$",
        ),
    ],
)
def test_settings_that_make_no_sense_are_one_line(words, message):
    with pytest.raises(ConfigError, match=message):
        read_run(["method=mae", *words.split()])
