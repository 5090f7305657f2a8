"""A fixed random projection of gradients, which keeps their inner products up to a small error.

Source: the count sketch (Charikar et al. 2002), as feature hashing (Weinberger et al. 2009, arXiv 0902.2206).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.method import seeds


class RandomProjection:
    """Adds every coordinate of a vector, with a random sign, to one random coordinate of a shorter vector.

    ⟨Sx, Sy⟩ has the expectation ⟨x, y⟩ and a variance of about (‖x‖² ‖y‖² + ⟨x, y⟩²) / D over the choice of S. Vectors
    that are no longer than D are kept as they are, without an error.

    Args:
        size: the length P of the vectors.
        dimension: D, the length after the projection.
        key: the key of the random numbers: equal keys give the same projection.

    Attributes:
        dimension: the length of the results: D, or P where that is smaller.
        exact: whether vectors are kept as they are.
    """

    def __init__(self, size: int, dimension: int, *key: int | str) -> None:
        self.exact = size <= dimension
        self.dimension = min(size, dimension)
        self._device = torch.device("cpu")
        if not self.exact:
            generator = seeds.generator(*key, "projection")
            self._place = torch.randint(dimension, (size,), generator=generator)
            self._sign = 1 - 2 * torch.randint(2, (size,), generator=generator).float()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Project n vectors.

        Args:
            vectors: float32 [n, P].

        Returns:
            float32 [n, dimension], on the CPU.
        """
        if self.exact:
            return vectors.cpu()
        if vectors.device != self._device:
            self._device = vectors.device
            self._place, self._sign = self._place.to(vectors.device), self._sign.to(vectors.device)
        projected = vectors.new_zeros(len(vectors), self.dimension)
        return projected.index_add_(1, self._place, vectors * self._sign).cpu()
