"""Weights in files: safetensors with metadata; encoders from our runs and checkpoints, from those of MAE's, DINO's and
BEiT's authors, and from Vision Transformers in timm's names.

Every load is strict. A file of torch.save is read with `weights_only=True`, which makes tensors and plain containers
and runs no code; the architecture, which others' files lack, is read off the weights' shapes. What a file describes is
compared with the weights in it before it is built, so that absurd sizes take no memory.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar
from zipfile import ZipFile, is_zipfile

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ssl_vit.config.checks import ConfigError, one_of, plain
from ssl_vit.config.reading import json_object, require_regular
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, SIZES, DataConfig, EncoderConfig
from ssl_vit.config.values import described
from ssl_vit.models.pos_embed import resample, resample_relations
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.files import ENCODER, METADATA, newest_checkpoint, require_stored, write_atomic, write_json

NetworkT = TypeVar("NetworkT", bound=nn.Module)
State = dict[str, Any]  # tensors by name; what a stranger wrapped around them is not known before it is read
TRAINED = "encoder."  # prefix of the encoder that the gradients move, in a method's state dict
RELATIONS = "rel_pos_bias.relative_position_bias_table"  # timm's name of the table that all blocks share
BRANCH = "cls_pt_layers"  # BEiT v2's class-token branch
AROUND = ("decoder", "mask_token", "head", "lm_head", "cls_pt_")  # how names of methods' parts begin
MOST_RELATIONS = 4096  # patches of a grid with relative positions, whose table has a row of numbers for each


def require_finite(state: State, path: Path | str) -> None:
    """FloatingPointError in one line, where weights that are to be written to `path` are not all finite."""
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        line = f"{path} is not written: of {len(state)} weights {len(broken)} are not finite, such as {broken[0]}"
        raise FloatingPointError(f"{line}. Start from sound weights, lower optim.base_lr, or set optim.clip_grad=1")


def write_weights(path: Path, state: State, metadata: dict[str, Any]) -> Path:
    """Write tensors and what is known of them, as JSON, into one safetensors file, atomically; returns its path.

    FloatingPointError: a weight is not finite.
    """
    require_finite(state, path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(path, save(tensors, metadata={"ssl_vit": json.dumps(metadata)}))
    return path


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """Tensors, on the CPU, and metadata of a safetensors file; what a file of torch.save holds, and {}.

    ValueError: it is no regular file, is damaged, holds more than tensors and plain containers (a module, for one), or
    no dict.
    """
    require_regular(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                text = (file.metadata() or {}).get("ssl_vit", "{}")
        else:
            content, text = _unpickled(path), "{}"
    except Exception as error:
        reason = str(error) or type(error).__name__
        pickled = re.search(r"GLOBAL (\S+)", reason)
        if pickled or "weights_only" in reason:  # of which PyTorch says how to run it nevertheless
            reason = f"it holds a pickled {pickled[1] if pickled else 'something'}; save its state_dict()"
        reason = reason.splitlines()[0]
        raise ValueError(f"{path} cannot be read as weights alone ({reason}); nothing else is unpickled") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of weights by name")
    return content, json_object(text, f"the metadata of {path}")


def _unpickled(path: Path) -> Any:
    if is_zipfile(path):
        with ZipFile(path) as archive:
            require_stored(archive, path.stat().st_size)
    with torch.serialization.safe_globals([argparse.Namespace]):  # the authors keep their arguments beside weights
        return torch.load(path, map_location="cpu", weights_only=True)


def save_encoder(encoder: VisionTransformer, folder: str | Path, **metadata: Any) -> Path:
    """Write encoder.safetensors (complete in itself) and encoder.json (for people and tools).

    metadata: JSON values worth keeping: mean, std, method, data, step.
    """
    folder, metadata = Path(folder), {"encoder": asdict(encoder.config), **metadata}
    write_weights(folder / ENCODER, encoder.state_dict(), metadata)
    write_json(folder / METADATA, metadata)
    return folder / ENCODER


def load_encoder(source: str | Path, which: str = "") -> VisionTransformer:
    """An encoder in eval mode from a run, encoder.safetensors, a Lightning .ckpt, or an official .pth.

    Official ones are MAE's, DINO's, BEiT's, and plain Vision Transformers in timm's names; of fine-tuned ones without
    the head, and with the norm of their mean as the encoder's. `encoder.metadata` holds what is known of it: mean and
    std of its images, and for our own its method and data.

    which: teacher or student, of a method that has both; by default what the method exports, of DINO the teacher.

    FileNotFoundError: there is nothing at source. ValueError: it holds no encoder of ours or of the authors', or its
    weights do not fit.
    """
    if which:
        one_of("which", which, ("teacher", "student"))
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"encoder={source}: there is no such file or run")
    if path.is_dir():
        path = path / ENCODER if (path / ENCODER).exists() and not which else newest_checkpoint(path)
    with reading(path):
        content, metadata = read_weights(path)
        if path.suffix == ".safetensors":
            if which:
                raise ValueError(f"{path} holds one encoder; for which={which} give the run, or a checkpoint of it")
            state, own = content, metadata.get("encoder")
            config = described(EncoderConfig(), own, path) if own else architecture_of(state, path)  # of timm's names
        else:
            ours = "exported" in content
            config, state, metadata = (_read_checkpoint if ours else _read_official)(content, which, path)
        encoder = built(VisionTransformer, config, state, path)
        encoder.metadata = known_metadata(metadata, config, path)
    return encoder.eval()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong in what others wrote into `path` into a ValueError in one line that names it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        line = next(iter(str(error).splitlines()), "")
        line = line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}"
        raise ValueError(line if str(path) in line else f"{path} cannot be read: {line}") from error


def built(make: Callable[[Any], NetworkT], config: Any, state: State, where: Path | str) -> NetworkT:
    """The network of a config that a file describes, with that file's weights; ValueError where they do not fit.

    The sizes are compared first, on the meta device, which allocates nothing.
    """
    elements = sum(tensor.numel() for tensor in state.values() if isinstance(tensor, Tensor))
    most = {"depth": len(state), "residuals": len(state), "patch_size": elements}  # what would take long to build
    for name in most:
        if (getattr(config, name, None) or 0) > most[name]:
            raise ValueError(f"{where}: {config.key(name)}={getattr(config, name)} is more than its weights are for")
    if getattr(config, "relative", False) and math.prod(config.grid) > MOST_RELATIONS:
        rule = f"at most {MOST_RELATIONS} patches with {config.key('pos_embed')}={config.pos_embed}"
        raise ValueError(f"{where}: {config.key('image_size')}={config.image_size} must have {rule}")
    with torch.device("meta"):
        require_fit(make(config).state_dict(), state, where)
    network = make(config)
    load_strictly(network, state, where)
    return network


def known_metadata(metadata: Any, config: Any, where: Path | str) -> dict[str, Any]:
    """Metadata of images with a config's channels; ValueError where mean, std or step are not what they are to be."""
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: its metadata is a {type(metadata).__name__}")
    if not isinstance(metadata.get("data", {}), dict):
        raise ValueError(f"{where}: data must be an object of settings")
    for name in ("mean", "std"):
        values = metadata.get(name) or [1.0]
        numbers = isinstance(values, Sequence) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) not in (1, config.channels) or not all(-1e6 < value < 1e6 for value in values):
            raise ValueError(f"{where}: {name}={str(values)[:100]} must be {config.channels} numbers, one a channel")
    if not all(value > 0 for value in metadata.get("std") or ()) or type(metadata.get("step", 0)) is not int:
        raise ValueError(f"{where}: std must be above 0, and step an integer")
    return metadata


def as_encoder(given: Any) -> VisionTransformer:
    """An encoder as it is; load_encoder's of a path; of an EncoderConfig or a dict of its fields a new one."""
    given = plain(given)
    if isinstance(given, VisionTransformer):
        return given
    if isinstance(given, str | Path):
        return load_encoder(given)
    return VisionTransformer(EncoderConfig(**given) if isinstance(given, dict) else given)


def _read_checkpoint(content: dict[str, Any], which: str, path: Path) -> tuple[EncoderConfig, State, dict[str, Any]]:
    """Architecture, weights and metadata of the encoder in a Lightning checkpoint of one of our methods."""
    prefix = TRAINED if which == "student" else content["exported"]
    if not isinstance(content.get("state_dict"), dict) or not isinstance(content.get("hyper_parameters"), dict):
        raise ValueError(f"{path} is no checkpoint of a method: it has no state_dict and hyper_parameters")
    if which and content["exported"] == TRAINED:
        raise ValueError(f"which={which}: {path} is of a method without a teacher")
    state = {name[len(prefix) :]: tensor for name, tensor in content["state_dict"].items() if name.startswith(prefix)}
    own = described(EncoderConfig(), content["hyper_parameters"].get("encoder"), path)
    return own, state, content.get("metadata", {})


def _read_official(content: dict[str, Any], which: str, path: Path) -> tuple[EncoderConfig, State, dict[str, Any]]:
    """Architecture, weights in timm's names and metadata of an authors' checkpoint.

    BEiT's biases of queries and values become one with those of keys, which cancel in the softmax and are 0.
    """
    known, way = _statistics_in(content), "dino" if "teacher" in content else "timm"
    if which and which not in content:
        raise ValueError(f"which={which}: {path} has no {which}; it holds {', '.join(list(content)[:5])}")
    for key in (which or "teacher", "model", "state_dict"):
        content = content.get(key, content)
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            raise ValueError(f"{path} holds no weights by name")
    plain = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in content.items()}
    theirs = {name: tensor for name, tensor in plain.items() if not name.startswith(AROUND)}
    state: State = {}
    for name, tensor in theirs.items():
        if name.endswith("q_bias"):
            value = theirs[f"{name.removesuffix('q_bias')}v_bias"]
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif not name.endswith(("v_bias", "relative_position_index")):
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            state[name.replace("fc_norm.", "norm.")] = tensor  # that of a fine-tuned one
    # Relative positions alone are of BEiT v1 on ImageNet-22k (.5) or on ImageNet-1k, or fine-tuned by either version.
    if not known and (not relative_tables(state) or any(name.startswith(BRANCH) for name in plain)):
        known = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    config = architecture_of(state, path)
    return replace(config, resample="beit" if config.relative else way), state, known


def _statistics_in(content: dict[str, Any]) -> dict[str, Any]:
    """mean and std of images as the arguments of BEiT's authors, kept in their checkpoints, say them; {} without."""
    args = content.get("args")
    imagenet = (args if isinstance(args, dict) else getattr(args, "__dict__", {})).get("imagenet_default_mean_and_std")
    if imagenet is None:
        return {}
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if imagenet else {"mean": [0.5] * 3, "std": [0.5] * 3}


def statistics_of(
    metadata: dict[str, Any], where: str, given: DataConfig | None = None
) -> tuple[list[float], list[float]]:
    """Mean and std of the images of an encoder: those it was trained with, or where it does not say them those given.

    where: the encoder as its user typed it. ConfigError: neither says them, or both do and differ.
    """
    own, typed = (metadata.get("mean"), metadata.get("std")), (given.mean, given.std) if given else ()
    own, typed = ([list(values) for values in pair if values] for pair in (own, typed))
    if own and typed and own != typed:
        rule = f"{where} was trained with {own[0]} and {own[-1]}: leave both out"
        raise ConfigError(f"data.mean={typed[0]} data.std={typed[-1]}: {rule}")
    found = own or typed
    if len(found) == 2:
        return found[0], found[1]
    advice = "give data.mean= and data.std=" if given else "save it with both by save_encoder(encoder, folder, ...)"
    raise ConfigError(
        f"{where} does not say by which mean and std its images were normalized: {advice}; ImageNet's are "
        f"{IMAGENET_MEAN} and {IMAGENET_STD}, those of BEiT v1 on ImageNet-22k and of many models of timm .5"
    )


def relative_tables(state: State) -> list[str]:
    """Names of the tables of relative positions, the shared one or those of the blocks."""
    return [name for name in state if name.endswith("relative_position_bias_table")]


def architecture_of(state: State, path: Path) -> EncoderConfig:
    """The architecture of weights in timm's names, from their shapes; ValueError where they do not say it."""
    try:
        width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
        tables = relative_tables(state)
        rows = state[tables[0] if tables else "pos_embed"].shape[-2]
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no Vision Transformer in timm's names ({error} not found)") from error
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    patches = ((math.isqrt(rows - 3) + 1) // 2) ** 2 if tables else rows - (0 if registers else 1)
    side = math.isqrt(patches)
    heads = {(w, d): h for w, d, h in SIZES.values()}.get((width, depth))
    if heads is None or side * side != patches:
        line = f"{path}: heads and grid cannot be read off a ViT {width} wide, {depth} deep with {rows} positions"
        raise ValueError(f"{line}; build VisionTransformer(...) yourself and load_state_dict")
    image = {"patch_size": patch_size, "image_size": side * patch_size, "channels": channels}
    shape = {"embed_dim": width, "depth": depth, "num_heads": heads, "mlp_ratio": hidden / width}
    gain = 1.0 if "blocks.0.ls1.gamma" in state else None
    positions = "relative" if RELATIONS in state else "relative_per_block" if tables else "learned"
    return EncoderConfig(**image, **shape, num_registers=registers, init_values=gain, pos_embed=positions)


def load_strictly(network: nn.Module, state: State, where: Path | str, assign: bool = False) -> None:
    """Load every weight of a network, or make it its own; ValueError as require_fit, and where one is not finite."""
    require_fit(network.state_dict(), state, where)
    for name, tensor in state.items():
        if not tensor.is_meta and not tensor.float().isfinite().all():
            line = f"{where}: {name} has weights that are not finite: it is damaged, or of a training that diverged"
            raise ValueError(f"{line}; take an earlier checkpoint")
    network.load_state_dict(state, assign=assign)


def require_fit(own: State, state: State, where: Path | str) -> None:
    """ValueError in one line names what state, read from `where`, lacks, has too many, or of another kind or shape."""
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if names := missing or unknown:
        problem, more = "lacks" if missing else "has the unknown", f" and {len(names) - 3} more" * (len(names) > 3)
        raise ValueError(f"{where} {problem} {', '.join(names[:3])}{more}: it was made by another architecture")
    for name, tensor in own.items():
        given = state[name]
        if not isinstance(given, Tensor) or given.layout != torch.strided or given.is_quantized:
            raise ValueError(f"{where}: {name} is no plain tensor, but a {type(given).__name__}")
        if tensor.is_floating_point() != given.is_floating_point() or given.is_complex():
            raise ValueError(f"{where}: {name} is of {given.dtype}, but {tensor.dtype} is needed")
        if tensor.shape != state[name].shape:
            line = f"{where}: {name} is {list(state[name].shape)}, but {list(tensor.shape)} is needed"
            raise ValueError(f"{line}; give the encoder.* and method.* settings that it was trained with")
        if given.numel() * given.element_size() > given.untyped_storage().nbytes():
            raise ValueError(f"{where}: {name} repeats fewer numbers than it has")


def transfer(start: VisionTransformer, encoder: VisionTransformer, where: str) -> None:
    """Copy the weights of another encoder of the same shape; positions are resampled where the grid differs.

    A fixed sine-cosine table stays the encoder's own; where the encoder learns its positions, it starts from one.
    where: what to call the start in an error.
    """
    state, rows = start.state_dict(), encoder.class_rows
    ours, theirs, way = encoder.config.pos_embed, start.config.pos_embed, encoder.config.resample
    if ours == theirs and encoder.config.relative:
        state |= {
            name: resample_relations(state[name], start.grid, encoder.grid, way) for name in relative_tables(state)
        }
    elif (theirs, ours) == ("relative", "relative_per_block"):
        shared = resample_relations(state.pop(RELATIONS), start.grid, encoder.grid, way)
        state |= {name: shared.clone() for name in relative_tables(encoder.state_dict())}
    elif encoder.config.relative or start.config.relative:
        raise ValueError(f"{where} was made with encoder.pos_embed={theirs}, this run has {ours}: make them alike")
    elif ours == "sincos":
        state["pos_embed"] = encoder.pos_embed
    elif start.class_rows == rows:
        patches = resample(state["pos_embed"][:, rows:], start.grid, encoder.grid, way)
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :rows], patches], dim=1)
    load_strictly(encoder, state, where)
