"""Encoders in files: safetensors with a JSON beside it, and readers for Lightning's and the authors' checkpoints.

Nothing is unpickled but tensors and plain containers (`weights_only=True`), and every load is strict.
"""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ssl_vit.config.checks import one_of
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, SIZES, EncoderConfig
from ssl_vit.models.pos_embed import resample, resample_relations
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.files import ENCODER, METADATA, newest_checkpoint, write_atomic, write_json

State = dict[str, Tensor]
RELATIONS = "rel_pos_bias.relative_position_bias_table"
TRAINED = "encoder."
"""Prefix of the encoder that the gradients move, in a method's state dict."""


def save_encoder(encoder: VisionTransformer, folder: Path, **metadata: Any) -> Path:
    """Write encoder.safetensors (complete in itself) and encoder.json (the same facts, for people and tools).

    Args:
        facts: JSON values worth keeping: mean, std, method, data, step.
    """
    metadata = {"encoder": asdict(encoder.config), **metadata}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    write_atomic(folder / ENCODER, save(state, metadata={"ssl_vit": json.dumps(metadata)}))
    write_json(folder / METADATA, metadata)
    return folder / ENCODER


def load_encoder(source: str | Path, which: str = "") -> VisionTransformer:
    """An encoder in eval mode from a run, encoder.safetensors, a Lightning .ckpt, or an official .pth.

    Official ones are MAE's, DINO's, BEiT's, and plain Vision Transformers in timm's names; of fine-tuned ones without
    the head, and with the norm of their mean as the encoder's.

    `encoder.facts` holds what is known of it: mean and std of its images, and for our own its method and data.
    A DINO checkpoint holds two: the teacher, which is what its authors release and what is loaded by default, and the
    student.

    Args:
        which: teacher or student, of a method that has both; by default what the method exports.

    Raises:
        FileNotFoundError: there is nothing at source.
        ValueError: it holds no encoder of ours or of the authors', or weights are missing, unknown or misshapen.
    """
    if which:
        one_of("which", which, ("teacher", "student"))
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"encoder={source}: there is no such file or run")
    if path.is_dir():
        path = path / ENCODER if (path / ENCODER).exists() and not which else newest_checkpoint(path)
    if path.suffix == ".safetensors":
        if which:
            raise ValueError(f"{path} holds one encoder; for which={which} give the run, or a checkpoint of it")
        config, state, metadata = _read_safetensors(path)
    else:
        config, state, metadata = _read_pickle(path, which)
    encoder = VisionTransformer(config)
    load_strictly(encoder, state, path)
    encoder.metadata = metadata
    return encoder.eval()


def load_strictly(encoder: VisionTransformer, state: State, where: Path | str) -> None:
    """Load every weight of an encoder; ValueError as require_fit."""
    require_fit(encoder.state_dict(), state, where)
    encoder.load_state_dict(state)


def require_fit(own: State, state: State, where: Path | str) -> None:
    """ValueError in one line names what state, read from `where`, lacks, has too many, or has in another shape."""
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    for problem, names in (("lacks", missing), ("has the unknown", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{where} {problem} {', '.join(names[:3])}{more}: it was made by another architecture")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{where}: {name} is {list(state[name].shape)}, but {list(tensor.shape)} is needed; "
                "give the encoder.* and method.* settings that it was trained with"
            )


def initialize(encoder: VisionTransformer, source: str | Path) -> None:
    """As transfer, from anything that load_encoder reads."""
    transfer(load_encoder(source), encoder, f"init_from={source}")


def transfer(start: VisionTransformer, encoder: VisionTransformer, where: str) -> None:
    """Copy the weights of another encoder of the same shape; positions are resampled where the grid differs.

    A fixed sine-cosine table stays the encoder's own; where the encoder learns its positions, it starts from one.

    Args:
        where: what to call the start in an error.
    """
    state, rows = start.state_dict(), encoder.class_rows
    ours, theirs = encoder.config.pos_embed, start.config.pos_embed
    if ours == theirs and encoder.config.relative:
        state |= {name: resample_relations(state[name], start.grid, encoder.grid) for name in _tables(state)}
    elif (theirs, ours) == ("relative", "relative_per_block"):
        shared = resample_relations(state.pop(RELATIONS), start.grid, encoder.grid)
        state |= {name: shared.clone() for name in _tables(encoder.state_dict())}
    elif encoder.config.relative or start.config.relative:
        raise ValueError(f"{where} was made with encoder.pos_embed={theirs}, this run has {ours}: make them alike")
    elif ours == "sincos":
        state["pos_embed"] = encoder.pos_embed
    elif start.class_rows == rows:
        patches = resample(state["pos_embed"][:, rows:], start.grid, encoder.grid)
        state["pos_embed"] = torch.cat([state["pos_embed"][:, :rows], patches], dim=1)
    load_strictly(encoder, state, where)


def _tables(state: State) -> list[str]:
    """Names of the relative tables, the shared one or those of the blocks."""
    return [name for name in state if name.endswith("relative_position_bias_table")]


def _read_safetensors(path: Path) -> tuple[EncoderConfig, State, dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = json.loads((file.metadata() or {}).get("ssl_vit", "{}"))
    if not metadata:  # timm's and others': the same names, the architecture read off the shapes
        return (*_official(state, path), {"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
    return EncoderConfig(**metadata["encoder"]), state, metadata


def _read_pickle(path: Path, which: str) -> tuple[EncoderConfig, State, dict[str, Any]]:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the authors keep their arguments beside weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be read as weights alone ({reason}); nothing else is unpickled") from error
    if "hyper_parameters" in content and "encoder" in content["hyper_parameters"]:
        prefix = TRAINED if which == "student" else content["exported"]
        if which and content["exported"] == TRAINED:
            raise ValueError(f"which={which}: {path} is of a method without a teacher")
        weights = content["state_dict"]
        state = {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
        return EncoderConfig(**content["hyper_parameters"]["encoder"]), state, content.get("metadata", {})
    if which and which not in content:
        raise ValueError(f"which={which}: {path} has no {which}; it holds {', '.join(list(content)[:5])}")
    for key in (which or "teacher", "model", "state_dict"):
        content = content.get(key, content)
    names = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in content.items()}
    beside = ("decoder", "mask_token", "head", "lm_head")  # what the authors' methods have around the encoder
    state = {name: tensor for name, tensor in names.items() if not name.startswith(beside)}
    state = {name.replace("fc_norm.", "norm."): tensor for name, tensor in state.items()}  # a fine-tuned one's
    if _tables(state):  # BEiT's with relative positions normalize by .5, its other one as ImageNet
        return (*_official(_from_beit(state), path), {"mean": [0.5] * 3, "std": [0.5] * 3})
    return (*_official(_from_beit(state), path), {"mean": IMAGENET_MEAN, "std": IMAGENET_STD})


def _from_beit(state: State) -> State:
    """Weights of BEiT's authors in timm's names for a plain Vision Transformer; others are as they were.

    Their biases of queries and values become one with those of keys, which cancel in the softmax and are 0.
    """
    ours = {}
    for name, tensor in state.items():
        if name.endswith("q_bias"):
            block = name.removesuffix("q_bias")
            ours[f"{block}qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), state[f"{block}v_bias"]])
        elif not name.endswith(("v_bias", "relative_position_index")):
            ours[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = tensor
    return ours


def _official(state: State, path: Path) -> tuple[EncoderConfig, State]:
    """The architecture of weights in timm's names, from their shapes."""
    try:
        width, channels, patch_size, _ = state["patch_embed.proj.weight"].shape
        tables = _tables(state)
        relative = bool(tables)
        rows = state[tables[0] if relative else "pos_embed"].shape[-2]
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no Vision Transformer in timm's names ({error} not found)") from error
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    patches = ((math.isqrt(rows - 3) + 1) // 2) ** 2 if relative else rows - (0 if registers else 1)
    side = math.isqrt(patches)
    heads = {(w, d): h for w, d, h in SIZES.values()}.get((width, depth))
    if heads is None or side * side != patches:
        raise ValueError(
            f"{path}: heads and grid cannot be read off a ViT {width} wide, {depth} deep with {rows} positions; build "
            "VisionTransformer(...) yourself and load_state_dict"
        )
    config = EncoderConfig(
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
        patch_size=patch_size,
        image_size=side * patch_size,
        channels=channels,
        num_registers=registers,
        init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
        pos_embed="relative" if RELATIONS in state else "relative_per_block" if relative else "learned",
    )
    return config, state
