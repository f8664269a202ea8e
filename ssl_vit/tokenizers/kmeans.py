"""k-means over patches: the cheapest visual tokens (Lloyd, 1982; in mini-batches, Sculley, 2010).

Letters: B images, C channels, H W pixels, h x w patch grid, N = h * w patches.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ssl_vit.config.tokenizer_schema import KMeansConfig
from ssl_vit.models.stem import patchify, unpatchify
from ssl_vit.tokenizers.base import Tokenizer

CHUNK = 2**24  # distances at a time: 64 MB


class KMeans(Tokenizer):
    """The nearest center of each patch's pixels."""

    kind = "kmeans"
    decodes = True
    centers: Tensor

    def __init__(self, config: KMeansConfig) -> None:
        super().__init__(config)
        self.register_buffer("centers", torch.zeros(config.vocab_size, config.channels * config.patch_size**2))

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B N"]:
        with torch.autocast(images.device.type, enabled=False):
            patches = patchify(images.float(), self.patch_size)
            half = self.centers.square().sum(1) / 2
            chunks = patches.flatten(0, 1).split(max(1, CHUNK // self.vocab_size))
            nearest = [torch.addmm(-half, chunk, self.centers.T).argmax(1) for chunk in chunks]
        return torch.cat(nearest).unflatten(0, patches.shape[:2])

    def decode(self, tokens: Int64[Tensor, "B N"], grid: tuple[int, int] | None = None) -> Float[Tensor, "B C H W"]:
        return unpatchify(self.centers[tokens], self.patch_size, *(grid or self.grid)).clamp(0, 1)


def fit_kmeans(config: KMeansConfig, batches: Iterator[Float[Tensor, "B C H W"]], seed: int) -> KMeans:
    """Centers of the first config.patches patches of batches of images in [0, 1], by scikit-learn."""
    from sklearn.cluster import MiniBatchKMeans

    collected: list[Tensor] = []
    while sum(map(len, collected)) < config.patches:
        collected.append(patchify(next(batches), config.patch_size).flatten(0, 1))
    solver = MiniBatchKMeans(
        config.vocab_size,
        batch_size=max(4096, 4 * config.vocab_size),
        max_iter=config.passes,
        n_init=1,  # pyright: ignore[reportArgumentType]
        random_state=seed,
    )
    sample = torch.cat(collected)[: config.patches].numpy()
    tokenizer = KMeans(config)
    tokenizer.centers.copy_(torch.from_numpy(solver.fit(sample).cluster_centers_))
    return tokenizer.eval()
