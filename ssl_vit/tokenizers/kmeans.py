"""k-means over patches: the cheapest visual words (Lloyd, 1982; in mini-batches, Sculley, 2010).

Letters: B images, C channels, H W pixels, h x w patch grid, N = h * w patches, F = C * P * P pixel values of a patch,
K centres.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_vit.config.tokenizer_schema import KMeansConfig
from ssl_vit.models.vit import images_of, pixels_per_patch
from ssl_vit.tokenizers.base import Tokenizer

CHUNK = 2**24
"""Distances at a time: 64 MB."""


class KMeans(Tokenizer):
    """The nearest centre of each patch's pixels."""

    kind = "kmeans"
    decodes = True
    centres: Tensor

    def __init__(self, config: KMeansConfig) -> None:
        super().__init__(config)
        pixels = config.channels * config.patch_size**2
        self.register_buffer("centres", torch.zeros(config.vocab_size, pixels))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        with torch.autocast(images.device.type, enabled=False):
            patches = pixels_per_patch(images.float(), self.patch_size)
            half = self.centres.square().sum(1) / 2
            parts = patches.flatten(0, 1).split(max(1, CHUNK // self.vocab_size))
            nearest = [torch.addmm(-half, part, self.centres.T).argmax(1) for part in parts]
        return torch.cat(nearest).unflatten(0, patches.shape[:2])

    def decode(self, tokens: Int64[Tensor, "B N"], grid: tuple[int, int] | None = None) -> Float[Tensor, "B C H W"]:
        """Each patch as the mean of those it stands for."""
        return images_of(self.centres[tokens], self.patch_size, *(grid or self.grid)).clamp(0, 1)


def fit_kmeans(config: KMeansConfig, batches: Iterator[Float[Tensor, "B C H W"]], seed: int) -> KMeans:
    """Centres of the first config.patches patches that come, by scikit-learn.

    Args:
        batches: pictures in [0, 1], at least as many as that takes.
    """
    from sklearn.cluster import MiniBatchKMeans

    collected, count = [], 0
    while count < config.patches:
        patches = pixels_per_patch(next(batches), config.patch_size).flatten(0, 1)
        collected.append(patches)
        count += len(patches)
    sample = torch.cat(collected)[: config.patches].numpy()
    solver = MiniBatchKMeans(
        config.vocab_size,
        batch_size=max(4096, 4 * config.vocab_size),
        max_iter=config.passes,
        n_init=1,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    tokenizer = KMeans(config)
    tokenizer.centres.copy_(torch.from_numpy(solver.fit(sample).cluster_centers_))
    return tokenizer.eval()
