"""Random masks: laws. Block-wise masks: laws, and the plain algorithm image by image in Python's own random numbers."""

import math
import random
import re
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from ssl_vit.methods.masking import block_masks, index_to_mask, num_keep, random_masking, scaled_block

GRIDS = {(14, 14): (75, 16), (8, 8): (24, 5), (10, 6): (23, 16)}  # budget, smallest block
MASKS = 6000  # on 10 x 6 the plain algorithm leaves about one of them without a block


class Given:
    """Stands for random.Random where its numbers in [0, 1) are given."""

    def __init__(self, numbers: Iterable[float]) -> None:
        self.numbers = iter(numbers)

    def uniform(self, a: float, b: float) -> float:
        return a + (b - a) * next(self.numbers)

    def randint(self, a: int, b: int) -> int:
        return a + int((b - a + 1) * next(self.numbers))


def plain_mask(
    next_round: Callable[[], Iterable[random.Random | Given]], h: int, w: int, budget: int, smallest: int
) -> list[list[bool]]:
    """Algorithm 1 with the stopping rule of the authors' code; a round yields a source of numbers for each try."""
    hidden = [[False] * w for _ in range(h)]
    total = 0
    while total < budget:
        newly_hidden = 0
        for source in next_round():
            area = source.uniform(smallest, budget - total)
            aspect = math.exp(source.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= h or width >= w:
                continue
            top, left = source.randint(0, h - height), source.randint(0, w - width)
            block = [(y, x) for y in range(top, top + height) for x in range(left, left + width)]
            new = [place for place in block if not hidden[place[0]][place[1]]]
            if 0 < len(new) <= budget - total:
                for y, x in new:
                    hidden[y][x] = True
                newly_hidden = len(new)
                break
        if newly_hidden == 0:
            break
        total += newly_hidden
    return hidden


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module", params=GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def drawn(request) -> tuple[Tensor, Tensor]:
    """B x h x w masks of one grid: from the library, in batches of 128, and from the plain algorithm."""
    (h, w), (budget, smallest) = request.param, GRIDS[request.param]
    generator, numbers = seeded(), random.Random(0)
    ours = [block_masks(128, (h, w), budget, smallest=smallest, generator=generator) for _ in range(-(-MASKS // 128))]
    plain = [plain_mask(lambda: [numbers] * 10, h, w, budget, smallest) for _ in range(MASKS)]
    return torch.cat(ours)[:MASKS].unflatten(1, (h, w)).float(), torch.tensor(plain).float()


def neighbors(masks: Tensor) -> Tensor:
    """Fraction of an image's hidden patches whose neighbor to the right, below or two away is hidden: B x 4."""
    pairs = [
        masks[:, :, 1:] * masks[:, :, :-1],
        masks[:, 1:] * masks[:, :-1],
        masks[:, :, 2:] * masks[:, :, :-2],
        masks[:, 2:] * masks[:, :-2],
    ]
    return torch.stack([pair.sum((1, 2)) / masks.sum((1, 2)).clamp(min=1) for pair in pairs], dim=1)


def components(masks: Tensor) -> Tensor:
    """Connected regions of hidden patches (four neighbors) of each image: B x 1."""
    h, w = masks.shape[1:]
    hidden = masks.bool()
    labels = torch.where(hidden, torch.arange(1, h * w + 1).view(h, w), 0).float()
    own = labels.clone()
    while True:  # the largest label of a region floods it
        across = torch.nn.functional.max_pool2d(labels, (1, 3), 1, (0, 1))
        flooded = torch.maximum(across, torch.nn.functional.max_pool2d(labels, (3, 1), 1, (1, 0))) * hidden
        if torch.equal(flooded, labels):
            return ((labels == own) & hidden).sum((1, 2))[:, None].float()
        labels = flooded


def assert_same_mean(ours: Tensor, plain: Tensor) -> None:
    """B x statistics: every mean within 4.5 standard errors of the difference; by chance 1 in 150,000 is outside."""
    error = ((ours.var(0) + plain.var(0)) / MASKS).sqrt()
    assert ((ours.mean(0) - plain.mean(0)).abs() <= 4.5 * error).all()


def test_the_number_hidden_is_distributed_as_in_the_plain_algorithm(drawn):
    ours, plain = (masks.sum((1, 2)) for masks in drawn)
    assert_same_mean(ours[:, None], plain[:, None])
    thresholds = torch.arange(1, int(plain.max()) + 1)  # all quantiles: the two distribution functions, value by value
    assert_same_mean((ours[:, None] < thresholds).float(), (plain[:, None] < thresholds).float())
    assert ours.unique().numel() > 1  # it does vary


def test_every_patch_is_hidden_as_often_as_in_the_plain_algorithm(drawn):
    ours, plain = drawn
    assert_same_mean(ours.flatten(1), plain.flatten(1))
    border = torch.ones_like(ours[0], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    for zone in (border, ~border):
        assert_same_mean(ours[:, zone].mean(1, keepdim=True), plain[:, zone].mean(1, keepdim=True))
    assert ours[:, ~border].mean() > 1.2 * ours[:, border].mean()  # blocks lie inside: the border is hidden less


def test_hidden_patches_cluster_as_in_the_plain_algorithm(drawn):
    ours, plain = drawn
    assert_same_mean(neighbors(ours), neighbors(plain))
    assert_same_mean(components(ours), components(plain))


@pytest.mark.parametrize(("grid", "budget", "smallest"), [((14, 14), 75, 16), ((8, 8), 24, 5), ((5, 9), 20, 16)])
def test_the_same_numbers_give_the_plain_algorithms_mask(grid, budget, smallest):
    differing = 0
    for seed in range(150):
        mask = block_masks(1, grid, budget, smallest=smallest, generator=seeded(seed))
        generator = seeded(seed)
        given = lambda: map(Given, torch.rand(4, 1, 10, generator=generator)[:, 0].T.tolist())  # noqa: B023, E731
        plain = torch.tensor(plain_mask(given, *grid, budget, smallest)).flatten()
        differing += not torch.equal(mask[0], plain) and bool(plain.any())
    assert differing <= 1  # a side that float32 rounds to the other patch: 1 proposal in about 100,000


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("budget_and_smallest", [(75, 16), (1, 16), (195, 16), (40, 1), (5, 1), (2, 30)])
@pytest.mark.parametrize("grid", [(14, 14), (10, 3), (4, 4), (2, 3), (1, 5), (1, 2)])
def test_masks_hide_something_and_never_more_than_the_budget(grid, budget_and_smallest, exact):
    budget, smallest = min(budget_and_smallest[0], grid[0] * grid[1] - 1), budget_and_smallest[1]
    masks = block_masks(500, grid, budget, smallest=smallest, exact=exact, generator=seeded())
    assert masks.shape == (500, grid[0] * grid[1])
    assert masks.dtype == torch.bool
    hidden = masks.sum(1)
    assert hidden.min() >= (budget if exact else 1)
    assert hidden.max() <= budget


def test_the_exact_variant_adds_random_patches_to_the_blocks():
    blocks = block_masks(4000, (8, 8), 24, generator=seeded())
    exact = block_masks(4000, (8, 8), 24, exact=True, generator=seeded())
    assert (exact | ~blocks).all()
    added = exact & ~blocks
    once = added.sum(1) == 1  # then every visible patch is as likely
    chance = (~blocks[once]).float() / (~blocks[once]).sum(1, keepdim=True)
    spread = (chance * (1 - chance)).sum(0).sqrt()
    assert once.sum() > 300
    assert ((added[once].sum(0) - chance.sum(0)).abs() < 4.5 * spread + 1).all()


def test_one_generator_decides_everything():
    first, again = (block_masks(64, (14, 14), 75, generator=seeded(3)) for _ in range(2))
    assert torch.equal(first, again)
    generator = seeded(3)
    block_masks(64, (14, 14), 75, generator=generator)
    assert not torch.equal(first, block_masks(64, (14, 14), 75, generator=generator))
    before = torch.get_rng_state()
    block_masks(4, (14, 14), 75, exact=True, generator=generator)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    assert torch.equal(first, block_masks(64, (14, 14), 75))


def test_images_hardly_ever_share_a_mask():
    masks = block_masks(512, (14, 14), 75, generator=seeded())
    assert len(masks.unique(dim=0)) >= 500  # 1 in 100 is one large block; on average 0.2 of 512 repeat


def test_an_empty_batch_has_no_masks():
    assert block_masks(0, (4, 4), 6).shape == (0, 16)


@pytest.mark.parametrize("budget", [-1, 0, 196, 500])
def test_a_budget_that_hides_nothing_or_everything_is_refused(budget):
    line = f"budget={budget} must be at least 1 and below the 196 patches of a 14 x 14 grid"
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        block_masks(2, (14, 14), budget)


@pytest.mark.parametrize(
    ("grid", "patches"), [((14, 14), 16), ((8, 8), 5), ((16, 16), 21), ((4, 4), 1), ((2, 3), 1), ((24, 12), 24)]
)
def test_the_smallest_block_grows_with_the_grid(grid, patches):
    assert scaled_block(grid) == patches


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(196, 0.75, 49), (256, 0.75, 64), (64, 0.6, 25), (36, 0.4, 21)])
def test_visible_and_hidden_make_up_the_image(patches, ratio, kept):
    assert num_keep(patches, ratio) == kept
    visible, hidden = random_masking(torch.rand(5, patches), kept)
    assert visible.shape == (5, kept)
    together = torch.cat([visible, hidden], dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(patches).expand(5, -1))
    mask = index_to_mask(hidden, patches)
    assert mask.dtype == torch.bool
    assert (mask.sum(1) == patches - kept).all()
    assert not mask.gather(1, visible).any()


def test_every_patch_is_hidden_equally_often():
    _, hidden = random_masking(torch.rand(8000, 16), 4)
    fraction = index_to_mask(hidden, 16).float().mean(0)
    assert (fraction - 0.75).abs().max() < 4.5 * math.sqrt(0.75 * 0.25 / 8000)  # binomial, 16 chances
