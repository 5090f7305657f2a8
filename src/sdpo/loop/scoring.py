"""From trajectories to dense rewards: decode what the plan asks for, query the rewards, spread over the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.backbones import Backbone
from sdpo.loop.divergence import check_images
from sdpo.loop.reward_mix import RewardMix
from sdpo.method.algorithms.base import RewardPlan
from sdpo.method.dense_rewards import group_query_steps, query_steps, similarities, spread
from sdpo.method.types import Trajectories


@dataclass
class Scores:
    """What scoring found.

    Attributes:
        dense: a reward for every step, float32 [B, K, T].
        first: mixed reward of the first step's image where it was queried, [B, K], else None.
        last: mixed reward of the last step's image, [B, K].
        raw: mean raw score of the last step's images, by reward.
        queries: images that were scored.
    """

    dense: Tensor
    first: Tensor | None
    last: Tensor
    raw: dict[str, Tensor]
    queries: int


Gather = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


class Scorer:
    """Scores an epoch's trajectories part by part, as they are sampled: remote rewards work while sampling goes on.

    Decodes and scores the images that the plan asks for, each once, and gives every step its reward. `anchors` and
    `group_anchors` ask for three images a trajectory (fewer where steps coincide) and spread; `all` asks for every
    step; `final` asks for the last and gives the other steps 0. Where branches share the first step, its image is asked
    for once a group.

    Args:
        backbone: decodes.
        mix: the rewards.
        plan: which steps are scored.
        decode_batch: images decoded in one call.
        batch_size: images that exist at once, and reach the rewards in one call.
        gather: collects raw scores from all processes, for running statistics.
    """

    def __init__(
        self,
        backbone: Backbone,
        mix: RewardMix,
        plan: RewardPlan,
        *,
        decode_batch: int = 32,
        batch_size: int = 64,
        gather: Gather = lambda scores: scores,
    ) -> None:
        self._backbone = backbone
        self._mix = mix
        self._plan = plan
        self._spreads = plan in ("anchors", "group_anchors")
        self._decode_batch = decode_batch
        self._batch_size = batch_size
        self._gather = gather
        # Of each part: the cosines (where rewards are spread), the steps asked for, and which image each of these is.
        self._parts: list[tuple[Tensor | None, Tensor, Tensor]] = []
        self._pending: list[Callable[[], dict[str, Tensor]]] = []
        self._queries = 0
        self._num_steps = 0

    def add(self, part: Trajectories) -> None:
        """Decode what the plan asks for of B groups, and begin to score it.

        Raises:
            DivergenceError: if an image is not finite: the rewards are not to blame.
            RewardError: if a reward that is not remote fails.
        """
        x0 = part.x0
        assert x0 is not None, "trajectories are scored once"
        groups, branches, steps = x0.shape[:3]
        self._num_steps = steps
        wanted = self._wanted(x0)  # [B, K, Q]
        # Each wanted image as one number, so that coinciding steps are decoded and scored once.
        group = torch.arange(groups, device=x0.device)[:, None, None]
        branch = torch.arange(branches, device=x0.device)[:, None].expand_as(wanted)
        if part.shared_first_step:
            branch = branch.masked_fill(wanted == 0, 0)
        unique, where = ((group * branches + branch) * steps + wanted).unique(return_inverse=True)
        for chosen in unique.split(self._batch_size):
            latents = x0.flatten(0, 2)[chosen]
            images = torch.cat([self._backbone.decode(chunk) for chunk in latents.split(self._decode_batch)])
            owner = (chosen // (branches * steps)).tolist()
            prompts, metadata = [part.prompts[i] for i in owner], [part.metadata[i] for i in owner]
            check_images(images, prompts)
            self._pending.append(self._mix.start(images, prompts, metadata))
        cosines = similarities(x0, wanted) if self._spreads else None
        if cosines is not None and self._plan == "group_anchors":
            cosines = cosines.mean(1, keepdim=True).expand_as(cosines)
        self._parts.append((cosines, wanted, self._queries + where))
        self._queries += len(unique)

    def _wanted(self, x0: Tensor) -> Tensor:
        """Steps of each trajectory that are scored, int64 [B, K, Q]."""
        groups, branches, steps = x0.shape[:3]
        if self._spreads:
            return query_steps(x0) if self._plan == "anchors" else group_query_steps(x0)
        if self._plan == "all":
            return torch.arange(steps, device=x0.device).expand(groups, branches, steps)
        return torch.full((groups, branches, 1), steps - 1, device=x0.device)

    def finish(self) -> Scores:
        """The scores of all parts, in order.

        Raises:
            RewardError: if a remote reward failed.
        """
        arrived = [wait() for wait in self._pending]
        raw = {name: torch.cat([scores[name] for scores in arrived]) for name in arrived[0]}
        self._mix.observe(self._gather(raw))
        mixed = self._mix.combine(raw)
        last = torch.cat([where[..., 1 if self._spreads else -1] for _, _, where in self._parts])
        first = torch.cat([where[..., 0] for _, _, where in self._parts])
        return Scores(
            dense=torch.cat([self._dense(cosines, wanted, mixed[where]) for cosines, wanted, where in self._parts]),
            first=None if self._plan == "final" else mixed[first],
            last=mixed[last],
            raw={name: values[last].mean() for name, values in raw.items()},
            queries=self._queries,
        )

    def _dense(self, cosines: Tensor | None, wanted: Tensor, queried: Tensor) -> Tensor:
        """A reward for every step, [B, K, T], from the queried ones, [B, K, Q]."""
        if cosines is not None:
            return spread(cosines, wanted, queried)
        if self._plan == "all":
            return queried
        others = queried.new_zeros(*queried.shape[:2], self._num_steps - 1)
        return torch.cat([others, queried], dim=-1)
