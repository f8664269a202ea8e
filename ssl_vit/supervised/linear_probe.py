"""The papers' linear probes as a LightningModule: classification heads on the features of a frozen encoder.

What each reads and how it is trained is in `ssl_vit.evaluate.paper_probes`. The last epoch is reported.
Letters: B images of a batch, C channels, H x W pixels, D feature channels, K classes, T targets of an image.
"""

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pytorch_lightning.plugins.environments import LightningEnvironment  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from ssl_vit.config.checks import one_of
from ssl_vit.config.evaluation_schema import LinearProbeConfig
from ssl_vit.config.schema import EncoderConfig, Pool
from ssl_vit.data.loader import batch_images, batch_labels, full_length
from ssl_vit.data.rng import permutation, stratified
from ssl_vit.data.transforms.crops import RandomCrop
from ssl_vit.evaluate.backbones import Backbone, EncoderBackbone
from ssl_vit.evaluate.evaluation import SEEN, Evaluation, Result, schedule_of
from ssl_vit.evaluate.features import cover, tracked
from ssl_vit.evaluate.linear import ROWS
from ssl_vit.evaluate.paper_probes import CROP, PAPER_PROBES, read_tokens
from ssl_vit.models.vit import VisionTransformer
from ssl_vit.models.weights import TRAINED, require_fit
from ssl_vit.optim.ema import frozen_copy
from ssl_vit.optim.param_groups import average_gradients, scaled_lr
from ssl_vit.optim.progress import fraction_done, pace_of, resume_pace
from ssl_vit.parallel.distributed import all_gather, is_distributed, sum_over_ranks, world_size

UNKNOWN = -1  # label of an image that a head does not learn from


class LinearProbe(pl.LightningModule):
    """A classifier on a frozen encoder, trained as in the paper of MAE, DINO, BEiT or AIM (attentive).

    Any Trainer fits it, for as long as it says; `epochs` and `batch_size` are the protocol's own. Batches are as a
    method takes them, with labels. Every rank trains its heads on the features of all ranks.

    protocol="beit" trains a head for each block. Validation chooses the best of them, which then classifies, is tested
    and is saved: its val/top1 is the best of all blocks', as BEiT's authors report it, and test/top1 is of images that
    have chosen nothing. Without validation it is the last block's.

    Args:
        encoder: it is copied; or its EncoderConfig, or a dict of the fields, for a checkpoint's weights; or a Backbone.
        classes: how many, or their names in the order of the labels.
        protocol: mae, dino, beit or attentive.
        seed: of the heads' first weights; None: PyTorch's, as `pl.seed_everything` sets it.
        pool, layer, blocks, base_lr: as LinearProbeConfig's, by default the protocol's own; base_lr is per 256 images.

    ValueError: another protocol, or an option that it does not have.
    """

    chosen: Tensor
    """The number of the head that classifies."""

    def __init__(
        self,
        encoder: VisionTransformer | Backbone | EncoderConfig | dict[str, Any],
        classes: int | list[str],
        protocol: str = "mae",
        seed: int | None = None,
        *,
        pool: Pool | None = None,
        layer: int | str | None = None,
        blocks: int | None = None,
        base_lr: float | None = None,
    ) -> None:
        super().__init__()
        one_of("protocol", protocol, PAPER_PROBES)
        seed = torch.initial_seed() if seed is None else seed
        options = {"protocol": protocol, "seed": seed, "pool": pool, "layer": layer, "blocks": blocks}
        config = LinearProbeConfig(**options, base_lr=base_lr)  # pyright: ignore[reportArgumentType]
        if isinstance(encoder, EncoderConfig | dict):
            given = encoder if isinstance(encoder, EncoderConfig) else EncoderConfig(**encoder)
            with torch.random.fork_rng([]):
                encoder = VisionTransformer(given)
        backbone = encoder if isinstance(encoder, Backbone) else EncoderBackbone(frozen_copy(encoder))
        self.encoder, self.paper = backbone.module, PAPER_PROBES[protocol]
        self.global_batch = self.steps_ahead = self._batches = 0
        self.known: dict[str, Any] = {}  # what the next fit need not see of its first batch, as resume_pace takes it
        self.image_size, self.channels = backbone.height_width, backbone.channels
        self.mean, self.std = backbone.metadata.get("mean"), backbone.metadata.get("std")
        self.classes = [str(label) for label in range(classes)] if isinstance(classes, int) else list(classes)
        self.epochs, self.batch_size, self.base_lr = config.schedule
        self.features = self.paper.features(backbone, config)
        self.holds = cover(self.features)
        self.read = self.paper.extractor(backbone, self.holds)
        widths = [len(feature.vectors) * backbone.width for feature in self.features]
        self.heads = nn.ModuleList(self.paper.head(width, len(self.classes), seed) for width in widths)
        self.register_buffer("chosen", torch.tensor(len(self.features) - 1))
        known = asdict(encoder.config) if isinstance(encoder, VisionTransformer) else None
        self.save_hyperparameters({"encoder": known, "classes": self.classes, **options, "base_lr": base_lr})

    def transform(self) -> RandomCrop:
        """The papers' augmentation, uint8 image -> uint8 crop, for ImageDataModule."""
        return RandomCrop(self.image_size, CROP)

    def train(self, mode: bool = True) -> "LinearProbe":
        """The encoder stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def extract(self, images: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """What the heads read of normalized images [B, C, H, W]."""
        return self.read(images)

    def scores(self, number: int, values: Float[Tensor, "B ..."]) -> Float[Tensor, "B K"]:
        """A head's class scores, in its own precision."""
        head, feature = self.heads[number], self.features[number % len(self.features)]
        with torch.autocast(values.device.type, enabled=False):
            return head(self.holds.select(values, feature).to(next(head.parameters()).dtype))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Class scores before the softmax."""
        return self.scores(int(self.chosen), self.extract(images))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch_images(batch))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self.global_batch:
            self.global_batch = full_length(batch) * world_size() * self.trainer.accumulate_grad_batches
        done = fraction_done(self.trainer)
        if batch_idx == 0 or not self.paper.by_epoch:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = scaled_lr(self.base_lr, self.global_batch) * self.paper.rate(done)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        targets = batch_labels(batch).view(-1, len(self.heads) // len(self.features))
        missing = full_length(batch) - len(targets)
        values, targets = from_all_ranks(self.extract(batch_images(batch)), targets, missing)
        if len(targets) < 2:  # one image has no std for a BatchNorm
            return None
        loss = torch.zeros((), device=self.device)
        for number in range(len(self.heads)):
            labels = targets[:, number // len(self.features)]
            losses = F.cross_entropy(self.scores(number, values), labels, ignore_index=UNKNOWN, reduction="sum")
            loss = loss + losses / (labels != UNKNOWN).sum().clamp_min(1)
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log_dict({"train/loss": loss.detach(), "train/lr": lr}, batch_size=len(targets))
        self._batches += 1
        return loss

    def on_train_start(self) -> None:
        """Another fit, or trial of a Tuner, may have other batches."""
        self.global_batch, self.steps_ahead = resume_pace(self.trainer, self.known)
        self.known, self._batches = {}, 0

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        average_gradients(self.heads.parameters(), self._batches, self.trainer.accumulate_grad_batches)
        self._batches = 0

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.paper.optimizer(self.heads.parameters(), lr=self.base_lr)

    def on_validation_epoch_start(self) -> None:
        """Begin to count, for each head: images right at first, among five guesses, sum of losses, images."""
        self._totals = torch.zeros(len(self.heads), 4, device=self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        values, labels = self.extract(batch_images(batch)), batch_labels(batch)
        for number, totals in enumerate(self._totals):
            scores = self.scores(number, values)
            hits = scores.topk(min(5, len(self.classes))).indices == labels[:, None]
            loss = F.cross_entropy(scores, labels, ignore_index=UNKNOWN, reduction="sum")
            totals += torch.stack([hits[:, 0].sum(), hits.sum(), loss, (labels != UNKNOWN).sum()])

    def on_validation_epoch_end(self) -> None:
        totals = sum_over_ranks(self._totals)
        self.chosen.fill_(totals[:, 0].argmax())
        self._log_totals("val", totals)

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        self._log_totals("test", sum_over_ranks(self._totals))

    def _log_totals(self, stage: str, totals: Float[Tensor, "heads 4"]) -> None:
        top1, top5, loss, count = totals[int(self.chosen)]
        known = {"top1": top1 / count, "loss": loss / count}
        known |= {"top5": top5 / count} if len(self.classes) > 5 else {}
        known |= {"block": self.chosen + 1.0} if len(self.features) > 1 else {}
        self.log_dict({f"{stage}/{name}": figure for name, figure in known.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        known = {"exported": TRAINED, "metadata": getattr(self.encoder, "metadata", {})}
        own = {"global_batch": self.global_batch, "steps_ahead": self.steps_ahead}
        checkpoint |= known | {"pace": pace_of(self._trainer) | own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_fit(self.state_dict(), checkpoint["state_dict"], "the checkpoint")
        known = self.encoder.metadata = checkpoint["metadata"]
        self.mean, self.std = known.get("mean"), known.get("std")
        self.known = checkpoint.get("pace", {}) if self._trainer else {}  # that of a run to resume


def from_all_ranks(
    values: Float[Tensor, "B ..."], targets: Int64[Tensor, "B T"], missing: int
) -> tuple[Float[Tensor, "_ ..."], Int64[Tensor, "_ T"]]:
    """Features and targets of all ranks, which lack `missing` images each; those without a label are left off."""
    if not is_distributed():
        return values, targets
    values = all_gather(F.pad(values, [0, 0] * (values.ndim - 1) + [0, missing]))
    targets = all_gather(F.pad(targets, [0, 0, 0, missing], value=UNKNOWN))
    known = targets[:, 0] != UNKNOWN
    return values[known], targets[known]


# In an evaluation.


class EpochBatches:
    """What a Trainer takes as a loader: so many batches in each epoch, by a function of its number."""

    def __init__(self, probe: LinearProbe, of_epoch: Callable[[int], Iterable[Any]], steps: int) -> None:
        self.probe, self.of_epoch, self.steps = probe, of_epoch, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        yield from self.of_epoch(self.probe.current_epoch)


def train_probe(probe: LinearProbe, batches: EpochBatches, epochs: int, device: str) -> None:
    """Train a probe on this rank's batches, quietly; it then is in eval mode, on the device."""
    logger, where = logging.getLogger("pytorch_lightning"), torch.device(device)
    level = logger.level
    logger.setLevel(logging.WARNING)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        accelerator="cpu" if where.type == "cpu" else "gpu",
        devices=1 if where.type == "cpu" else [where.index or 0],
        precision="32-true" if where.type == "cpu" else "bf16-mixed",
        max_epochs=epochs,
        plugins=[LightningEnvironment()],  # a trainer for each rank, whatever started them: the probe joins them
        **dict.fromkeys(quiet, False),  # pyright: ignore[reportArgumentType]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(probe, batches)
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        finally:
            logger.setLevel(level)
    probe.to(where).eval()


def probe_of(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone, batch_size: int) -> LinearProbe:
    """The probe that an evaluation's settings ask for."""
    config = evaluation.config
    options = {name: getattr(config, name) for name in ("protocol", "seed", "pool", "layer", "blocks", "base_lr")}
    probe = LinearProbe(backbone, evaluation.data.classes, **options)
    probe.known = {"global_batch": batch_size}
    return probe


@torch.no_grad()
def scores_of(probe: LinearProbe, number: int, values: Tensor, count: int) -> Tensor:
    """A head's logits [n, K] of what it reads, `count` images at a time, on the CPU."""
    return torch.cat([probe.scores(number, some.to(probe.device)).cpu() for some in values.split(count)])


def evaluate_live(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """On random crops of all ranks, encoded anew in every epoch.

    Of several blocks each has a second head, which never sees a fifth of the images; these choose one on them.
    """
    config, data, labels, resources = evaluation.config, evaluation.data, evaluation.train_labels, evaluation.resources
    (rank, ranks), (epochs, batch_size, lr) = resources.ranks, schedule_of(evaluation)
    probe, own, unseen = probe_of(evaluation, backbone, batch_size), max(1, batch_size // ranks), None
    fifth = torch.from_numpy(stratified(labels.numpy(), max(1, len(labels) // 5), config.seed))
    if len(probe.features) > 1:
        index = torch.from_numpy(data.eval_index("train", config.train_limit, config.seed))
        unseen = torch.zeros(int(index.max()) + 1, dtype=torch.bool)
        unseen[index[fifth]] = True
        probe.heads.extend(copy.deepcopy(probe.heads))
    crop = RandomCrop(data.image_size, CROP)
    loader = data.augmented_dataloader(crop, own, config.train_limit, config.seed, (rank, ranks))

    def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader.sampler.epoch = epoch  # pyright: ignore[reportAttributeAccessIssue]
        for number, batch in enumerate(tracked(loader, evaluation.bar(f"epoch {epoch + 1} of {epochs}"))):
            place = (number * own + torch.arange(len(batch["label"]))) * ranks + rank
            known = batch["label"].masked_fill(place >= len(labels), UNKNOWN)  # not of images that come again
            targets = [known] if unseen is None else [known, known.masked_fill(unseen[batch["index"]], UNKNOWN)]
            images = batch["images"].to(resources.device, non_blocking=True)
            yield data.normalize(images), torch.stack(targets, dim=1)

    train_probe(probe, EpochBatches(probe, batches, len(loader)), epochs, resources.device)
    chosen = 0
    if unseen is not None:
        values = evaluation.extract(probe.extract, "train")[0][fifth]
        choosers = range(len(probe.features), len(probe.heads))
        guesses = torch.stack([scores_of(probe, number, values, ROWS).argmax(1) for number in choosers])
        chosen = int((guesses == labels[fifth]).sum(1).argmax())
    probabilities = scores_of(probe, chosen, evaluation.extract(probe.extract, "test")[0], ROWS).softmax(1)
    how = f"{probe.paper.name}, lr {lr:g}, {epochs} epochs of batch {batch_size}, random crops"
    return Result(probabilities, how, probe.features[chosen].metadata | {"lr": lr})


def evaluate_attentive(evaluation: Evaluation[LinearProbeConfig], backbone: Backbone) -> Result:
    """An attentive head on tokens that are extracted once, and kept in 16 bits."""
    config, device, (rank, ranks) = evaluation.config, evaluation.resources.device, evaluation.resources.ranks
    (feature,) = PAPER_PROBES["attentive"].features(backbone, config)

    def tokens_of(images: Tensor) -> Tensor:
        return read_tokens(backbone, feature, images).half()

    (train, labels), (test, _) = (evaluation.extract(tokens_of, split) for split in ("train", "test"))
    epochs, batch_size, lr = schedule_of(evaluation, SEEN)
    cached = copy.copy(backbone)  # reads tokens in place of images
    cached.width, cached.tokens = train.shape[2], lambda tokens, *_: [tokens]  # pyright: ignore
    probe = probe_of(evaluation, cached, batch_size)

    def batches(epoch: int) -> Iterator[dict[str, Any]]:
        order = torch.from_numpy(permutation(config.seed, epoch, len(train))).split(batch_size)
        for rows in tracked(order, evaluation.bar(f"epoch {epoch + 1} of {epochs}")):
            own = rows[rank::ranks]
            missing = -(-len(rows) // ranks) - len(own)
            yield {"images": train[own].to(device).float(), "label": labels[own], "skipped": missing}

    train_probe(probe, EpochBatches(probe, batches, math.ceil(len(train) / batch_size)), epochs, device)
    probabilities = scores_of(probe, 0, test, batch_size).softmax(1)
    heads = probe.heads[0].heads
    how = f"attentive probe of {heads} heads, AdamW, lr {lr:g}, {epochs} epochs of batch {batch_size}"
    return Result(probabilities, how, feature.metadata | {"lr": lr})
