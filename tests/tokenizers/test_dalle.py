"""The encoder of OpenAI's discrete VAE against its plainest form, and the files that its weights may come in."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ssl_vit.tokenizers.base import load_tokenizer
from ssl_vit.tokenizers.dalle import DallE

SMALL = {"group_width": 8, "vocab_size": 64}
SIZES = (74, 53_786_240)  # tensors and parameters of openai/DALL-E 5be4b23, built and counted


def small() -> DallE:
    """A small network whose every weight matters: biases too, and residuals large enough to be seen."""
    tokenizer = DallE(**SMALL)
    for name, weight in tokenizer.named_parameters():
        if name.endswith(".b"):
            weight.normal_(std=0.5)
        elif "res_path" in name:
            weight.mul_(3)
    return tokenizer


def plain_conv(state, name, x):
    weight = state[f"{name}.w"]
    return F.conv2d(x, weight, state[f"{name}.b"], padding={1: 0, 3: 1, 7: 3}[weight.shape[-1]])


def plain_groups(state, x, resize):
    """Four groups of two blocks: x + r / 64, and resize after groups 1, 2 and 3."""
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            r = plain_conv(state, f"{name}.res_path.conv_1", F.relu(x))
            r = plain_conv(state, f"{name}.res_path.conv_2", F.relu(r))
            r = plain_conv(state, f"{name}.res_path.conv_3", F.relu(r))
            r = plain_conv(state, f"{name}.res_path.conv_4", F.relu(r))
            x = (plain_conv(state, f"{name}.id_path", x) if f"{name}.id_path.w" in state else x) + r / 64
        x = resize(x) if group < 4 else x
    return plain_conv(state, "blocks.output.conv", F.relu(x))


def test_the_published_architecture_has_its_tensors_with_the_authors_names_and_shapes():
    with torch.device("meta"):
        state = DallE().state_dict()
    assert (len(state), sum(weight.numel() for weight in state.values())) == SIZES
    shapes = {name: tuple(weight.shape) for name, weight in state.items()}
    assert shapes["blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["blocks.input.b"] == (256,)
    assert shapes["blocks.group_1.block_1.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert shapes["blocks.group_4.block_1.res_path.conv_1.w"] == (512, 1024, 3, 3)
    assert shapes["blocks.group_4.block_2.res_path.conv_4.w"] == (2048, 512, 1, 1)
    assert shapes["blocks.output.conv.w"] == (8192, 2048, 1, 1)
    wider = [f"blocks.group_{group}.block_1.id_path.w" for group in (2, 3, 4)]
    assert [name for name in shapes if name.endswith("id_path.w")] == wider


def test_each_token_stands_for_8_by_8_pixels():
    tokenizer = DallE(group_width=4)
    images = torch.rand(2, 3, 112, 112)
    assert tokenizer.logits(images).shape == (2, 8192, 14, 14)
    tokens = tokenizer(images)
    assert (tokens.shape, tokens.dtype) == ((2, 196), torch.int64)
    assert (tokenizer.vocab_size, tokenizer.patch_size, tokenizer.channels) == (8192, 8, 3)


def test_tokens_lie_row_by_row():
    tokenizer, images = small(), torch.rand(2, 3, 16, 40)
    best = tokenizer.logits(images).argmax(1)  # [2, 2, 5]
    assert tokenizer(images).tolist() == torch.cat([best[:, 0], best[:, 1]], dim=1).tolist()


def test_logits_are_those_of_plain_convolutions():
    tokenizer, images = small(), torch.rand(2, 3, 32, 48)
    state = tokenizer.state_dict()
    x = plain_conv(state, "blocks.input", 0.8 * images + 0.1)
    expected = plain_groups(state, x, lambda x: F.max_pool2d(x, 2))
    assert expected.std() > 0.1
    torch.testing.assert_close(tokenizer.logits(images), expected, rtol=1e-4, atol=1e-5)  # float32, other rounding


def test_autocast_changes_nothing():
    tokenizer, images = small(), torch.rand(4, 3, 32, 32)
    logits, tokens = tokenizer.logits(images), tokenizer(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.logits(images), logits)
        assert torch.equal(tokenizer(images), tokens)
    assert tokenizer.logits(images.bfloat16()).dtype == torch.float32


def test_nothing_is_learned():
    tokenizer = small()
    assert not any(weight.requires_grad for weight in tokenizer.parameters())
    assert not tokenizer(torch.rand(1, 3, 16, 16, requires_grad=True)).requires_grad


def write(state, path):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "pkl"])
def test_state_dicts_come_back_as_they_went_in(tmp_path, suffix):
    tokenizer, images = small(), torch.rand(2, 3, 32, 32)
    loaded = load_tokenizer(write(tokenizer.state_dict(), tmp_path / f"encoder.{suffix}"))
    torch.testing.assert_close(loaded.state_dict(), tokenizer.state_dict(), atol=0, rtol=0)
    assert torch.equal(loaded.logits(images), tokenizer.logits(images))
    assert not loaded.training
    assert not loaded.decodes
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_half_precision_files_load_as_float32(tmp_path):
    state = {name: weight.half() for name, weight in small().state_dict().items()}
    loaded = load_tokenizer(write(state, tmp_path / "encoder.safetensors"))
    assert loaded(torch.rand(1, 3, 16, 16)).shape == (1, 4)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert loaded.vocab_size == 64


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickled_module_is_refused_in_one_line(tmp_path, zipped):
    path = tmp_path / "encoder.pkl"
    torch.save(small(), path, _use_new_zipfile_serialization=zipped)
    line = (
        r"cannot be read as weights alone \(it holds a pickled ssl_vit\.tokenizers\.dalle\.DallE; save its state_dict"
    )
    with pytest.raises(ValueError, match=line) as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.input.w": None}, r"\.pth lacks blocks\.input\.w: it was made by another architecture"),
        ({"blocks.group_5.w": torch.zeros(1)}, r"\.pth has the unknown blocks\.group_5\.w: it was made"),
        ({"blocks.input.w": torch.zeros(8, 3, 5, 5)}, r"input\.w is \[8, 3, 5, 5\], but \[8, 3, 7, 7\] is needed"),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, message):
    changed = {name: tensor for name, tensor in {**small().state_dict(), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(write(changed, tmp_path / "encoder.pth"))
    assert "\n" not in str(error.value)


def test_files_that_hold_no_state_dict_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer=.*nowhere\.pkl: there is no"):
        load_tokenizer(tmp_path / "nowhere.pkl")
    for name in ("junk.pt", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"junk")
        with pytest.raises(ValueError, match=r"cannot be read as weights alone \(.*\)") as error:
            load_tokenizer(tmp_path / name)
        assert "\n" not in str(error.value)
    wrapped = write({"state_dict": small().state_dict()}, tmp_path / "wrapped.pt")
    with pytest.raises(ValueError, match=r"wrapped\.pt lacks blocks\.group_1.* and 71 more: it was made by another"):
        load_tokenizer(wrapped)


def test_images_that_do_not_fit_are_refused():
    tokenizer = small()
    for shape in ([1, 1, 16, 16], [1, 3, 16, 20]):
        with pytest.raises(ValueError, match=r"images are \[.*\]; the tokenizer needs \[B, 3, H, W\] with sides that"):
            tokenizer(torch.rand(shape))
