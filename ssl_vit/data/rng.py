"""Random numbers as a hash of (seed, epoch, image's index, column): workers, batch size and a resume change nothing.

The hash is splitmix64's finalizer (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195), mixed between values.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int, Int64

if TYPE_CHECKING:
    import torch

GAMMA = np.uint64(0x9E3779B97F4A7C15)
_ORDER_STREAM = 0x6F72646572  # any constant: keeps the order of images independent of how they are cropped


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64, a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _absorb(state: np.ndarray, values: np.ndarray) -> np.ndarray:
    """State after reading values (broadcast); equal values after different states give unrelated states."""
    return _mix(state ^ _mix(values * GAMMA + GAMMA))


def _as_uint64(values: object) -> np.ndarray:
    return np.atleast_1d(np.asarray(values, dtype=np.int64)).astype(np.uint64)


def uniforms(seed: int, epoch: int, index: Int[np.ndarray, " B"], count: int) -> Float64[np.ndarray, "B count"]:
    """Uniform numbers in [0, 1): row b belongs to image index[b] in this epoch, whatever else is in the batch."""
    state = _absorb(_absorb(_mix(_as_uint64(seed)), _as_uint64(epoch)), _as_uint64(index))
    columns = np.arange(1, count + 1, dtype=np.uint64)
    return (_mix(state[:, None] + columns * GAMMA) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, count: int) -> Int64[np.ndarray, " count"]:
    """0 .. count - 1 in the random order of this epoch."""
    keys = _absorb(_absorb(_mix(_as_uint64(seed ^ _ORDER_STREAM)), _as_uint64(epoch)), _as_uint64(np.arange(count)))
    return np.argsort(keys, kind="stable")


def stratified(labels: Int64[np.ndarray, " n"], count: int, seed: int) -> Int64[np.ndarray, " count"]:
    """Sorted indices of a random subset of count images in which each label keeps its fraction, rounded."""
    order = permutation(seed, 0, len(labels))
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.sort(order[np.argsort(places[order], kind="stable")][:count])


def seeded_generator(device: "torch.device", *key: int | str) -> "torch.Generator":
    """PyTorch's generator on a device, its seed a hash of the key."""
    import torch  # here, because counting images needs none

    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


@contextmanager
def seeded_globals(seed: int, device: "torch.device | None" = None) -> Iterator[None]:
    """Seed the global generators of Python and numpy, with a device PyTorch's too; afterwards they are as they were."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with ExitStack() as stack:
            if device is not None:
                import torch

                stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
                torch.default_generator.manual_seed(seed)
                if device.type == "cuda":
                    stack.enter_context(torch.cuda.device(device))
                    torch.cuda.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
