"""Measures how much of a policy gradient is signal: sample, find the reward's direction, record scores, combine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.assembly import Parts, build
from sdpo.assembly.gradient_update import gradient_decode_batch, probe_rewards
from sdpo.commands.signal.alternatives import FINAL, UNBIASED, Alternative, Alternatives, list_alternatives
from sdpo.commands.signal.checks import check_algorithm, check_groups, without_observers
from sdpo.commands.signal.groups import ScoredEpoch, factors_of_epochs, sample_epoch
from sdpo.commands.signal.measured import Measured, combine, measure
from sdpo.commands.signal.result import MEAN, Options, SignalResult
from sdpo.config import Config
from sdpo.distributed.processes import Processes
from sdpo.loop.reward_direction import RewardDirection
from sdpo.loop.reward_head import RewardHead
from sdpo.loop.score_vectors import ScoreRecorder, ScoreVectors
from sdpo.loop.visits import Visits
from sdpo.method.algorithms import Algorithm
from sdpo.method.augment import Augment
from sdpo.method.projection import RandomProjection
from sdpo.prompts import Prompt

Advance = Callable[[str, int, int], None]
"""Called with a phase, the work that was done since the last call, and the whole work of the phase."""


def measure_signal(
    config: Config, options: Options, advance: Advance = lambda phase, done, whole: None
) -> SignalResult:
    """Measure how much of a run's policy gradient is signal, at the weights that its training would start from.

    Args:
        config: the configuration of a run. Nothing is trained, evaluated or written.
        options: how the signal is measured.
        advance: is told of the progress.

    Raises:
        UserError: if the algorithm has no policy gradient whose groups can be compared, a part cannot be made, a reward
            fails, or a value is not finite.
    """
    start = time.perf_counter()
    check_algorithm(config)
    check_groups(options.groups)
    parts = build(without_observers(config), Processes(config.device))
    with parts.precision():
        return _Measurement(parts, options, advance).run(start)


class _Measurement:
    """One measurement: sample, find the reward's own direction, record the scores, combine them.

    Args:
        parts: the parts of the run.
        options: how the signal is measured.
        advance: is told of the progress.
    """

    def __init__(self, parts: Parts, options: Options, advance: Advance) -> None:
        self._parts = parts
        self._options = options
        self._advance = advance
        self._algorithm: Algorithm[Any] = parts.policy_update.algorithm
        self._visits: Visits = parts.policy_update.settings.visits
        idle = parts.backbone.idle_parameters()
        trained = parts.backbone.trainable_parameters()
        for name in idle:
            trained[name].requires_grad_(False)  # exactly 0 for every sample, so that nothing is lost
        self._parameters: list[nn.Parameter] = [p for name, p in trained.items() if name not in idle]
        self._size = sum(parameter.numel() for parameter in self._parameters)

    def run(self, start: float) -> SignalResult:
        """Make the measurement; `start` is the time at which it began."""
        choices = list_alternatives(self._algorithm, self._parts.denoiser.num_steps)
        steps = self._trained_steps(choices)
        epochs = self._sample(choices)
        names, directions = self._directions(len(epochs))
        scores = self._record(epochs, steps, directions)
        measured = self._combine(choices, epochs, scores, names)
        return SignalResult(
            config=self._parts.config,
            options=self._options,
            parameters=self._size,
            directions=list(measured[0].towards),
            measured=measured,
            left_out=choices.left_out,
            seconds=time.perf_counter() - start,
        )

    def _visits_of(self, alternative: Alternative) -> Visits:
        """The steps that an update by an alternative visits."""
        last = self._parts.denoiser.ends_random and alternative.algorithm.credit.trains_last_step
        return replace(self._visits, last_step=last)

    def _trained_steps(self, choices: Alternatives) -> list[int]:
        """The steps that any alternative learns from."""
        num_steps = self._parts.denoiser.num_steps
        count = max(self._visits_of(choice).eligible(num_steps) for choice in choices.legal)
        stochastic = self._parts.denoiser.stochastic.tolist()
        steps = [step for step in range(count) if stochastic[step]]
        return steps

    def _sample(self, choices: Alternatives) -> list[ScoredEpoch]:
        """Sample and score all groups, an epoch of training at a time."""
        plans = dict.fromkeys(choice.algorithm.reward_plan for choice in choices.legal)
        whole, size = self._options.groups, self._parts.batches.groups
        return [
            sample_epoch(
                self._parts,
                plans,
                epoch,
                min(size, whole - first),
                lambda done: self._advance("sampling", done, whole),
            )
            for epoch, first in enumerate(range(0, whole, size), start=1)
        ]

    def _directions(self, epochs: int) -> tuple[list[str], Tensor]:
        """The gradients of the reward at 1, 2 and T steps and of their mean; none where a reward has no gradient.

        The mean over the step counts comes last, as alternatives are ranked by it.

        Returns:
            The names of N directions, and the directions, float32 [N, P].
        """
        parts = self._parts
        rewards = list(parts.mix.rewards.values())
        if not all(reward.differentiable for reward in rewards):
            return [], torch.zeros(0, self._size, device=parts.backbone.device)
        probe_rewards(parts.mix.rewards, parts.prompts, parts.backbone.image_size, parts.backbone.device)
        head = RewardHead(
            parts.backbone,
            parts.mix,
            Augment(),
            lambda mixed: mixed,
            decode_batch=gradient_decode_batch(parts.config, parts.backbone.image_size),
        )
        counts = sorted({1, 2, parts.denoiser.num_steps})
        whole = self._options.direction_samples * len(counts)
        climb = RewardDirection(
            parts.policy, parts.optimization, head, parts.embeddings, parts.config.seed, parts.micro_batches.update
        )
        found = []
        prompts, indices = self._later_prompts(epochs)
        for count in counts:
            denoiser = parts.backbone.denoiser(count, parts.config.sample.eta)
            found.append(
                climb(
                    denoiser,
                    prompts,
                    indices,
                    epochs + count,
                    self._parameters,
                    lambda done: self._advance("gradient of the reward", done, whole),
                )
            )
        names = [f"{count} step{'s' * (count > 1)}" for count in counts]
        return [*names, MEAN], torch.stack([*found, torch.stack(found).mean(0)])

    def _later_prompts(self, epochs: int) -> tuple[list[Prompt], list[int]]:
        """The prompts that follow those of the sampled epochs, and a number for each."""
        prompts: list[Prompt] = []
        epoch = epochs
        while len(prompts) < self._options.direction_samples:
            epoch += 1
            prompts += self._parts.batches.deal(epoch)[0]
        chosen = prompts[: self._options.direction_samples]
        return chosen, list(range(len(chosen)))

    def _record(self, epochs: Sequence[ScoredEpoch], steps: Sequence[int], directions: Tensor) -> list[ScoreVectors]:
        """Compute the scores of all trajectories."""
        parts = self._parts
        scaler = parts.optimization.scaler
        recorder = ScoreRecorder(
            parts.policy,
            parts.backbone.network_module,
            self._parameters,
            RandomProjection(self._size, self._options.dimension, parts.config.seed, "signal"),
            directions,
            batch=parts.micro_batches.update * self._algorithm.branches,
            loss_scale=scaler.get_scale() if scaler.is_enabled() else 1.0,
        )
        whole = self._options.groups * self._algorithm.branches * len(steps)
        return [
            recorder.record(
                epoch.trajectories,
                parts.denoiser,
                parts.embeddings,
                steps,
                reference=self._algorithm.needs_reference,
                advance=lambda done: self._advance("gradients of log-probabilities", done, whole),
            )
            for epoch in epochs
        ]

    def _combine(
        self, choices: Alternatives, epochs: Sequence[ScoredEpoch], scores: Sequence[ScoreVectors], names: Sequence[str]
    ) -> list[Measured]:
        """Measure every alternative on the same scores."""
        projected = torch.cat([score.projected for score in scores])
        along = torch.cat([score.along for score in scores])

        def factors(choice: Alternative) -> Tensor:
            normalizer = self._parts.config.build_normalizer()
            return factors_of_epochs(epochs, scores, choice, normalizer, self._visits_of(choice), self._parts)

        reference = None if names else combine(factors(_reference(choices)), projected)
        measured = []
        for choice in choices.legal:
            measured.append(measure(choice, factors(choice), projected, along, names, reference))
            self._advance("combinations", 1, len(choices.legal))
        return measured


def _reference(choices: Alternatives) -> Alternative:
    """The alternative whose mean gradient stands in for the reward's own: unbiased for the final image's reward.

    With one step there is none but the run's own.
    """
    by_name = {choice.name: choice for choice in choices.legal}
    return by_name.get(UNBIASED) or by_name.get(FINAL) or choices.legal[0]
