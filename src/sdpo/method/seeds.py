"""Stateless randomness: every draw is a function of (seed, epoch, index, role).

Nothing here keeps a state, so results depend neither on the micro-batch size nor on the number of processes,
and a resumed run needs no saved random state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def derive(*key: int | str) -> int:
    """A 63-bit seed from a key of integers and strings; different keys give independent seeds."""
    digest = hashlib.blake2b("\x1f".join(map(repr, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded from the key."""
    return torch.Generator().manual_seed(derive(*key))


def normal(shape: tuple[int, ...], keys: Iterable[tuple[int | str, ...]]) -> Tensor:
    """Standard normal noise, one independent draw of `shape` for each key; float32 CPU [len(keys), *shape].

    Drawn on the CPU, so the numbers are the same on every device.
    """
    return torch.stack([torch.randn(shape, generator=generator(*key)) for key in keys])


def permutation(size: int, *key: int | str) -> Tensor:
    """A random permutation of range(size), int64 [size]."""
    return torch.randperm(size, generator=generator(*key))
