"""Step-shuffled updates: every minibatch mixes steps, every step of every sample is visited once a pass.

Source: SDPO (Zhang et al., arXiv 2411.11727), step-shuffled updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdpo.loop.collectives import Collectives
from sdpo.loop.divergence import FiniteWatch
from sdpo.loop.optimizer import Optimization
from sdpo.loop.policy import Policy, PromptEmbeddings
from sdpo.loop.step_batch import EpochData, KLForm, StepEvaluator
from sdpo.loop.update_result import Metrics, StepMetrics, UpdateResult, check_update
from sdpo.loop.visits import Visits
from sdpo.method.algorithms import Algorithm
from sdpo.method.denoisers import Denoiser
from sdpo.method.types import Trajectories, TrajectoryBatch


@dataclass(frozen=True)
class UpdateSettings:
    """The settings of an epoch's update on one process.

    Attributes:
        batch_size: groups an optimizer step, on this process.
        visits: which steps are visited, and in which order.
        kl_weight: weight of KL(policy ‖ reference model); 0 switches it off.
        kl_form: the scale of that divergence.
        skip_nonfinite: count the optimizer steps that were skipped because a value was not finite.
    """

    batch_size: int
    visits: Visits = Visits()
    kl_weight: float = 0.0
    kl_form: KLForm = "transition"
    skip_nonfinite: bool = False


class PolicyUpdate:
    """Makes the losses of an epoch's minibatches, and an optimizer step after each.

    Args:
        policy: the policy that is trained.
        algorithm: the objective.
        settings: the settings of the update.
        optimization: the optimizer of the policy's trainable parameters.
    """

    def __init__(
        self, policy: Policy, algorithm: Algorithm[Any], settings: UpdateSettings, optimization: Optimization
    ) -> None:
        self.policy = policy
        self.algorithm = algorithm
        self.settings = settings
        self.optimization = optimization
        self._evaluate = StepEvaluator(policy, settings.kl_form)

    def run(
        self,
        trajectories: Trajectories,
        advantages: Tensor,
        denoiser: Denoiser,
        embeddings: PromptEmbeddings,
        epoch: int,
        micro_batch: int,
    ) -> UpdateResult:
        """Make one epoch's optimizer steps.

        Steps whose minibatch is not finite are skipped where the optimizer can do so: fused AdamW reads `found_inf` on
        the device.

        Args:
            trajectories: B groups, in the order in which batches take them.
            advantages: the advantages of all recorded steps, float32 [B, K, T].
            denoiser: the schedule that the trajectories were sampled on.
            embeddings: the embeddings of the prompts.
            epoch: the epoch, from 1; the order of steps depends on it.
            micro_batch: groups a network call. It affects speed and memory only; in half precision use the value that
                sampling used.
        """
        data = EpochData(trajectories, advantages, denoiser, embeddings, embeddings.rows(trajectories.prompts))
        watch = FiniteWatch(trajectories.prompts)
        steps_made = StepMetrics(self.optimization, self.settings.skip_nonfinite)
        on_policy: Tensor | None = None
        for rows, steps in self._minibatches(trajectories, epoch):
            metrics, deviation = self._accumulate(data, rows, steps, micro_batch, watch)
            steps_made.add(metrics, self.optimization.step(watch))
            if on_policy is None:
                # Before the first update both policies are the same; the difference is rounding.
                on_policy = torch.where(steps_made.made[0], deviation, 0.0)
        assert on_policy is not None, "an epoch has at least one minibatch"
        means = {**steps_made.means(), "on_policy_log_ratio": self.optimization.all_reduce(on_policy)}
        return UpdateResult(means, watch)

    def check(self, result: UpdateResult, epoch: int, processes: Collectives) -> None:
        """Refuse an update whose values are not finite, on all processes alike; warn of steps that may be skipped.

        Args:
            result: the outcome of the update.
            epoch: the epoch, for the warning.
            processes: the processes that share the epoch.

        Raises:
            NotFiniteError: naming the first value that is not finite, or the first such weight.
        """
        check_update(result, self.optimization, self.settings.skip_nonfinite, epoch, processes)

    def _minibatches(self, trajectories: Trajectories, epoch: int) -> Iterator[tuple[range, Sequence[Tensor | None]]]:
        """The groups of each minibatch, and what its optimizer step accumulates.

        Yields:
            The groups, and one entry for each step that they visit: the step at which each of the B groups is, [B].
            None stands for whole trajectories.
        """
        visits, size = self.settings.visits, self.settings.batch_size
        groups, steps = len(trajectories.prompts), trajectories.num_steps
        for inner in range(visits.inner_epochs):
            order = visits.order(trajectories.sample_index.tolist(), steps, epoch, inner)
            each: list[list[Tensor | None]] = [[None]]
            if not visits.whole_trajectories:
                each = [[order[:, j] for j in places] for places in visits.accumulations(steps)]
            for accumulated in each:
                for start in range(0, groups, size):
                    yield range(start, start + size), accumulated

    def _accumulate(
        self, data: EpochData, rows: range, steps: Sequence[Tensor | None], micro_batch: int, watch: FiniteWatch
    ) -> tuple[Metrics, Tensor]:
        """Add the gradients of one minibatch, step by step and micro-batch by micro-batch.

        The loss is the mean over the accumulated steps and the groups.

        Args:
            data: the epoch's data.
            rows: the groups of the minibatch.
            steps: for each accumulated step, the step at which each group of the epoch is, [B]; None takes all steps
                of each group.
            micro_batch: groups a network call.
            watch: receives the log-probabilities and losses.

        Returns:
            The metrics of the minibatch, and its largest |log-ratio|, a scalar.
        """
        sums: Metrics = {}
        deviations = []
        parts = [(step_of_row, start) for step_of_row in steps for start in range(rows.start, rows.stop, micro_batch)]
        for number, (step_of_row, start) in enumerate(parts, start=1):
            micro = slice(start, min(start + micro_batch, rows.stop))
            share = (micro.stop - micro.start) / len(rows) / len(steps)
            last = number == len(parts)
            if step_of_row is None:
                metrics, deviation = self._trajectory_gradients(data, micro, share, last, watch)
            else:
                metrics, deviation = self._step_gradients(data, micro, step_of_row[micro], share, last, watch)
            deviations.append(deviation)
            for name, value in metrics.items():
                sums[name] = sums[name] + share * value if name in sums else share * value
        return sums, torch.stack(deviations).max()

    def _step_gradients(
        self, data: EpochData, rows: slice, step_of_row: Tensor, share: float, last: bool, watch: FiniteWatch
    ) -> tuple[Metrics, Tensor]:
        """Add the gradients of one step of each row, times the rows' share of the minibatch."""
        needs_reference, needs_kl = self.algorithm.needs_reference, self.settings.kl_weight > 0
        batch, kl = self._evaluate(data, rows, step_of_row, reference=needs_reference, kl=needs_kl)
        output = self.algorithm.loss(batch)
        loss, metrics = output.loss, output.metrics
        if kl is not None:
            loss = loss + self.settings.kl_weight * kl
            metrics["kl_to_base"] = kl.detach()
        watch.add(rows, data.trajectories.schedule_steps(rows, step_of_row), batch.log_prob, loss)
        self.optimization.backward(loss * share, watch, last)
        return metrics, (batch.log_prob.detach() - batch.old_log_prob).abs().max()

    def _trajectory_gradients(
        self, data: EpochData, rows: slice, share: float, last: bool, watch: FiniteWatch
    ) -> tuple[Metrics, Tensor]:
        """Add the gradients of whole trajectories, at the memory of one step.

        By the chain rule ∂loss/∂θ = Σ_i (∂loss/∂ℓ_i) ∂ℓ_i/∂θ: the log-probabilities of all steps without gradient give
        the first factors exactly, whatever the loss; then each step is evaluated again, and its part added.
        """
        groups, steps = rows.stop - rows.start, data.trajectories.num_steps
        visited = [torch.full((groups,), step) for step in range(self.settings.visits.eligible(steps))]
        old, mask = data.trajectories.log_prob[rows], data.trajectories.stochastic.float()
        log_prob = old.clone()  # a last step that is not visited keeps its old value
        reference = torch.zeros_like(old) if self.algorithm.needs_reference else None
        with torch.no_grad():
            for step, step_of_row in enumerate(visited):
                batch, _ = self._evaluate(data, rows, step_of_row, reference=reference is not None)
                log_prob[:, :, step] = batch.log_prob
                if reference is not None and batch.reference_log_prob is not None:
                    reference[:, :, step] = batch.reference_log_prob
        deviation = (log_prob - old).abs().max()
        log_prob.requires_grad_()
        mask[len(visited) :] = 0
        advantage = data.advantages[rows][:, :, 0]
        output = self.algorithm.loss(TrajectoryBatch(log_prob, old, advantage, mask, reference))
        (factors,) = torch.autograd.grad(output.loss, log_prob)
        kls = []
        for step, step_of_row in enumerate(visited):
            batch, kl = self._evaluate(data, rows, step_of_row, kl=self.settings.kl_weight > 0)
            loss = (factors[:, :, step] * batch.log_prob).sum()
            if kl is not None:
                loss = loss + self.settings.kl_weight * kl / len(visited)
                kls.append(kl.detach())
            watch.add(rows, step_of_row, batch.log_prob, output.loss)
            self.optimization.backward(loss * share, watch, last and step + 1 == len(visited))
        if kls:
            output.metrics["kl_to_base"] = torch.stack(kls).mean()
        return output.metrics, deviation
