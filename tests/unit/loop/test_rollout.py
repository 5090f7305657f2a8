"""Sampling of groups of trajectories."""

from __future__ import annotations

from helpers.plane_model import Plane, sample

from sdpo.loop.policy import Policy


def test_branches_begin_at_one_latent_or_at_one_each() -> None:
    policy = Policy(Plane())
    for shared in (True, False):
        part = sample(policy, 4, ["x"] * 4, branches=3, shared_noise=shared)
        starts = part.states[:, :, 0].flatten(2)
        same = (starts[:, :1] == starts).all(-1)
        assert same.all() if shared else not same[:, 1:].any()
        assert len({tuple(row) for row in starts[:, 0].tolist()}) == 4
