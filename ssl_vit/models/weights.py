"""Weights in files: safetensors with metadata, the one reader and writer; encoders from runs, checkpoints and authors.

Every load is strict.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ssl_vit.config.checks import one_of
from ssl_vit.config.schema import IMAGENET_MEAN, IMAGENET_STD, EncoderConfig
from ssl_vit.models.official import RELATIONS, State, architecture_of, read_official, relative_tables, unpickle
from ssl_vit.models.pos_embed import resample, resample_relations
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.run.files import ENCODER, METADATA, newest_checkpoint, write_atomic, write_json

TRAINED = "encoder."
"""Prefix of the encoder that the gradients move, in a method's state dict."""


def write_weights(path: Path, state: State, metadata: dict[str, Any]) -> Path:
    """Write tensors and what is known of them, as JSON, into one safetensors file, atomically; returns its path."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomic(path, save(tensors, metadata={"ssl_vit": json.dumps(metadata)}))
    return path


def read_weights(path: Path) -> tuple[State, dict[str, Any]]:
    """Tensors and metadata of a safetensors file, on the CPU; {} as metadata where it is not of write_weights.

    Raises:
        ValueError: the file is damaged, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, json.loads((file.metadata() or {}).get("ssl_vit", "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read as weights alone ({error})") from error


def save_encoder(encoder: VisionTransformer, folder: Path, **metadata: Any) -> Path:
    """Write encoder.safetensors (complete in itself) and encoder.json (its metadata, for people and tools).

    Args:
        metadata: JSON values worth keeping: mean, std, method, data, step.
    """
    metadata = {"encoder": asdict(encoder.config), **metadata}
    write_weights(folder / ENCODER, encoder.state_dict(), metadata)
    write_json(folder / METADATA, metadata)
    return folder / ENCODER


def load_encoder(source: str | Path, which: str = "") -> VisionTransformer:
    """An encoder in eval mode from a run, encoder.safetensors, a Lightning .ckpt, or an official .pth.

    Official ones are MAE's, DINO's, BEiT's, and plain Vision Transformers in timm's names; of fine-tuned ones without
    the head, and with the norm of their mean as the encoder's.

    `encoder.metadata` holds what is known of it: mean and std of its images, and for our own its method and data.
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
        state, metadata = read_weights(path)
        if metadata:
            config = EncoderConfig(**metadata["encoder"])
        else:  # timm's and others': the same names, the architecture read off the shapes
            config, metadata = architecture_of(state, path), {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    else:
        content = unpickle(path)
        ours = "encoder" in content.get("hyper_parameters", {})
        config, state, metadata = (_read_checkpoint if ours else read_official)(content, which, path)
    encoder = VisionTransformer(config)
    load_strictly(encoder, state, path)
    encoder.metadata = metadata
    return encoder.eval()


def _read_checkpoint(content: dict[str, Any], which: str, path: Path) -> tuple[EncoderConfig, State, dict[str, Any]]:
    """Architecture, weights and metadata of the encoder in a Lightning checkpoint of one of our methods."""
    prefix = TRAINED if which == "student" else content["exported"]
    if which and content["exported"] == TRAINED:
        raise ValueError(f"which={which}: {path} is of a method without a teacher")
    weights = content["state_dict"]
    state = {name[len(prefix) :]: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return EncoderConfig(**content["hyper_parameters"]["encoder"]), state, content.get("metadata", {})


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
        tables = relative_tables(state)
        state |= {name: resample_relations(state[name], start.grid, encoder.grid) for name in tables}
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
