"""Random views: their place, their mirror image, their range, and the random numbers from which they come."""

from __future__ import annotations

import torch
from torch import Tensor

from sdpo.method import seeds
from sdpo.method.augment import Augment

ROWS, COLUMNS = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
RAMP = torch.stack([ROWS, COLUMNS, 0.5 * (ROWS + COLUMNS)])[None]
"""An image whose first channel is the row, and whose second is the column, in 0 … 1."""


def views(augment: Augment, images: Tensor = RAMP) -> Tensor:
    return augment(images, [seeds.generator("views", i) for i in range(len(images))])


def extent(view: Tensor) -> tuple[float, float]:
    """The shares of the rows and of the columns that a view of the ramp shows."""
    rows, columns = view[0, :, 0], view[1, 0]
    return float(rows.max() - rows.min()), float(columns.max() - columns.min())


def test_crops_have_random_sizes_and_places_and_fill_the_image() -> None:
    found = views(Augment(copies=64, crop=0.5))
    assert found.shape == (64, 3, 32, 32)
    extents = torch.tensor([extent(view) for view in found])
    torch.testing.assert_close(extents[:, 0], extents[:, 1])
    assert 0.44 < extents.min() < 0.6 and 0.9 < extents.max() <= 1
    tops = found[:, 0, 0, 0]
    assert tops.min() < 0.05 and tops.max() > 0.3
    assert (found[:, 0, 0, 0] - found[:, 1, 0, 0]).abs().max() > 0.1  # top and left are drawn apart


def test_half_of_the_views_are_mirrored_left_to_right() -> None:
    found = views(Augment(copies=64, flip=True))
    mirrored = [torch.equal(view, RAMP[0].flip(-1)) for view in found]
    assert all(flip or torch.equal(view, RAMP[0]) for flip, view in zip(mirrored, found, strict=True))
    assert 20 < sum(mirrored) < 44


def test_noise_has_its_standard_deviation_and_stays_in_range() -> None:
    gray = torch.full((1, 3, 64, 64), 0.5)
    assert abs(float((views(Augment(noise=0.05), gray) - gray).std()) - 0.05) < 0.002
    strong = views(Augment(noise=1.0), gray)
    assert strong.min() == 0 and strong.max() == 1


def test_views_of_an_image_do_not_depend_on_its_neighbours_and_carry_the_gradient() -> None:
    augment = Augment(copies=2, crop=0.7, flip=True, noise=0.02)
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = views(augment, images)
    alone = augment(images[2:], [seeds.generator("views", 2)])
    assert torch.equal(together[4:], alone) and not torch.equal(together[0], together[1])
    leaf = images[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(views(augment, leaf).sum(), leaf)
    assert gradient.abs().sum() > 0
