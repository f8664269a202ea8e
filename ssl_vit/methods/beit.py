"""BEiT: predict the visual token of each hidden patch (Bao et al., 2022, arXiv:2106.08254).

The encoder sees the image with blocks of patches replaced by a mask token; a tokenizer has turned each patch into one
token of a vocabulary. Options are of BEiT v2 (Peng et al., 2022, arXiv:2208.06366).

Letters: B images, C channels, H x W pixels, h x w patch grid, N = h * w patches, M hidden patches of the whole batch
(their number differs by image), K tokens of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ssl_vit.config.pretrain_schema import BEiTConfig, BEiTRun
from ssl_vit.data.transforms.color import ColorAugmentation
from ssl_vit.data.transforms.crops import RandomCrop, TokenCrop
from ssl_vit.methods.base import Method
from ssl_vit.methods.masking import block_masks, scaled_block
from ssl_vit.models.blocks import Block, init_linear, narrow_normal, run_blocks, shrink_residuals
from ssl_vit.optim.progress import is_logged
from ssl_vit.parallel.distributed import mean_over_ranks
from ssl_vit.tokenizers.base import as_tokenizer, load_tokenizer, rebuild_options, require_tokens

Images = Float[Tensor, "B C H W"]
Mask = Bool[Tensor, "B N"]
HiddenIndex = Int64[Tensor, " M"]
Inputs = Sequence[Float[Tensor, "B C _ _"]]
"""Normalized images for the encoder, and the same in [0, 1] for the tokenizer, at the size that it needs."""


class BEiT(Method):
    """Masked prediction of visual tokens; options: BEiTConfig.

    tokenizer: images [B, C, H, W] in [0, 1] -> tokens [B, N], with vocab_size, or the path of one of ours; frozen, and
    kept in the checkpoints. load_from_checkpoint() needs tokenizer= where it is one of your own.
    """

    Config = BEiTRun
    config: BEiTConfig
    tokenizer: Any
    baseline = "the frequencies of the tokens"
    learned = "predicts {token_accuracy:.0%} of hidden tokens, of which {most_frequent:.0%} are the commonest"

    def __init__(self, *args: Any, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if tokenizer is None:
            raise ValueError("tokenizer= is missing: give the one of your own that the checkpoint was trained with")
        tokenizer = as_tokenizer(tokenizer)
        self.keep_hyperparameters(tokenizer=rebuild_options(tokenizer))
        require_tokens(tokenizer, self.encoder_config, type(tokenizer).__name__)
        self.tokenizer = tokenizer.requires_grad_(False).eval() if isinstance(tokenizer, nn.Module) else tokenizer
        width = self.encoder.embed_dim
        self.mask_token = nn.Parameter(narrow_normal(torch.zeros(1, 1, width)))
        self.head = nn.Linear(width, self.tokenizer.vocab_size)
        init_linear(self.head, "beit")
        self._token_counts = torch.zeros(self.tokenizer.vocab_size)  # of all targets so far that were logged
        if self.config.class_branch:
            self.branch = self._make_branch()

    @classmethod
    def from_run(cls, run: Any, **parts: Any) -> Any:
        tokenizer = load_tokenizer(run.tokenizer)
        require_tokens(tokenizer, run.encoder, run.tokenizer)
        return super().from_run(run, tokenizer=tokenizer, **parts)

    def _make_branch(self) -> nn.ModuleList:
        """Blocks that see the last class token and early patches (BEiT v2, section 2.3), with the authors' drop path.

        Initial weights too are theirs: PyTorch's own, only rescaled, and no bias of queries, keys and values.
        """
        config, encoder, early = self.encoder_config, self.encoder, self.early_block
        end = early + self.config.branch_depth
        rates = [config.drop_path * number / (max(encoder.depth, end) - 1) for number in range(early, end)]
        sizes = encoder.embed_dim, encoder.num_heads, config.mlp_ratio, config.init_values
        branch = nn.ModuleList(Block(*sizes, rate) for rate in rates)
        for block in branch:
            nn.init.zeros_(block.attn.qkv.bias)  # pyright: ignore
        shrink_residuals(branch, first=early + 1)
        return branch

    @property
    def early_block(self) -> int:
        """Blocks that the patches of the class-token branch have been through: 9 of 12, 21 (18 here) of 24."""
        return self.config.early_block or max(1, self.encoder.depth * 3 // 4)

    def train(self, mode: bool = True) -> "BEiT":
        """The tokenizer stays in eval mode."""
        super().train(mode)
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.eval()
        return self

    @property
    def token_size(self) -> tuple[int, int]:
        """Image (H, W) that the tokenizer needs for one token a patch, in pixels."""
        (h, w), P = self.encoder.grid, getattr(self.tokenizer, "patch_size", self.encoder.patch_size)
        return h * P, w * P

    def transform(self) -> TokenCrop:
        cfg, jitter_p = self.config, float(self.config.jitter > 0)
        strengths = dict.fromkeys(("brightness", "contrast", "saturation"), cfg.jitter)
        color = ColorAugmentation(**strengths, hue=0.0, jitter_p=jitter_p, gray_p=0.0, blur_p=0.0, solarize_p=0.0)
        crop = RandomCrop(self.encoder_config.height_width, cfg.crop_scale, cfg.crop_ratio, cfg.flip)
        return TokenCrop(crop, self.token_size, color)

    def losses(self, batch: Inputs | Tensor, mask: Mask | None = None) -> dict[str, Float[Tensor, ""]]:
        """{"token": cross-entropy at the hidden patches}, with the class-token branch {"class_token": ...} too.

        Ranks hide unequally many patches: each divides by their mean number, so that the mean over ranks is that over
        all hidden patches. mask: on the CPU, by default random.
        """
        legal = "two, normalized for the encoder and in [0, 1] for the tokenizer"
        images, pixels = self.require_crops(batch, 2, legal)
        mask = self.random_masks(len(images)) if mask is None else mask
        hidden_index = mask.flatten().nonzero()[:, 0].to(images.device, non_blocking=True)  # [M]
        tokens = self.tokens_of(pixels).flatten()[hidden_index]
        logits = self.predict(images, mask.to(images.device, non_blocking=True), hidden_index)
        if is_logged(self._trainer):
            self.measure(logits["token"].detach(), tokens)
            self.extra_metrics["baseline"] = len(logits) * self.entropy_of_targets(tokens)
        count = mean_over_ranks(hidden_index.new_full((), len(tokens), dtype=torch.float32))
        summed = {name: F.cross_entropy(scores.float(), tokens, reduction="sum") for name, scores in logits.items()}
        return {name: loss / count for name, loss in summed.items()}

    def random_masks(self, count: int) -> Mask:
        """Blocks to hide, on the CPU; a function of (seed, epoch, batch, rank)."""
        cfg, (h, w), generator = self.config, self.encoder.grid, self.generator(torch.device("cpu"))
        blocks = {"smallest": cfg.smallest_block or scaled_block((h, w)), "aspect": cfg.block_aspect}
        budget = int(h * w * cfg.mask_ratio)
        return block_masks(count, (h, w), budget, **blocks, exact=cfg.exact_mask, generator=generator)

    @torch.no_grad()
    def tokens_of(self, pixels: Float[Tensor, "B C _ _"]) -> Int64[Tensor, "B N"]:
        """The tokenizer's tokens, never in low precision, where the nearest one could become another."""
        with torch.autocast(pixels.device.type, enabled=False):
            return self.tokenizer(pixels.float())

    def predict(self, images: Images, mask: Mask, hidden_index: HiddenIndex) -> dict[str, Float[Tensor, "M K"]]:
        """Scores of the tokens at the hidden patches, by term of the loss."""
        encoder, grid = self.encoder, self.encoder.grid_of(images)
        patches = encoder.patchify(images)
        patches = torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)
        patches = encoder.add_pos_embed(patches, *grid)
        if self.config.class_branch:
            early, last = encoder.hidden_states(patches, [self.early_block - 1, -1], grid)
            x, biases = torch.cat([last[:, :1], early[:, 1:]], dim=1), encoder.biases([grid])
            (x,) = run_blocks(self.branch, [x], biases and [biases[-1]] * len(self.branch))
            outputs = {"token": encoder.norm(last), "class_token": encoder.norm(x)}
        else:
            outputs = {"token": encoder.encode(patches, grid)}
        return {name: self.head(tokens[:, 1:].flatten(0, 1)[hidden_index]) for name, tokens in outputs.items()}

    def measure(self, logits: Float[Tensor, "M K"], tokens: Int64[Tensor, " M"]) -> None:
        """Set extra_metrics: accuracy, entropy of the predictions in nats, and how many tokens the targets are."""
        fraction = torch.bincount(tokens, minlength=logits.shape[1]) / len(tokens)
        self.extra_metrics = {
            "token_accuracy": (logits.argmax(1) == tokens).float().mean(),
            "most_frequent": fraction.max(),  # accuracy of always predicting the commonest token of this batch
            "prediction_entropy": torch.special.entr(logits.float().softmax(1)).sum(1).mean(),
            "target_perplexity": torch.special.entr(fraction).sum().exp(),
        }

    def entropy_of_targets(self, tokens: Int64[Tensor, " M"]) -> Float[Tensor, ""]:
        """In nats, of all targets of the training so far: the loss of always predicting how frequent tokens are."""
        counts = mean_over_ranks(torch.bincount(tokens, minlength=self.tokenizer.vocab_size).float())
        counts += self._token_counts.to(counts.device)
        if self.training:
            self._token_counts = counts
        return torch.special.entr(counts / counts.sum()).sum()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["token_counts"] = self._token_counts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._token_counts = checkpoint.get("token_counts", self._token_counts)  # older ones lack it

    def decays(self, name: str, parameter: Tensor) -> bool:
        """As the authors': not class token and positions, but mask token and relative positions."""
        return super().decays(name, parameter) and not name.endswith(("cls_token", "pos_embed"))

    @torch.no_grad()
    def visualize(self, images: Images, pixels: Images) -> dict[str, Tensor]:
        """The image with its hidden blocks, and where the tokenizer decodes, true and predicted tokens as images."""
        grid, mask = self.encoder.grid_of(images), self.random_masks(len(images)).to(images.device)
        hidden, size = mask.unflatten(1, grid).float()[:, None], images.shape[-2:]
        columns = {"masked": images * (1 - F.interpolate(hidden, size))}  # gray: the mean of the training images
        if getattr(self.tokenizer, "decodes", False):
            if pixels.shape[-2:] != self.token_size:
                pixels = F.interpolate(pixels, self.token_size, mode="bicubic").clamp(0, 1)
            tokens, hidden_index = self.tokens_of(pixels), mask.flatten().nonzero()[:, 0]
            logits = self.predict(images, mask, hidden_index)["token"]
            predicted = tokens.flatten().index_copy(0, hidden_index, logits.argmax(1)).view_as(tokens)
            for name, shown in {"tokens": tokens, "predicted": predicted}.items():
                decoded = F.interpolate(self.tokenizer.decode(shown, grid), size)
                columns[name] = (decoded * 255).round().to(torch.uint8)
        return columns | {"original": images}
