"""What a model or a launch refuses of branching at one step."""

from __future__ import annotations

import pytest
import torch
from helpers.plane_model import Plane

from sdpo import Config
from sdpo.assembly.branching import steps_after_branching
from sdpo.distributed.launch import FSDP2, ZeRO2
from sdpo.errors import UserError
from sdpo.method.denoisers import Denoiser

FINAL = ["sample.num_steps=4", "algorithm.reward_plan=final"]


def branched(*overrides: str) -> Config:
    return Config.load("emoji", [*FINAL, *overrides])


def plane() -> tuple[Plane, Denoiser]:
    return Plane(), Plane().denoiser(4, 1.0)


def test_the_steps_that_follow_are_those_that_are_trained_or_have_no_noise() -> None:
    backbone, denoiser = plane()
    assert steps_after_branching(Config.load("emoji"), backbone, denoiser, None) is None
    assert steps_after_branching(branched("sample.branch_at=1"), backbone, denoiser, None) is denoiser
    quiet = steps_after_branching(branched("sample.branch_at=1", "sample.after_branch=none"), backbone, denoiser, None)
    assert quiet is not None and not quiet.stochastic.any() and torch.equal(quiet.timesteps, denoiser.timesteps)


def test_drawn_steps_are_refused_where_the_weights_are_sharded() -> None:
    drawn = branched("sample.branch_at=random")
    with pytest.raises(UserError, match="different numbers of network calls.*sample.branch_at=0"):
        steps_after_branching(drawn, *plane(), FSDP2())
    assert steps_after_branching(drawn, *plane(), ZeRO2({})) is not None, "every process has the whole network"
    one = branched("sample.branch_at=random", "sample.branch_weights=[0,1,0]")
    assert steps_after_branching(one, *plane(), FSDP2()) is not None, "all groups branch at the same step"


def test_a_step_without_noise_is_refused() -> None:
    backbone, denoiser = plane()
    denoiser.stochastic[1] = False
    for at in ("sample.branch_at=1", "sample.branch_at=random"):
        with pytest.raises(UserError, match="step 1 of this model's schedule draws no noise"):
            steps_after_branching(branched(at), backbone, denoiser, None)
    elsewhere = branched("sample.branch_at=random", "sample.branch_weights=[1,0,1]")
    assert steps_after_branching(elsewhere, backbone, denoiser, None) is denoiser


def test_a_schedule_that_changes_without_noise_is_refused() -> None:
    backbone, denoiser = plane()
    denoiser.timesteps = denoiser.timesteps - 1
    with pytest.raises(UserError, match="other timesteps or noise levels.*sample.after_branch=common"):
        steps_after_branching(branched("sample.branch_at=1", "sample.after_branch=none"), backbone, denoiser, None)
