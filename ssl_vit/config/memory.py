"""How many bytes a training needs at the least, by arithmetic alone, so that absurd sizes are refused at once.

Weights, gradients and Adam's moments; of a batch its images, and what transformer blocks keep for the backward pass in
16 bits. What else there is (logits of a vocabulary but for the tokens' own, caches, copies) only adds to it.
Letters: D width, N tokens.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from ssl_vit.config.finetune_schema import FinetuneRun
from ssl_vit.config.pretrain_schema import BEiTRun, DINORun, MAERun
from ssl_vit.config.resolve import settings_of
from ssl_vit.config.schema import EncoderConfig, PatchGrid, RunConfig, TrainingRun
from ssl_vit.config.tokenizer_schema import DVAERun, KMeansRun, VQKDRun

WORKER = 5e7  # bytes of a process that reads images
Needs = tuple[float, float]  # trained weights, and bytes that a step keeps of an image


def training_parts(run: TrainingRun, encoder: PatchGrid | None = None) -> tuple[float, float]:
    """What a training needs at the least, but for its workers: of its weights, and of a batch.

    encoder: of a fine-tuning, whose config does not have it.
    """
    weights, kept = next(NEEDS[base](run) for base in type(run).__mro__ if base in NEEDS)
    if isinstance(encoder, EncoderConfig):
        weights, image = _network(encoder)
        kept = image + _tokens(encoder, _patches(encoder))
    size = 2 if run.trainer.precision == "bf16-true" else 4
    return 4 * size * weights, run.data.batch_size * kept


def training_bytes(run: TrainingRun) -> float:
    """What a training needs at the least, with its workers."""
    workers = run.data.workers
    return sum(training_parts(run)) + WORKER * (0 if workers == "auto" else workers)


def largest_of(run: TrainingRun) -> str:
    """The setting that makes a training so large: without it, it is smallest."""

    def without(key: str) -> float:
        small, (section, _, name) = deepcopy(run), key.rpartition(".")
        setattr(getattr(small, section) if section else small, name, 1)
        return training_bytes(small)

    sizes = (key for key, setting in settings_of(run).items() if _counts(setting.default) or key.endswith("mlp_ratio"))
    return min(sizes, key=without)


def _counts(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return bool(items) and all(type(item) is int for item in items)


def _blocks(width: float, depth: float, mlp_ratio: float = 4.0) -> float:
    """Numbers in the matrices of transformer blocks."""
    return depth * width * width * (4 + 2 * mlp_ratio)


def _kept(tokens: float, width: float, depth: float, mlp_ratio: float = 4.0) -> float:
    """Bytes that the blocks keep of an image's tokens."""
    return 2 * tokens * depth * width * (4 + mlp_ratio)


def _image(patches: PatchGrid) -> float:
    """Bytes of an image: as it comes, and as floats."""
    height, width = patches.height_width
    return 5.0 * patches.channels * height * width


def _tokens(encoder: EncoderConfig, tokens: float) -> float:
    width, depth, _ = encoder.shape
    return 0.0 if encoder.grad_checkpointing else _kept(tokens, width, depth, encoder.mlp_ratio)


def _patches(encoder: PatchGrid) -> float:
    h, w = encoder.grid
    return float(h * w)


def _encoder(run: Any) -> Needs:
    return _network(run.encoder)


def _network(encoder: EncoderConfig) -> Needs:
    width, depth, _ = encoder.shape
    positions = _patches(encoder) * (encoder.pos_embed == "learned")
    inputs = width * (encoder.channels * encoder.patch_size**2 + positions + encoder.num_registers)
    return _blocks(width, depth, encoder.mlp_ratio) + inputs, _image(encoder)


def _mae(run: MAERun) -> Needs:
    (weights, image), cfg, patches = _encoder(run), run.method, _patches(run.encoder)
    size = cfg.decoder_embed_dim, cfg.decoder_depth
    visible = _tokens(run.encoder, patches * (1 - cfg.mask_ratio))
    return weights + _blocks(*size), image + visible + _kept(patches, *size)


def _dino(run: DINORun) -> Needs:
    (weights, image), cfg = _encoder(run), run.method
    head = cfg.head_hidden**2 + cfg.head_bottleneck * (cfg.head_hidden + cfg.prototypes)
    small = cfg.local_crops * (cfg.local_size / run.encoder.patch_size) ** 2
    tokens = _tokens(run.encoder, cfg.global_crops * _patches(run.encoder) + small)
    crops = cfg.global_crops * image + cfg.local_crops * 5.0 * run.encoder.channels * cfg.local_size**2
    scores = 4.0 * (cfg.global_crops + cfg.local_crops) * cfg.prototypes
    return 1.25 * (weights + head), crops + tokens + scores  # the teacher's have neither gradient nor moments


def _beit(run: BEiTRun) -> Needs:
    (weights, image), depth = _encoder(run), run.method.branch_depth * run.method.class_branch
    branch = _blocks(run.encoder.shape[0], depth, run.encoder.mlp_ratio)
    return weights + branch, image + _tokens(run.encoder, _patches(run.encoder))


def _kmeans(run: KMeansRun) -> Needs:
    cfg = run.tokenizer
    numbers = cfg.channels * cfg.patch_size**2 * (cfg.patches + cfg.vocab_size)
    return numbers / 4, _image(cfg)  # neither gradient nor moments


def _dvae(run: DVAERun) -> Needs:
    cfg = run.tokenizer
    weights = 36.0 * cfg.residuals * cfg.width**2 + cfg.vocab_size * (cfg.width + cfg.code_dim)
    return weights, _image(cfg) + 4 * _patches(cfg) * cfg.vocab_size


def _vqkd(run: VQKDRun) -> Needs:
    cfg = run.tokenizer
    weights = _blocks(cfg.width, cfg.depth + cfg.decoder_depth) + cfg.vocab_size * cfg.code_dim
    return weights, _image(cfg) + _kept(_patches(cfg), cfg.width, cfg.depth) + 4 * _patches(cfg) * cfg.vocab_size


def _finetune(run: FinetuneRun) -> Needs:
    return 0.0, _image(PatchGrid(image_size=run.image_size or 1, patch_size=1, channels=1))


NEEDS: dict[type, Callable[[Any], Needs]] = {
    **{RunConfig: _encoder, MAERun: _mae, DINORun: _dino, BEiTRun: _beit},
    **{KMeansRun: _kmeans, DVAERun: _dvae, VQKDRun: _vqkd, FinetuneRun: _finetune},
}
"""Of a run's class, or of the one that it extends."""
