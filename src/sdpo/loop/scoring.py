"""Scores trajectories: decodes the images that the reward plan asks for, queries the rewards, makes them dense."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdpo.backbones import Backbone
from sdpo.errors import UserError
from sdpo.loop.clock import Clock
from sdpo.loop.divergence import check_images
from sdpo.loop.reward_mix import RewardMix
from sdpo.method.reward_plans import RewardPlan
from sdpo.method.types import Trajectories


@dataclass(frozen=True)
class Scores:
    """The scores of an epoch's trajectories, on one process.

    Attributes:
        dense: a reward for every step, float32 [B, K, T]; of groups that branch at one step a reward for that step and
            those that follow, [B, K, W], with zeros where a group was followed less far.
        first: mixed reward of the first step's image, of any shape; None where the plan does not ask for that image, or
            the trajectories do not show it.
        last: mixed reward of the last step's image, of any shape; None where the trajectories do not show it.
        raw: mean raw score of the last steps' images, by reward; empty where the trajectories do not show them.
        queries: number of images that were scored.
    """

    dense: Tensor
    first: Tensor | None
    last: Tensor | None
    raw: dict[str, Tensor]
    queries: int


GatherScores = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Concatenates raw scores by reward, [N] each, over all processes."""


class _Part(NamedTuple):
    """The queries of some groups, whose trajectories show the same number of images.

    Attributes:
        rows: the places of the groups among all of the epoch, int64 [B].
        shown: the number of images that each trajectory shows, T.
        steps: the steps that are scored, int64 [B, K, Q].
        similarity: the similarities by which the plan spreads the scores over steps; None where it needs none.
        image: the place of each query's image among all scored images, int64 [B, K, Q].
    """

    rows: Tensor
    shown: int
    steps: Tensor
    similarity: Tensor | None
    image: Tensor


class Scorer:
    """Scores an epoch's trajectories part by part, as they are sampled: remote rewards work while sampling goes on.

    Every image that the plan asks for is decoded and scored once, also where queries of a trajectory coincide. Where
    branches share the first step, its image is scored once a group.

    Args:
        backbone: the model, which decodes latents.
        mix: the rewards.
        plan: the reward plan.
        decode_batch: images a decoder call.
        batch_size: images that exist at once, and reach the rewards in one call.
        gather: concatenates raw scores over all processes, for the running statistics.
        clock: counts the seconds of decoding and of the rewards.
        shows_first: whether the first images of all trajectories are their first steps'.
        shows_last: whether the last images of all trajectories are their last steps'.
    """

    def __init__(
        self,
        backbone: Backbone,
        mix: RewardMix,
        plan: RewardPlan,
        *,
        decode_batch: int = 32,
        batch_size: int = 64,
        gather: GatherScores = lambda scores: scores,
        clock: Clock | None = None,
        shows_first: bool = True,
        shows_last: bool = True,
    ) -> None:
        self._backbone = backbone
        self._mix = mix
        self._plan = plan
        self._decode_batch = decode_batch
        self._batch_size = batch_size
        self._gather = gather
        self._clock = clock or Clock()
        self._shows_first = shows_first
        self._shows_last = shows_last
        self._parts: list[_Part] = []
        self._pending: list[Callable[[], dict[str, Tensor]]] = []
        self._queries = 0
        self._groups = 0

    def add(self, part: Trajectories) -> None:
        """Decode the images that the plan asks for, and begin to score them.

        Groups that branch at one step are scored as if their trajectories began there: the image of that step, which
        all branches share, is the first.

        Args:
            part: the trajectories of B groups, with x̂.

        Raises:
            DivergenceError: if an image is not finite.
            RewardError: if a reward that is not remote fails.
            UserError: if the plan returns steps of another shape or type than it must.
        """
        assert part.x0 is not None, "trajectories are scored once"
        if part.branched is None:
            self._add(part, torch.arange(len(part.prompts)), part.x0)
        else:
            for seen, rows in part.branched.rows_by_seen():
                self._add(part, rows, part.x0[rows, :, :seen])
        self._groups += len(part.prompts)

    def _add(self, part: Trajectories, rows: Tensor, x0: Tensor) -> None:
        """Decode and begin to score images of some groups of a part, int64 [B], which have x̂ [B, K, T, C, H, W]."""
        groups, branches, steps = x0.shape[:3]
        wanted = self._wanted(x0)  # [B, K, Q]
        # Each wanted image as one number, so that coinciding steps are decoded and scored once.
        group = torch.arange(groups, device=x0.device)[:, None, None]
        branch = torch.arange(branches, device=x0.device)[:, None].expand_as(wanted)
        if part.shared_first_step:
            branch = branch.masked_fill(wanted == 0, 0)
        unique, where = ((group * branches + branch) * steps + wanted).unique(return_inverse=True)
        for chosen in unique.split(self._batch_size):
            latents = x0.flatten(0, 2)[chosen]
            with self._clock("decode"):
                images = torch.cat([self._backbone.decode(chunk) for chunk in latents.split(self._decode_batch)])
            owner = rows[(chosen // (branches * steps)).cpu()].tolist()
            prompts, metadata = [part.prompts[i] for i in owner], [part.metadata[i] for i in owner]
            check_images(images, prompts)
            with self._clock("reward"):
                self._pending.append(self._mix.start(images, prompts, metadata))
        similarity = self._plan.similarity(x0, wanted)
        self._parts.append(_Part(self._groups + rows, steps, wanted, similarity, self._queries + where))
        self._queries += len(unique)

    def _wanted(self, x0: Tensor) -> Tensor:
        """The steps of each trajectory that are scored, int64 [B, K, Q]."""
        steps = self._plan.steps(x0)
        if steps.ndim != 3 or steps.shape[:2] != x0.shape[:2] or steps.dtype != torch.int64:
            raise UserError(
                f"the reward plan {type(self._plan).__name__} chose steps of shape {tuple(steps.shape)} and type "
                f"{steps.dtype}; return int64 of shape {tuple(x0.shape[:2])} and one more axis, the queries."
            )
        last = x0.shape[2] - 1
        ends = {self._plan.last_query: last} | ({} if self._plan.first_query is None else {self._plan.first_query: 0})
        legal = (steps >= 0) & (steps <= last)
        if not legal.all() or any((steps[..., column] != step).any() for column, step in ends.items()):
            raise UserError(
                f"the reward plan {type(self._plan).__name__} chose steps outside 0 … {last}, or another step in the "
                "column of the first or last step. Return steps from 0 to "
                f"{last}; first_query and last_query are the columns of step 0 and of the last step."
            )
        return steps

    def finish(self) -> Scores:
        """Wait for the scores of all parts, and return them in order.

        Raises:
            RewardError: if a remote reward failed.
            UserError: if the plan returns rewards of another shape than one for every step.
        """
        arrived = [wait() for wait in self._pending]
        raw = {name: torch.cat([scores[name] for scores in arrived]) for name in arrived[0]}
        self._mix.observe(self._gather(raw))
        mixed = self._mix.combine(raw)
        first, last = self._plan.first_query, self._query(self._plan.last_query)
        return Scores(
            dense=self._joined([self._dense(part, mixed[part.image]) for part in self._parts]),
            first=mixed[self._query(first)] if first is not None and self._shows_first else None,
            last=mixed[last] if self._shows_last else None,
            raw={name: values[last].mean() for name, values in raw.items()} if self._shows_last else {},
            queries=self._queries,
        )

    def _joined(self, dense: list[Tensor]) -> Tensor:
        """The rewards of all groups in order, [B, K, T], from those of each part."""
        shown = max(part.shown for part in self._parts)
        joined = dense[0].new_zeros(self._groups, dense[0].shape[1], shown)
        for part, rewards in zip(self._parts, dense, strict=True):
            joined[part.rows.to(joined.device), :, : part.shown] = rewards
        return joined

    def _query(self, column: int) -> Tensor:
        """The scored image behind one query of each trajectory, as an index, [B, K]."""
        return torch.cat([part.image[..., column] for part in self._parts])

    def _dense(self, part: _Part, queried: Tensor) -> Tensor:
        """A reward for every step, [B, K, T], from the queried ones, [B, K, Q]."""
        dense = self._plan.dense(queried, part.steps, part.similarity, part.shown)
        if dense.shape != (*queried.shape[:2], part.shown):
            raise UserError(
                f"the reward plan {type(self._plan).__name__} returned rewards of shape {tuple(dense.shape)}; return "
                f"one for every step, shape {(*queried.shape[:2], part.shown)}."
            )
        return dense
