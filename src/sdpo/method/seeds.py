"""Stateless random numbers: every draw is a function of (seed, epoch, index, role).

Without a state, results depend neither on the micro-batch size nor on the number of processes, and a resumed run needs
no saved random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdpo.method.lazy_torch import torch

if TYPE_CHECKING:
    from torch import Tensor


def derive(*key: int | str) -> int:
    """Hash a key of integers and strings to a 63-bit seed; different keys give independent seeds."""
    digest = hashlib.blake2b("\x1f".join(map(repr, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """Make a CPU generator that is seeded from the key."""
    return torch.Generator().manual_seed(derive(*key))


def normal(shape: tuple[int, ...], keys: Iterable[tuple[int | str, ...]]) -> Tensor:
    """Draw standard normal noise, independently for each key; float32 on the CPU, [len(keys), *shape].

    Drawing on the CPU makes the numbers the same on every device.

    Args:
        shape: the shape of one draw.
        keys: the key of each draw: seed, epoch, sample index, role.
    """
    return torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys])


def permutation(size: int, *key: int | str) -> Tensor:
    """Draw a random permutation of range(size) from the key, int64 [size]."""
    return torch.randperm(size, generator=generator(*key))
