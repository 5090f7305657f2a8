"""Samples groups that branch at one step: one prefix a group, K noises at the step, then K continuations.

Sources: TempFlow-GRPO (arXiv 2508.04324), MixGRPO (arXiv 2507.21802), G²RPO (arXiv 2510.01982), E-GRPO (arXiv
2601.00423).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo.loop.policy import Policy, PromptEmbeddings, to_device
from sdpo.loop.rollout import slices
from sdpo.method import gaussian, seeds
from sdpo.method.branching import Branching
from sdpo.method.denoisers import Denoiser, Transition
from sdpo.method.types import BranchPoints, Trajectories
from sdpo.prompts import Prompt


@dataclass(frozen=True)
class BranchedRollout:
    """Samples groups of K branches that part at one step.

    Attributes:
        policy: the sampling policy.
        embeddings: the embeddings of the prompts.
        branching: where the branches part, and what follows.
        denoiser: the schedule of T steps.
        following: the steps after the one at which branches part: `denoiser`, or the same schedule without noise.
        branches: K.
        seed: the run's seed.
    """

    policy: Policy
    embeddings: PromptEmbeddings
    branching: Branching
    denoiser: Denoiser
    following: Denoiser
    branches: int
    seed: int

    def __call__(
        self, prompts: Sequence[Prompt], sample_index: Sequence[int], epoch: int, micro_batch: int
    ) -> Iterator[Trajectories]:
        """Sample B groups, a micro-batch at a time.

        A group's step and noise come from (seed, epoch, global sample index) alone.

        Args:
            prompts: B prompts.
            sample_index: the global sample indices of the B groups.
            epoch: the epoch, from 1.
            micro_batch: groups a network call, which affects speed and memory only.

        Yields:
            Trajectories of at most `micro_batch` groups, in order, recorded at the step at which their branches part.
        """
        for rows in slices(len(prompts), micro_batch):
            chosen, index = prompts[rows], sample_index[rows]
            step = self.branching.draw(self.seed, epoch, index)
            points = BranchPoints(step, self.branching.seen(step))
            states, x0, log_prob = self._sample(
                [p.text for p in chosen], [(self.seed, epoch, i) for i in index], points
            )
            yield Trajectories(
                prompts=[p.text for p in chosen],
                metadata=[p.metadata for p in chosen],
                sample_index=torch.tensor(list(index)),
                states=states,
                log_prob=log_prob,
                stochastic=self.denoiser.stochastic,
                x0=x0,
                shared_first_step=True,
                branched=points,
            )

    def _sample(
        self, texts: Sequence[str], keys: Sequence[tuple[int, ...]], points: BranchPoints
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample n groups.

        Args:
            texts: n prompts.
            keys: the beginning of the keys from which the draws of the n groups come.
            points: the steps of the n groups.

        Returns:
            x_i and x_{i+1} of each branch, [n, K, 2, C, H, W], the predicted clean latents from step i on,
            [n, K, W, C, H, W], and the log-probabilities of step i, [n, K, 1].
        """
        groups, branches, device = len(texts), self.branches, self.policy.backbone.device
        # Made outside of inference mode, as the update takes gradients at these latents.
        states = torch.empty(groups, branches, 2, *self.policy.backbone.latent_shape, device=device)
        x0 = torch.zeros_like(states[:, :, :1]).repeat(1, 1, int(points.seen.max()), 1, 1, 1)
        start, noise = self._draw_noise(keys, points)
        places = self.embeddings.rows(texts)
        x = self._prefix(start, noise, points.step, places)
        states[:, :, 0] = x[:, None]
        # All groups in one call, each at its own step: the update makes the same call, so that before the first update
        # the log-ratio is exactly 0.
        transition = self._transition(self.denoiser, x, points.step, places)
        x0[:, :, 0] = transition.x0[:, None]
        at = to_device(points.step, device)
        with self.policy.no_gradient():
            everyone = torch.arange(groups, device=device).repeat_interleave(branches)
            parted, own = transition[everyone], noise[at, torch.arange(groups, device=device)].flatten(0, 1)
            following = gaussian.sample(parted.mean, parted.std, own)
            density = gaussian.log_prob(following, parted.mean, parted.std)
        states[:, :, 1] = following.unflatten(0, (-1, branches))
        self._continue(states[:, :, 1], noise, points, places, x0)
        return states, x0, density.clone().unflatten(0, (-1, branches))[..., None]

    def _prefix(self, x: Tensor, noise: Tensor, step: Tensor, places: Tensor) -> Tensor:
        """Walk one trajectory a group to the group's own step.

        Args:
            x: x_0, [n, C, H, W].
            noise: [T−1, n, K, C, H, W], of which the first branch's is used.
            step: the step of each group, int64 [n], on the CPU.
            places: the places of the n prompts among the embeddings, int64 [n].

        Returns:
            x_i of each group, [n, C, H, W].
        """
        for number in range(int(step.max())):
            on_cpu = (step > number).nonzero().flatten()
            rows = to_device(on_cpu, x.device)
            transition = self._transition(self.denoiser, x[rows], torch.full_like(on_cpu, number), places[rows])
            with self.policy.no_gradient():
                drawn = gaussian.sample(transition.mean, transition.std, noise[number, rows, 0])
                x = x.index_copy(0, rows, drawn)
        return x

    def _continue(self, x: Tensor, noise: Tensor, points: BranchPoints, places: Tensor, x0: Tensor) -> None:
        """Walk all branches on, and record their predicted clean latents.

        Args:
            x: x_{i+1}, [n, K, C, H, W].
            noise: [T−1, n, K, C, H, W].
            points: the steps of the n groups.
            places: the places of the n prompts among the embeddings, int64 [n].
            x0: receives the predicted clean latents that follow x̂_i, [n, K, W, C, H, W].
        """
        for offset in range(1, x0.shape[2]):
            on_cpu = (points.seen > offset).nonzero().flatten()
            rows, step = to_device(on_cpu, x.device), points.step[on_cpu] + offset
            each, each_step = rows.repeat_interleave(self.branches), step.repeat_interleave(self.branches)
            transition = self._transition(self.following, x[rows].flatten(0, 1), each_step, places[each])
            x0[rows, :, offset] = transition.x0.unflatten(0, (-1, self.branches))
            if offset + 1 == x0.shape[2]:
                return
            with self.policy.no_gradient():
                # The last step of a trajectory draws nothing: no x̂ follows.
                at = to_device(step.clamp(max=len(noise) - 1), x.device)
                drawn = gaussian.sample(transition.mean, transition.std, noise[at, rows].flatten(0, 1))
                x = x.index_copy(0, rows, drawn.unflatten(0, (-1, self.branches)))

    def _transition(self, denoiser: Denoiser, x: Tensor, step: Tensor, places: Tensor) -> Transition:
        """Evaluate the network once for N latents, [N, C, H, W], each at its own step, int64 [N] on the CPU."""
        with self.policy.no_gradient():
            conditioning = self.embeddings.take(places)
            return self.policy.transition(denoiser, x, to_device(step, x.device), conditioning)

    def _draw_noise(self, keys: Sequence[tuple[int, ...]], points: BranchPoints) -> tuple[Tensor, Tensor]:
        """Draw the starting latents and the noise of n groups.

        Args:
            keys: the beginning of the keys from which the draws of the n groups come.
            points: the steps of the n groups.

        Returns:
            x_0 of each group, [n, C, H, W], and the noise of each step but the last, [T−1, n, K, C, H, W], on the
            device. It is 0 after the step at which branches part where nothing is drawn there.
        """
        shape, device = self.policy.backbone.latent_shape, self.policy.backbone.device
        start = seeds.normal(shape, [(*key, "start") for key in keys])
        noise = torch.zeros(self.denoiser.num_steps - 1, len(keys), self.branches, *shape)
        for group, (key, parts_at, seen) in enumerate(
            zip(keys, points.step.tolist(), points.seen.tolist(), strict=True)
        ):
            for step in range(parts_at + seen - 1):
                if step > parts_at and self.branching.after == "none":
                    break
                apart = step == parts_at or (step > parts_at and self.branching.after == "independent")
                own = self.branches if apart else 1
                noise[step, group] = seeds.normal((own, *shape), [(*key, f"step {step}")])[0]
        return to_device(self.denoiser.initial_scale * start, device), to_device(noise, device)
