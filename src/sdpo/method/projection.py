"""A fixed random projection of gradients, which keeps their inner products up to a small error.

Source: the count sketch (Charikar et al. 2002), as feature hashing (Weinberger et al. 2009, arXiv 0902.2206).
"""

from __future__ import annotations

from collections.abc import Sequence

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

    def __call__(self, parts: Sequence[Tensor]) -> Tensor:
        """Project a vector that is given in parts.

        Args:
            parts: tensors on one device with P numbers in all.

        Returns:
            float32 [dimension], on the CPU.
        """
        flat = torch.cat([part.detach().reshape(-1).float() for part in parts])
        if self.exact:
            return flat.cpu()
        if flat.device != self._device:
            self._device = flat.device
            self._place, self._sign = self._place.to(flat.device), self._sign.to(flat.device)
        return flat.new_zeros(self.dimension).index_add_(0, self._place, flat * self._sign).cpu()
