"""Laws and behavior of BEiT: masks, tokens, the class-token branch, what is frozen, what is refused."""

import math

import pytest
import torch
from fitting import assert_resumes_to_the_bit, fit

from ssl_vit.config.pretrain_schema import BEiTRun
from ssl_vit.config.resolve import ConfigError, resolve
from ssl_vit.config.schema import RunConfig
from ssl_vit.config.tokenizer_schema import KMeansConfig
from ssl_vit.data.datamodule import ImageDataModule
from ssl_vit.methods.beit import BEiT
from ssl_vit.tokenizers.base import save_tokenizer
from ssl_vit.tokenizers.kmeans import KMeans

ENCODER = {"embed_dim": 32, "depth": 4, "num_heads": 4, "patch_size": 4, "image_size": 32, "drop_path": 0.0}
VOCABULARY = 24


def tokenizer(**changes) -> KMeans:
    torch.manual_seed(5)
    image = {"patch_size": 4, "image_size": 32, "channels": 3, **changes}
    made = KMeans(KMeansConfig(vocab_size=VOCABULARY, **image))
    made.centers.uniform_()
    return made


def make(encoder: dict | None = None, optim: dict | None = None, tokens=None, **options) -> BEiT:
    torch.manual_seed(0)
    tokens = tokens or tokenizer()
    paper = {"pos_embed": "relative", "init_values": 0.1, "init": "beit"}
    return BEiT(
        {**paper, **ENCODER, **(encoder or {})}, {"warmup_epochs": 0, **(optim or {})}, tokenizer=tokens, **options
    )


def pair(B: int = 4, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(B, 3, 32, 32, generator=generator)
    return [(pixels - 0.5) / 0.25, pixels]


def test_a_fresh_model_loses_the_logarithm_of_the_vocabulary():
    assert float(make().losses(pair(16))["token"].detach()) == pytest.approx(math.log(VOCABULARY), abs=0.05)


def test_hidden_pixels_cannot_change_what_is_predicted():
    method, (images, _) = make(), pair()
    mask = method.random_masks(4)
    hidden = mask.flatten().nonzero()[:, 0]
    pixels_hidden = torch.nn.functional.interpolate(mask.unflatten(1, (8, 8)).float()[:, None], 32).bool()
    other = torch.where(pixels_hidden, torch.randn_like(images), images)
    assert torch.equal(method.predict(images, mask, hidden)["token"], method.predict(other, mask, hidden)["token"])


def test_only_hidden_patches_are_predicted():
    method, (images, pixels) = make(), pair()
    mask = method.random_masks(4)
    loss = method.losses([images, pixels], mask)["token"]
    logits = method.predict(images, torch.ones_like(mask) & mask, torch.arange(4 * 64))["token"].unflatten(0, (4, 64))
    tokens = method.tokens_of(pixels)
    singly = [
        torch.nn.functional.cross_entropy(logits[b, n], tokens[b, n]) for b in range(4) for n in range(64) if mask[b, n]
    ]
    torch.testing.assert_close(loss, torch.stack(singly).mean(), atol=1e-5, rtol=1e-5)


def test_masks_are_a_function_of_seed_epoch_and_batch(tmp_path):
    class Remembers(BEiT):
        def random_masks(self, count):
            masks = super().random_masks(count)
            seen.append(masks)
            return masks

    runs = []
    for seed in (0, 0, 1):
        seen: list = []
        torch.manual_seed(seed + 7)
        fit(Remembers(ENCODER, tokenizer=tokenizer(), seed=seed), [(pair(),)] * 2, tmp_path, max_epochs=2)
        runs.append(torch.stack(seen))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len({mask.numpy().tobytes() for mask in runs[0]}) == 4
    assert int(runs[0].sum(-1).max()) <= int(64 * 0.383)


def test_the_tokenizer_is_frozen_and_never_in_low_precision():
    class Remembers(KMeans):
        def forward(self, images):
            seen.append((images.dtype, torch.is_autocast_enabled("cpu"), self.training))
            return super().forward(images)

    seen: list = []
    tokens = Remembers(tokenizer().config)
    method = make(tokens=tokens).train()
    with torch.autocast("cpu", torch.bfloat16):
        method.losses(pair())["token"].backward()
    assert seen == [(torch.float32, False, False)]
    assert not any(p.requires_grad for p in method.tokenizer.parameters())
    assert "tokenizer.centers" in method.state_dict()  # a checkpoint is complete


def test_encoder_and_tokenizer_see_the_same_crop(tmp_path):
    method = make(tokens=tokenizer(patch_size=2, image_size=16), jitter=0.0)
    data = ImageDataModule(method.transform(), source="digits", batch_size=16, image_size=32, workers=0, seed=0)
    batch = next(iter(data.train_dataloader()))
    images, pixels = data.on_after_batch_transfer(batch, 0)["images"]
    assert images.shape == (16, 3, 32, 32)
    assert pixels.shape == (16, 3, 16, 16)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.data.mean, data.data.std))
    smaller = torch.nn.functional.interpolate((images * std + mean), (16, 16), mode="bicubic", antialias=True)
    assert float((smaller - pixels).abs().mean()) < 0.02


def test_colors_change_alike_for_both(tmp_path):
    method = make(jitter=0.4)
    data = ImageDataModule(method.transform(), source="digits", batch_size=16, image_size=32, workers=0, seed=0)
    batch = next(iter(data.train_dataloader()))
    images, pixels = data.on_after_batch_transfer(batch, 0)["images"]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data.data.mean, data.data.std))
    torch.testing.assert_close(images * std + mean, pixels, atol=1e-5, rtol=1e-5)
    assert float((pixels * 255 - batch["images"][0]).abs().max()) > 10


def test_the_base_models_have_the_authors_parameters():
    with torch.device("meta"):
        tokens = torch.nn.Identity()
        tokens.vocab_size = 8192
        v1, v2 = (BEiT(tokenizer=tokens, class_branch=branch) for branch in (False, True))
    keys = 768 * 12  # biases of the keys, which cancel in the softmax; the authors leave them out
    assert sum(p.numel() for p in v1.parameters()) == 91_965_776 + keys
    assert sum(p.numel() for p in v2.parameters()) == 106_143_056 + keys + 768 * 2
    assert v2.early_block == 9


def test_the_class_branch_learns_from_early_patches_and_the_last_class_token():
    method = make(class_branch=True)
    losses = method.losses(pair())
    assert list(losses) == ["token", "class_token"]
    losses["class_token"].backward()
    blocks = method.encoder.blocks
    assert method.early_block == 3
    assert all(float(block.attn.qkv.weight.grad.norm()) > 0 for block in blocks)  # the last one by the class token
    # Without the last block's class token, the branch does not depend on it.
    method.zero_grad()
    early, _ = method.encoder.hidden_states(method.encoder.embed(pair()[0]), [2, -1])
    early[:, 1:].sum().backward()
    assert blocks[3].attn.qkv.weight.grad is None


def test_weights_decay_as_the_authors_decide():
    method = make(encoder={"pos_embed": "relative"})
    decayed = {name for name, p in method.named_parameters() if p.requires_grad and method.decays(name, p)}
    assert {"mask_token", "encoder.rel_pos_bias.relative_position_bias_table", "head.weight"} <= decayed
    assert not {"encoder.cls_token", "head.bias", "encoder.blocks.0.ls1.gamma"} & decayed
    learned = make(encoder={"pos_embed": "learned"})
    assert not learned.decays("encoder.pos_embed", learned.encoder.pos_embed)


def test_initial_weights_are_cut_at_one_std_and_shrink_with_depth():
    encoder = make(encoder={"embed_dim": 128, "depth": 4}).encoder
    weight = encoder.blocks[0].attn.qkv.weight
    assert float(weight.detach().abs().max()) <= 0.02
    assert float(weight.std()) == pytest.approx(0.0108, rel=0.02)
    for number, block in enumerate(encoder.blocks, start=1):
        assert float(block.mlp.fc2.weight.std()) == pytest.approx(0.0108 / math.sqrt(2 * number), rel=0.03)


def test_relative_positions_are_built_once_a_step_and_survive_checkpointing():
    built: list = []
    method, plain = make(encoder={"grad_checkpointing": True}), make()
    for each in (method, plain):
        torch.manual_seed(1)
        torch.nn.init.normal_(each.encoder.rel_pos_bias.relative_position_bias_table)
        each.encoder.rel_pos_bias.register_forward_hook(lambda *_: built.append(1))
    mask = plain.random_masks(4)
    for each in (method, plain):
        each.losses(pair(), mask)["token"].backward()
    assert len(built) == 2
    for ours, other in zip(method.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad)


def test_overfits_two_images(tmp_path):
    encoder = {"embed_dim": 64, "init_values": None, "pos_embed": "sincos", "init": "xavier"}
    method = make(encoder=encoder, optim={"base_lr": 0.05, "weight_decay": 0.0})
    batch = [images.repeat(4, 1, 1, 1) for images in pair(2)]
    before = float(method.losses(batch)["token"].detach())
    fit(method, [(batch,)] * 200, tmp_path)
    assert float(method.losses(batch)["token"].detach()) < 0.3 * before


def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = make()
    torch.manual_seed(99)
    rest = BEiT(whole.encoder_config, {"warmup_epochs": 0}, tokenizer=tokenizer())
    assert_resumes_to_the_bit(whole, rest, [(pair(seed=i),) for i in range(3)], tmp_path)


def test_images_show_what_is_hidden_the_tokens_and_those_predicted():
    method, (images, pixels) = make(), pair()
    columns = method.visualize(images, pixels)
    assert list(columns) == ["masked", "tokens", "predicted", "original"]
    assert torch.equal(columns["tokens"].float(), (method.tokenizer.decode(method.tokens_of(pixels)) * 255).round())
    differs = (columns["masked"] != images).any(1)
    assert torch.equal(differs, (columns["masked"] == 0).all(1))
    assert 0.2 < float(differs.float().mean()) < 0.4
    # Tokens are changed where they are hidden, and nowhere else.
    elsewhere = ~differs[:, None].expand(-1, 3, -1, -1)
    assert torch.equal(columns["predicted"][elsewhere], columns["tokens"][elsewhere])


def test_one_tensor_is_refused():
    message = r"images arrive as one tensor; BEiT takes two, .* use BEiT\.transform\(\) with ssl_vit.ImageDataModule"
    with pytest.raises(ValueError, match=message):
        make().losses(pair()[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_size": 16},
            r"tokenizer=.* makes 4 x 4 tokens of an image, but encoder.image_size=32 .* 8 x 8 ",
        ),
        ({"channels": 1}, "tokenizer=.* reads images of 1 channels, but encoder.channels=3"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_one_line_before_training(tmp_path, changes, message):
    save_tokenizer(tokenizer(**changes), tmp_path)
    run = BEiTRun(tokenizer=str(tmp_path))
    run.encoder.image_size, run.encoder.patch_size = 32, 4
    with pytest.raises(ValueError, match=message):
        BEiT.from_run(run)


def test_a_missing_tokenizer_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer=.*nowhere: there is no .*; make one with `ssl-vit train_"):
        BEiT.from_run(BEiTRun(tokenizer=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("method.mask_ratio=1", r"method.mask_ratio=1.0 must be in \(0, 1\)"),
        (
            "method.mask_ratio=0.01 encoder.image_size=32 encoder.patch_size=8",
            "method.mask_ratio=0.01 must be high",
        ),
        ("method.early_block=4 encoder.depth=4", "method.early_block=4 must be less than the encoder's 4 blocks"),
        ("encoder.channels=2 data.mean=[0,0] data.std=[1,1] method.jitter=0.4", "method.jitter=0.4 must be 0 for"),
        (
            "encoder.pos_embed=relative encoder.num_registers=2",
            "encoder.num_registers=2 must be 0 with encoder.pos_embed=",
        ),
        ("readout.blocks=2", "readout.blocks=2 must be 1 with readout.layer=best"),
        ("readout.layer=0", "readout.layer=0 must be last, best, or a number from 1"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(args, message):
    with pytest.raises(ConfigError, match=message):
        resolve(RunConfig, ["method=beit", *args.split()])


def test_mae_refuses_relative_positions():
    with pytest.raises(ConfigError, match=r"encoder\.pos_embed=relative must be learned or sincos"):
        resolve(RunConfig, ["method=mae", "encoder.pos_embed=relative"])


def test_shuffled_tokens_are_those_of_the_same_image():
    from shuffled import ShuffledBEiT

    pixels = pair()[1]
    tokens, control = make().tokens_of(pixels), ShuffledBEiT(ENCODER, tokenizer=tokenizer()).tokens_of(pixels)
    assert not torch.equal(control, tokens)
    assert torch.equal(control.sort(1).values, tokens.sort(1).values)


def test_the_class_branch_starts_with_the_authors_initial_weights():
    """PyTorch's own, uniform within 1 / sqrt(fan-in), two of them divided by sqrt(2 * number of the block)."""
    method = make(encoder={"embed_dim": 64, "init": "beit"}, class_branch=True, early_block=1, branch_depth=2)
    for number, block in enumerate(method.branch, start=2):
        shrunk = {block.attn.qkv: 1.0, block.mlp.fc1: 1.0, block.attn.proj: (2 * number) ** 0.5}
        for layer, divisor in (shrunk | {block.mlp.fc2: (2 * number) ** 0.5}).items():
            largest = float(layer.weight.detach().abs().max())  # of thousands of weights, so close to the bound
            assert largest == pytest.approx(layer.in_features**-0.5 / divisor, rel=0.02)
        assert not block.attn.qkv.bias.any()
        assert block.mlp.fc1.bias.any()
