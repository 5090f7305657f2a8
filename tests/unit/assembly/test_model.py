"""The precision of matrix products: set in a context, and put back after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sdpo.assembly.model import matrix_precision


def now() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture
def former() -> Iterator[tuple[str, bool]]:
    """Settings of the user's own program that are neither of the two."""
    before = now()
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = False
    yield now()
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_tf32_holds_in_the_context_alone(former: tuple[str, bool]) -> None:
    with matrix_precision(True):
        assert now() == ("high", True)
        with matrix_precision(True):  # an evaluation within an epoch
            assert now() == ("high", True)
        assert now() == ("high", True)
    assert now() == former
    with pytest.raises(KeyError), matrix_precision(True):
        raise KeyError
    assert now() == former
    with matrix_precision(False):
        assert now() == former
