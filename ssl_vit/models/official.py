"""Checkpoints of others: those of MAE's, DINO's and BEiT's authors, and Vision Transformers in timm's names.

A file of torch.save is read with `weights_only=True`, which makes tensors and plain containers and runs no code. What
such files lack, the architecture, is read off the weights' shapes.
"""

import argparse
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, SIZES, EncoderConfig

State = dict[str, Tensor]
RELATIONS = "rel_pos_bias.relative_position_bias_table"
"""timm's name of the table of relative positions that all blocks share."""
AROUND = ("decoder", "mask_token", "head", "lm_head")
"""How names begin of what the authors' methods have around the encoder."""


def unpickle(path: Path) -> dict[str, Any]:
    """What a file of torch.save holds, on the CPU.

    Raises:
        ValueError: it is damaged, holds more than tensors and plain containers (a module, for one), or no dict.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the authors keep their arguments beside weights
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error) or type(error).__name__
        pickled = re.search(r"Unsupported global: GLOBAL (\S+)", reason)
        reason = f"it holds a pickled {pickled[1]}; save its state_dict()" if pickled else reason.splitlines()[0]
        raise ValueError(f"{path} cannot be read as weights alone ({reason}); nothing else is unpickled") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of weights by name")
    return content


def read_official(content: dict[str, Any], which: str, path: Path) -> tuple[EncoderConfig, State, dict[str, Any]]:
    """Architecture, weights in timm's names and metadata of an authors' checkpoint.

    Args:
        content: of the file at path. which: teacher or student, of DINO's; "": the teacher, which they release.

    Raises:
        ValueError: it has no such part, or no Vision Transformer.
    """
    if which and which not in content:
        raise ValueError(f"which={which}: {path} has no {which}; it holds {', '.join(list(content)[:5])}")
    for key in (which or "teacher", "model", "state_dict"):
        content = content.get(key, content)
    names = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in content.items()}
    state = {name: tensor for name, tensor in names.items() if not name.startswith(AROUND)}
    state = {name.replace("fc_norm.", "norm."): tensor for name, tensor in state.items()}  # a fine-tuned one's
    # BEiT's with relative positions normalize by .5, its other one as ImageNet.
    mean, std = ([0.5] * 3, [0.5] * 3) if relative_tables(state) else (IMAGENET_MEAN, IMAGENET_STD)
    state = from_beit(state)
    return architecture_of(state, path), state, {"mean": mean, "std": std}


def relative_tables(state: State) -> list[str]:
    """Names of the tables of relative positions, the shared one or those of the blocks."""
    return [name for name in state if name.endswith("relative_position_bias_table")]


def from_beit(state: State) -> State:
    """Weights of BEiT's authors in timm's names for a plain Vision Transformer; others are as they were.

    Their biases of queries and values become one with those of keys, which cancel in the softmax and are 0.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.endswith("q_bias"):
            block = name.removesuffix("q_bias")
            renamed[f"{block}qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), state[f"{block}v_bias"]])
        elif not name.endswith(("v_bias", "relative_position_index")):
            renamed[name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = tensor
    return renamed


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
        raise ValueError(
            f"{path}: heads and grid cannot be read off a ViT {width} wide, {depth} deep with {rows} positions; build "
            "VisionTransformer(...) yourself and load_state_dict"
        )
    return EncoderConfig(
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
        patch_size=patch_size,
        image_size=side * patch_size,
        channels=channels,
        num_registers=registers,
        init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
        pos_embed="relative" if RELATIONS in state else "relative_per_block" if tables else "learned",
    )
