"""Sampling of groups of trajectories."""

from __future__ import annotations

from helpers.plane_model import Plane

from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.rollout import rollout
from sdpo.prompts import Prompt


def test_branches_begin_at_one_latent_or_at_one_each() -> None:
    policy = Policy(Plane())
    denoiser, embeddings = policy.backbone.denoiser(4, 1.0), PromptEmbeddings(policy.backbone)
    for shared in (True, False):
        (part,) = rollout(policy, denoiser, embeddings, [Prompt("x")] * 4, range(4), seed=0, epoch=1, branches=3,
                          micro_batch=4, shared_noise=shared)  # fmt: skip
        starts = part.states[:, :, 0].flatten(2)
        same = (starts[:, :1] == starts).all(-1)
        assert same.all() if shared else not same[:, 1:].any()
        assert len({tuple(row) for row in starts[:, 0].tolist()}) == 4
