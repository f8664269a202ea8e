"""Images to features, for whatever comes after: an array in Python, a table of a folder on the command line.

Letters: n images, N patches, D feature channels.
"""

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from ssl_vit.config.checks import ConfigError, printable
from ssl_vit.config.evaluation_schema import EmbedConfig
from ssl_vit.config.schema import DataConfig, ReadoutConfig
from ssl_vit.config.values import described
from ssl_vit.data.sources.base import UnreadableImageError
from ssl_vit.data.sources.folder import Folder
from ssl_vit.evaluate.backbones import EncoderBackbone
from ssl_vit.evaluate.features import local_device, tracked
from ssl_vit.models.preprocess import Preprocess, normalize
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import load_encoder
from ssl_vit.run.files import newest_run, write_atomic, write_json
from ssl_vit.run.tables import as_csv, readable

log = logging.getLogger("ssl_vit")
CHUNK = 1024  # images whose features are written at a time, so that an interrupted command goes on from there


def embed(
    encoder: VisionTransformer | str | Path,
    images: Iterable[Any],
    *,
    pool: str | None = None,
    layer: int | str | None = None,
    blocks: int | None = None,
    patches: bool = False,
    batch_size: int = 64,
) -> Float32[np.ndarray, "n ..."]:
    """Features [n, D] of images, or with patches [n, N, D], in float32, on the encoder's device without gradients.

    images: whatever encoder.preprocess takes (paths, PIL images, arrays), or a Dataset of such, with or without labels
    beside them. pool (cls, mean, both), layer (from 1, or last) and blocks (side by side): by default what the
    evaluation of the encoder's own run reads, else the mean of the last block. ValueError, OSError: an image is none.
    """
    encoder = encoder if isinstance(encoder, VisionTransformer) else load_encoder(encoder)
    extract, preprocess = extractor_of(encoder, pool, layer, blocks, patches), encoder.transform
    found = (item[0] if isinstance(item, tuple | list) else item for item in images)
    batches = iter(lambda: list(islice(found, batch_size)), [])
    rows = [extract(torch.stack([preprocess.crop(image) for image in batch])) for batch in batches]
    return torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)


def extractor_of(
    encoder: VisionTransformer, pool: str | None, layer: Any, blocks: int | None, patches: bool
) -> Callable[[Tensor], Tensor]:
    """From uint8 crops [B, C, H, W] to features [B, D] or [B, N, D] in float32 on the CPU; options: as of embed."""
    known = described(ReadoutConfig(), encoder.metadata.get("readout", {}), "this encoder")
    layer, backbone, statistics = layer or known.layer, EncoderBackbone(encoder), encoder.transform
    layer = "last" if layer == "best" else layer  # which labels are needed to choose
    feature = backbone.feature(pool or known.pool, layer, blocks or known.blocks)
    device = next(encoder.parameters()).device

    @torch.inference_mode()
    def extract(crops: Tensor) -> Tensor:
        training = encoder.training
        encoder.eval()
        images = normalize(crops.to(device), statistics.mean, statistics.std)
        if patches:
            found = torch.cat([x[:, 1:] for x in backbone.tokens(images, feature.blocks)], dim=2).float()
        else:
            found = backbone.features(images, feature.blocks, feature.pool)
        encoder.train(training)
        return found.cpu()

    return extract


def embed_files(config: EmbedConfig) -> Path:
    """Write names, labels and features of a folder's images; images that cannot be read are logged and left out.

    Interrupted, the same command goes on where it was. ConfigError, FileNotFoundError, ValueError: nothing to embed.
    """
    if not config.images:
        raise ConfigError("images= must be an image, or a folder of images")
    source, out = Path(config.encoder) if config.encoder else newest_run(), Path(config.out)
    encoder = load_encoder(source).to(local_device())
    preprocess = encoder.transform
    files = Folder.at("images", config.images, DataConfig(white_16bit=preprocess.white_16bit), preprocess.channels)
    if out.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError(f"out={config.out} needs pyarrow: pip install 'ssl_vit[parquet]', or write .npz or .csv")
    extract = extractor_of(encoder, config.pool, config.layer, config.blocks, config.patches)
    names = [files.name(number) for number in range(len(files))]
    folder = _partial(config, encoder, names)
    starts = [start for start in range(0, len(files), CHUNK) if not (folder / f"{start}.npz").exists()]
    for start in tracked(starts, "features"):
        numbers = range(start, min(start + CHUNK, len(files)))
        index, features = _embedded(config, files, preprocess, extract, numbers)
        _save(folder / f"{start}.npz", index=index, features=features)
    chunks = [np.load(folder / f"{start}.npz", allow_pickle=False) for start in range(0, len(files), CHUNK)]
    index = np.concatenate([chunk["index"] for chunk in chunks])
    if not len(index):
        shutil.rmtree(folder)  # or images that are mended would stay left out
        raise ValueError(f"images={config.images}: none of {len(files)} images can be read")
    features = np.concatenate([chunk["features"] for chunk in chunks if len(chunk["index"])])
    classes = files.classes
    labels = [classes[label] if label >= 0 else "" for label in files.labels[index].tolist()]
    _write(out, [readable(names[number]) for number in index.tolist()], [*map(readable, labels)], features)
    shutil.rmtree(folder)
    return out


def _embedded(
    config: EmbedConfig, files: Folder, preprocess: Preprocess, extract: Callable[[Tensor], Tensor], numbers: range
) -> tuple[Int64[np.ndarray, " _"], Float32[np.ndarray, "_ ..."]]:
    kept, rows = list[int](), list[Tensor]()
    for first in range(numbers.start, numbers.stop, config.batch_size):
        crops = []
        for number in range(first, min(first + config.batch_size, numbers.stop)):
            try:
                crops.append(preprocess.center(torch.from_numpy(files.read(number).copy()).permute(2, 0, 1)))
                kept.append(number)
            except UnreadableImageError as error:
                log.warning(f"left out: {printable(error)}")
        rows += [extract(torch.stack(crops))] if crops else []
    return np.array(kept, dtype=np.int64), torch.cat(rows).numpy() if rows else np.zeros((0, 0), np.float32)


def _partial(config: EmbedConfig, encoder: VisionTransformer, names: list[str]) -> Path:
    """The folder of what is done already; ConfigError where that is of other images, weights or settings."""
    seen = hashlib.sha256("\0".join(map(_stamped, names)).encode(errors="surrogateescape"))
    for tensor in encoder.state_dict().values():
        seen.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    known = {"made_of": seen.hexdigest(), "settings": {k: v for k, v in asdict(config).items() if k != "encoder"}}
    folder = Path(f"{config.out}.partial")
    if not (folder / "settings.json").exists():
        write_json(folder / "settings.json", known)
    elif json.loads((folder / "settings.json").read_text()) != known:
        line = f"out={config.out}: {folder} is of other images, another encoder or other settings"
        raise ConfigError(f"{line}: delete it, or choose another out=")
    return folder


def _stamped(name: str) -> str:
    """A file's name, size and time, so that another image of its name is not taken for it."""
    try:
        status = os.stat(name)
    except OSError:
        return name
    return f"{name}\0{status.st_size}\0{status.st_mtime_ns}"


def _save(path: Path, **arrays: np.ndarray) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
    write_atomic(path, content.getvalue())


def _write(out: Path, names: list[str], labels: list[str], features: Float32[np.ndarray, "n ..."]) -> None:
    known = {"labels": labels} if any(labels) else {}
    if out.suffix == ".npz":
        _save(out, names=np.array(names), **{key: np.array(values) for key, values in known.items()}, features=features)
    elif out.suffix == ".csv":
        columns = ["name", *(["label"] if known else []), *(f"f{i}" for i in range(features.shape[1]))]
        rows = ([names[i], *(values[i] for values in known.values()), *row] for i, row in enumerate(features.tolist()))
        write_atomic(out, as_csv(columns, rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        vectors = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        arrays = {"name": pa.array(names), **{key[:-1]: pa.array(values) for key, values in known.items()}}
        content = io.BytesIO()
        pq.write_table(pa.table({**arrays, "features": vectors}), content)
        write_atomic(out, content.getvalue())
