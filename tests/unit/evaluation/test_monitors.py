"""Monitors against cases by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.one_process import OneProcess
from helpers.plane_model import ALPHAS, Plane

from sdpo.evaluation.monitors import (
    Drift,
    Monitors,
    corner_colors,
    diversity,
    edge_density,
    histogram_entropy,
    palette,
    thumbnails,
)
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import final_images


def shades(*values: float) -> torch.Tensor:
    """Images of one grey each, [N, 3, 8, 8]."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_diversity_by_hand() -> None:
    # Image i is of prompt i modulo 2: prompt 0 has 0.0 and 0.4, prompt 1 has 0.5 and 0.7.
    reduced = thumbnails(shades(0.0, 0.5, 0.4, 0.7))
    assert diversity(reduced, prompts=2) == pytest.approx((0.4 + 0.2) / 2)
    assert diversity(reduced, prompts=4) is None, "one image a prompt says nothing about a prompt's diversity"
    assert diversity(thumbnails(shades(0.3, 0.3)), prompts=1) == 0
    assert diversity(thumbnails(shades(0.3)), prompts=1) is None


def test_thumbnails_average_areas() -> None:
    images = torch.rand(2, 3, 64, 64)
    assert thumbnails(images).shape == (2, 3 * 32 * 32)
    torch.testing.assert_close(thumbnails(images)[0, 0], images[0, 0, :2, :2].mean())


def test_edges_and_entropy_by_hand() -> None:
    halves = torch.zeros(1, 3, 9, 9)
    halves[..., 5:] = 1  # one of eight columns of neighbours is an edge
    assert edge_density(halves).tolist() == pytest.approx([1 / 8])
    assert edge_density(shades(0.2, 0.9)).tolist() == [0, 0]
    board = (torch.arange(64) % 4 / 3).reshape(1, 1, 8, 8).expand(-1, 3, -1, -1)  # four shades, 16 pixels each
    assert histogram_entropy(torch.cat([board, shades(0.5)])).tolist() == pytest.approx([2, 0])


def test_the_drift_is_the_kl_of_the_trajectories_that_were_drawn() -> None:
    policy = Policy(Plane())
    embeddings, denoiser = PromptEmbeddings(policy.backbone), policy.backbone.denoiser(3, 1.0)

    def drift(shift: float, micro_batch: int) -> torch.Tensor:
        policy.backbone.network_module.shift.data.fill_(shift)
        watch = Drift(policy, denoiser, 3)
        list(final_images(policy, denoiser, embeddings, ["a"] * 5, range(5), micro_batch, observer=watch))
        return watch.values

    assert drift(0.0, 2).tolist() == [0, 0, 0]
    found = drift(0.5, 2)
    # μ is linear in x̂, which the shift moves by (1 − ᾱ) times its size wherever the latent is.
    latent, expected = torch.zeros(1, 2, 1, 1), 0.0
    for step, timestep in enumerate(denoiser.timesteps.tolist()):
        x0 = torch.full_like(latent, 0.5 * (1 - ALPHAS[timestep].item()))
        moved, base = (denoiser.transition(latent, output, torch.tensor([step])) for output in (x0, latent))
        expected += ((moved.mean - base.mean).square().mean() / (2 * base.std.square())).item() / 3
    assert found.tolist() == pytest.approx([expected] * 3, rel=1e-4)
    torch.testing.assert_close(drift(0.5, 5), found)


def test_only_the_images_that_every_evaluation_has_are_looked_at() -> None:
    policy = Policy(Plane())
    process: Any = OneProcess()

    def measured(images: torch.Tensor) -> dict[str, float]:
        monitors = Monitors(policy, policy.backbone.denoiser(1, 1.0), range(len(images)), prompts=1, per_prompt=2)
        for chunk in images.split(3):
            monitors.look(chunk)
        return monitors.finish(process)

    few, many = measured(shades(0.1, 0.4)), measured(shades(0.1, 0.4, 0.9, 0.9, 0.9, 0.9))
    assert few == many and few["diversity"] == pytest.approx(0.3) and few["kl_to_base"] == 0


def test_without_random_steps_there_is_no_drift() -> None:
    policy = Policy(Plane())
    process: Any = OneProcess()
    monitors = Monitors(policy, policy.backbone.denoiser(1, 0.0), [0], prompts=1, per_prompt=1)
    monitors.look(shades(0.5))
    assert set(monitors.finish(process)) == {"edge_density", "entropy"}  # nor a pair


def test_the_palette_is_the_spread_of_the_corners_by_hand() -> None:
    images = torch.full((2, 3, 16, 24), 0.5)  # corners are squares of two pixels
    for rows, columns in ((slice(0, 2), slice(0, 2)), (slice(14, 16), slice(22, 24))):
        images[0, 0, rows, columns] = 1.0
    assert corner_colors(images).tolist() == [[0.75, 0.5, 0.5], [0.5, 0.5, 0.5]]
    assert palette(corner_colors(images)) == pytest.approx(0.125 / 3)
    assert palette(corner_colors(images[:1])) is None
    assert palette(corner_colors(shades(0.0, 1.0))) == pytest.approx(0.5), "the largest spread"


def test_a_collapse_of_backgrounds_is_seen() -> None:
    """Six prompts, eight images of each: a mark in the middle that differs by prompt, on a background."""
    generator = torch.Generator().manual_seed(0)
    policy, process = Policy(Plane()), OneProcess()

    def measured(background: torch.Tensor) -> dict[str, float]:
        images = background[:, :, None, None].expand(-1, -1, 16, 16).clone()
        marks = torch.arange(48) % 6 / 6
        images[:, 0, 5:11, 5:11] = marks[:, None, None]
        monitors = Monitors(policy, policy.backbone.denoiser(1, 1.0), range(48), prompts=6, per_prompt=8)
        monitors.look(images)
        return monitors.finish(process)  # type: ignore[arg-type]

    varied = torch.rand(48, 3, generator=generator)
    mean = varied.mean(0)
    before, after = measured(varied), measured(mean + 0.4 * (varied - mean))
    assert after["palette"] == pytest.approx(0.4 * before["palette"], rel=1e-5)
    assert after["diversity"] < 0.75 * before["diversity"]
