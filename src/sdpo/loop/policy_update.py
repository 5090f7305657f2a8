"""Step-shuffled updates: every minibatch mixes steps, every step of every sample is visited once a pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo.loop.divergence import Watch
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy, PromptEmbeddings, to_device
from sdpo.method import gaussian, seeds
from sdpo.method.algorithms import Algorithm
from sdpo.method.denoisers import Denoiser
from sdpo.method.types import StepBatch, Trajectories, TrajectoryBatch


@dataclass(frozen=True)
class UpdateSettings:
    """What an epoch's update needs to know; batch sizes are those of this process.

    Attributes:
        batch_size: groups an optimizer step.
        micro_batch: groups a network call; changes speed and memory only, if below float32 sampling has the same.
        inner_epochs: passes over the trajectories, each with its own order of steps; batches keep their members.
        timestep_fraction: share of each trajectory's shuffled steps that is visited.
        kl_weight: weight of KL(policy ‖ base model); 0 is off.
        seed: of the run.
        first_steps: visit only so many of each trajectory, from the noisiest on; None visits all.
        last_step: visit the last step too; there is nothing to learn where the step is deterministic, or where the
            credit rule gives it no return.
        step_shuffle: a random order of steps for each sample; else all go from the noisiest to the last.
        takes_trajectories: an optimizer step follows the whole trajectories of its groups, not one step of each.
        skip_nonfinite: count optimizer steps that were skipped because something was not finite.
    """

    batch_size: int
    micro_batch: int
    inner_epochs: int = 1
    timestep_fraction: float = 1.0
    kl_weight: float = 0.0
    seed: int = 0
    step_shuffle: bool = True
    first_steps: int | None = None
    last_step: bool = True
    takes_trajectories: bool = False
    skip_nonfinite: bool = False

    def optimizer_steps(self, groups: int, num_steps: int) -> int:
        """Optimizer steps of one epoch."""
        passes = 1 if self.takes_trajectories else self.visited_steps(num_steps)
        return self.inner_epochs * passes * (groups // self.batch_size)

    def visited_steps(self, num_steps: int) -> int:
        """Steps of each trajectory that one pass visits."""
        share = self.timestep_fraction * self.eligible_steps(num_steps)
        return max(1, math.ceil(share - 1e-9))  # 0.28 of 25 is 7.000000000000001 in floating point

    def eligible_steps(self, num_steps: int) -> int:
        """Steps among which a pass chooses."""
        count = num_steps if self.last_step else num_steps - 1
        return count if self.first_steps is None else min(count, self.first_steps)


class Updater:
    """Makes the losses of an epoch's minibatches and has the optimizer step after each.

    Args:
        policy: trained.
        algorithm: its loss.
        settings: see there.
        optimization: of the policy's trainable parameters.
    """

    def __init__(
        self, policy: Policy, algorithm: Algorithm[Any], settings: UpdateSettings, optimization: Optimization
    ) -> None:
        self.policy = policy
        self.algorithm = algorithm
        self.settings = settings
        self.optimization = optimization
        self.watch = Watch([])  # of the last epoch

    def run(
        self,
        trajectories: Trajectories,
        advantages: Tensor,
        denoiser: Denoiser,
        embeddings: PromptEmbeddings,
        epoch: int,
    ) -> dict[str, Tensor]:
        """One epoch's optimizer steps.

        Args:
            trajectories: B groups, in the order in which batches take them.
            advantages: [B, K, T].
            denoiser: the schedule they were sampled on.
            embeddings: of their prompts.
            epoch: numbers the shuffles.

        Returns:
            Metrics as device tensors, averaged over the epoch's optimizer steps, 0 where none was made. `watch` then
            knows what was not finite; such a step is left out where the optimizer can: fused AdamW reads `found_inf`
            on the device.
        """
        size = self.settings.batch_size
        groups, steps = len(trajectories.prompts), trajectories.num_steps
        batch = _Epoch(trajectories, advantages, denoiser, embeddings, embeddings.rows(trajectories.prompts))
        self.watch = Watch(trajectories.prompts)
        sums: dict[str, Tensor] = {}
        done: list[Tensor] = []  # whether each optimizer step was made
        on_policy: Tensor | None = None
        for inner in range(self.settings.inner_epochs):
            order = self._step_order(trajectories, epoch, inner)  # [B, T], on the host
            whole = self.settings.takes_trajectories
            for j in range(1 if whole else self.settings.visited_steps(steps)):
                for start in range(0, groups, size):
                    rows = range(start, start + size)
                    metrics, deviation = self._accumulate(batch, rows, None if whole else order[:, j])
                    norm = self.optimization.step(self.watch)
                    done.append(norm.isfinite())
                    if on_policy is None:
                        # Before the first update both policies are the same; what is left is rounding.
                        on_policy = torch.where(done[0], deviation, 0.0)
                    for name, value in {**metrics, "grad_norm": norm}.items():
                        value = torch.where(done[-1], value, 0.0)
                        sums[name] = sums[name] + value if name in sums else value
        made = torch.stack(done).sum()
        # Without a step all are 0: the scaler lowers its scale, and the next epoch goes on.
        means = {name: self.optimization.all_reduce(value / made.clamp(min=1)) for name, value in sums.items()}
        if self.settings.skip_nonfinite or self.optimization.scaler.is_enabled():
            means["skipped_steps"] = len(done) - made
        assert on_policy is not None, "an epoch has at least one minibatch"
        means["on_policy_log_ratio"] = self.optimization.all_reduce(on_policy)
        return means

    def _step_order(self, trajectories: Trajectories, epoch: int, inner: int) -> Tensor:
        """Each sample's own random permutation of its eligible steps, [B, at most T], on the host."""
        steps = self.settings.eligible_steps(trajectories.num_steps)
        if not self.settings.step_shuffle:
            return torch.arange(steps).expand(len(trajectories.prompts), steps)
        indices = trajectories.sample_index.tolist()
        orders = [seeds.permutation(steps, self.settings.seed, epoch, i, f"order {inner}") for i in indices]
        return torch.stack(orders)

    def _accumulate(self, epoch: _Epoch, rows: range, step_of_row: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients of one minibatch, micro-batch by micro-batch; returns metrics and the largest |log-ratio|.

        Args:
            epoch: of which it is a part.
            rows: its groups.
            step_of_row: the step that each group of the epoch is at, [B]; None takes all steps of all.
        """
        sums: dict[str, Tensor] = {}
        deviations = []
        for start in range(rows.start, rows.stop, self.settings.micro_batch):
            micro = slice(start, min(start + self.settings.micro_batch, rows.stop))
            share = (micro.stop - micro.start) / len(rows)
            last = micro.stop == rows.stop
            if step_of_row is None:
                metrics, deviation = self._trajectory_gradients(epoch, micro, share, last)
            else:
                metrics, deviation = self._step_gradients(epoch, micro, step_of_row[micro], share, last)
            deviations.append(deviation)
            for name, value in metrics.items():
                sums[name] = sums[name] + share * value if name in sums else share * value
        return sums, torch.stack(deviations).max()

    def _step_gradients(
        self, epoch: _Epoch, rows: slice, step_of_row: Tensor, share: float, last: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Adds the gradients of one step of each row, times the row's share of the minibatch."""
        batch, kl = self._step_batch(epoch, rows, step_of_row)
        output = self.algorithm.loss(batch)
        loss, metrics = output.loss, output.metrics
        if kl is not None:
            loss = loss + self.settings.kl_weight * kl
            metrics["kl_to_base"] = kl.detach()
        self.watch.add(rows, step_of_row, batch.log_prob, loss)
        self.optimization.backward(loss * share, self.watch, last)
        return metrics, (batch.log_prob.detach() - batch.old_log_prob).abs().max()

    def _trajectory_gradients(
        self, epoch: _Epoch, rows: slice, share: float, last: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Adds the gradients of whole trajectories, at the memory of one step.

        By the chain rule ∂loss/∂θ = Σ_i (∂loss/∂ℓ_i) ∂ℓ_i/∂θ: the log-probabilities of all steps without gradient give
        the first factors exactly, whatever the loss; then each step is evaluated again, and its part added.
        """
        groups, steps = rows.stop - rows.start, epoch.trajectories.num_steps
        visited = [torch.full((groups,), step) for step in range(self.settings.eligible_steps(steps))]
        old, mask = epoch.trajectories.log_prob[rows], epoch.trajectories.stochastic.float()
        log_prob = old.clone()  # also of a last step that is not visited
        with torch.no_grad():
            for step, step_of_row in enumerate(visited):
                log_prob[:, :, step] = self._step_batch(epoch, rows, step_of_row)[0].log_prob
        deviation = (log_prob - old).abs().max()
        log_prob.requires_grad_()
        mask[len(visited) :] = 0
        output = self.algorithm.loss(TrajectoryBatch(log_prob, old, epoch.advantages[rows][:, :, 0], mask))
        (factors,) = torch.autograd.grad(output.loss, log_prob)
        kls = []
        for step, step_of_row in enumerate(visited):
            batch, kl = self._step_batch(epoch, rows, step_of_row)
            loss = (factors[:, :, step] * batch.log_prob).sum()
            if kl is not None:
                loss = loss + self.settings.kl_weight * kl / len(visited)
                kls.append(kl.detach())
            self.watch.add(rows, step_of_row, batch.log_prob, output.loss)
            self.optimization.backward(loss * share, self.watch, last and step + 1 == len(visited))
        if kls:
            output.metrics["kl_to_base"] = torch.stack(kls).mean()
        return output.metrics, deviation

    def _step_batch(self, epoch: _Epoch, rows: slice, step_of_row: Tensor) -> tuple[StepBatch, Tensor | None]:
        """One step of each row under the current policy, all branches in one network call; and KL to the base model."""
        data = epoch.trajectories
        device, branches = data.states.device, data.log_prob.shape[1]
        group, branch, place = network_rows(step_of_row, branches, data.shared_first_step)
        group, branch, steps = (to_device(t, device) for t in (group, branch, step_of_row))
        states, each = data.states[rows], torch.arange(len(step_of_row), device=device)
        x, own = states[group, branch, steps[group]], steps[group]
        conditioning = epoch.embeddings.take(epoch.prompt_rows[rows][group])
        base: Tensor | None = None
        # First: a sharded network's weights, written over and back, are gathered in order only in a forward pass.
        wanted = self.settings.kl_weight > 0 or self.algorithm.needs_reference
        if wanted and torch.is_grad_enabled():  # not by the pass that only takes log-probabilities
            with torch.no_grad(), self.policy.backbone.reference():
                base = self.policy.transition(epoch.denoiser, x, own, conditioning).mean
        transition = self.policy.transition(epoch.denoiser, x, own, conditioning)
        mean, std = transition.mean, transition.std
        if place is not None:
            place = to_device(place, device)
            mean, std, base = mean[place], std[place], None if base is None else base[place]
        following = states[each, :, steps + 1].flatten(0, 1)

        def log_prob(of: Tensor) -> Tensor:
            return gaussian.log_prob(following, of, std).unflatten(0, (-1, branches))

        batch = StepBatch(
            log_prob=log_prob(mean),
            old_log_prob=data.log_prob[rows][each, :, steps],
            advantage=epoch.advantages[rows][each, :, steps],
            step_index=steps,
            mask=data.stochastic[steps].float(),
            reference_log_prob=log_prob(base) if base is not None and self.algorithm.needs_reference else None,
        )
        if base is None or self.settings.kl_weight == 0:
            return batch, None
        return batch, gaussian.kl_divergence(mean, base, std).mean()


@dataclass(frozen=True)
class _Epoch:
    """What every minibatch of an epoch is taken from."""

    trajectories: Trajectories
    advantages: Tensor  # [B, K, T]
    denoiser: Denoiser
    embeddings: PromptEmbeddings
    prompt_rows: Tensor  # of the B prompts


def network_rows(step_of_row: Tensor, branches: int, shared_first_step: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Which latents of n groups, each at its own step, the network must see.

    At the first step all branches of a group have the same latent; it is evaluated once where sampling did so too.

    Args:
        step_of_row: int64 [n].
        branches: K.
        shared_first_step: see `Trajectories`.

    Returns:
        Group and branch of each of M latents, int64 [M]; and for each of the n K latents, in order, which of these it
        is, or None where they are the same.
    """
    counts = torch.full_like(step_of_row, branches)
    if shared_first_step:
        counts[step_of_row == 0] = 1
    group = torch.arange(len(step_of_row)).repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    branch = torch.arange(len(group)) - first[group]
    if len(group) == len(step_of_row) * branches:
        return group, branch, None
    place = first[:, None] + torch.minimum(torch.arange(branches), counts[:, None] - 1)
    return group, branch, place.flatten()
