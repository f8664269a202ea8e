"""Weights in files: safetensors with metadata; encoders from our runs and checkpoints, from those of MAE's, DINO's and
BEiT's authors, and from Vision Transformers in timm's names.

Every load is strict. A file of torch.save is read with `weights_only=True`, which makes tensors and plain containers
and runs no code; the architecture, which others' files lack, is read off the weights' shapes.
"""

import argparse
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from ssl_vit.config.checks import one_of
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, SIZES, EncoderConfig
from ssl_vit.models.pos_embed import resample, resample_relations
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.files import ENCODER, METADATA, newest_checkpoint, write_atomic, write_json

State = dict[str, Any]  # tensors by name; what a stranger wrapped around them is not known before it is read
TRAINED = "encoder."  # prefix of the encoder that the gradients move, in a method's state dict
RELATIONS = "rel_pos_bias.relative_position_bias_table"  # timm's name of the table that all blocks share
AROUND = ("decoder", "mask_token", "head", "lm_head")  # how names begin of what methods have around the encoder


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

    ValueError: it is damaged, holds more than tensors and plain containers (a module, for one), or no dict.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return state, json.loads((file.metadata() or {}).get("ssl_vit", "{}"))
        with torch.serialization.safe_globals([argparse.Namespace]):  # the authors keep their arguments beside weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error) or type(error).__name__
        pickled = re.search(r"Unsupported global: GLOBAL (\S+)", reason)
        reason = f"it holds a pickled {pickled[1]}; save its state_dict()" if pickled else reason.splitlines()[0]
        raise ValueError(f"{path} cannot be read as weights alone ({reason}); nothing else is unpickled") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of weights by name")
    return content, {}


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
    content, metadata = read_weights(path)
    if path.suffix == ".safetensors":
        if which:
            raise ValueError(f"{path} holds one encoder; for which={which} give the run, or a checkpoint of it")
        state, own = content, metadata.get("encoder")
        metadata = metadata or {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        config = EncoderConfig(**own) if own else architecture_of(state, path)  # timm's and others': the same names
    else:
        ours = "exported" in content
        config, state, metadata = (_read_checkpoint if ours else _read_official)(content, which, path)
    encoder = VisionTransformer(config)
    load_strictly(encoder, state, path)
    encoder.metadata = metadata
    return encoder.eval()


def as_encoder(given: Any) -> VisionTransformer:
    """An encoder as it is; load_encoder's of a path; of an EncoderConfig or a dict of its fields a new one."""
    if isinstance(given, VisionTransformer):
        return given
    if isinstance(given, str | Path):
        return load_encoder(given)
    return VisionTransformer(EncoderConfig(**given) if isinstance(given, dict) else given)


def _read_checkpoint(content: dict[str, Any], which: str, path: Path) -> tuple[EncoderConfig, State, dict[str, Any]]:
    """Architecture, weights and metadata of the encoder in a Lightning checkpoint of one of our methods."""
    prefix = TRAINED if which == "student" else content["exported"]
    if which and content["exported"] == TRAINED:
        raise ValueError(f"which={which}: {path} is of a method without a teacher")
    state = {name[len(prefix) :]: tensor for name, tensor in content["state_dict"].items() if name.startswith(prefix)}
    return EncoderConfig(**content["hyper_parameters"]["encoder"]), state, content.get("metadata", {})


def _read_official(content: dict[str, Any], which: str, path: Path) -> tuple[EncoderConfig, State, dict[str, Any]]:
    """Architecture, weights in timm's names and metadata of an authors' checkpoint.

    BEiT's biases of queries and values become one with those of keys, which cancel in the softmax and are 0.
    """
    if which and which not in content:
        raise ValueError(f"which={which}: {path} has no {which}; it holds {', '.join(list(content)[:5])}")
    for key in (which or "teacher", "model", "state_dict"):
        content = content.get(key, content)
    theirs = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in content.items()}
    state: State = {}
    for name, tensor in theirs.items():
        if name.endswith("q_bias"):
            value = theirs[f"{name.removesuffix('q_bias')}v_bias"]
            state[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros_like(tensor), value])
        elif not name.startswith(AROUND) and not name.endswith(("v_bias", "relative_position_index")):
            name = name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
            state[name.replace("fc_norm.", "norm.")] = tensor  # that of a fine-tuned one
    # BEiT's with relative positions normalize by .5, its other one as ImageNet.
    mean, std = ([0.5] * 3, [0.5] * 3) if relative_tables(state) else (IMAGENET_MEAN, IMAGENET_STD)
    return architecture_of(state, path), state, {"mean": mean, "std": std}


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


def load_strictly(network: nn.Module, state: State, where: Path | str) -> None:
    """Load every weight of a network; ValueError as require_fit."""
    require_fit(network.state_dict(), state, where)
    network.load_state_dict(state)


def require_fit(own: State, state: State, where: Path | str) -> None:
    """ValueError in one line names what state, read from `where`, lacks, has too many, or has in another shape."""
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if names := missing or unknown:
        problem, more = "lacks" if missing else "has the unknown", f" and {len(names) - 3} more" * (len(names) > 3)
        raise ValueError(f"{where} {problem} {', '.join(names[:3])}{more}: it was made by another architecture")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            line = f"{where}: {name} is {list(state[name].shape)}, but {list(tensor.shape)} is needed"
            raise ValueError(f"{line}; give the encoder.* and method.* settings that it was trained with")


def transfer(start: VisionTransformer, encoder: VisionTransformer, where: str) -> None:
    """Copy the weights of another encoder of the same shape; positions are resampled where the grid differs.

    A fixed sine-cosine table stays the encoder's own; where the encoder learns its positions, it starts from one.
    where: what to call the start in an error.
    """
    state, rows = start.state_dict(), encoder.class_rows
    ours, theirs = encoder.config.pos_embed, start.config.pos_embed
    if ours == theirs and encoder.config.relative:
        state |= {name: resample_relations(state[name], start.grid, encoder.grid) for name in relative_tables(state)}
    elif (theirs, ours) == ("relative", "relative_per_block"):
        shared = resample_relations(state.pop(RELATIONS), start.grid, encoder.grid)
        state |= {name: shared.clone() for name in relative_tables(encoder.state_dict())}
    elif encoder.config.relative or start.config.relative:
        raise ValueError(f"{where} was made with encoder.pos_embed={theirs}, this run has {ours}: make them alike")
    elif ours == "sincos":
        state["pos_embed"] = encoder.pos_embed
    elif start.class_rows == rows:
        patches = resample(state["pos_embed"][:, rows:], start.grid, encoder.grid)
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :rows], patches], dim=1)
    load_strictly(encoder, state, where)
