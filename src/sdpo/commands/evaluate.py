"""`sdpo evaluate`: the scores of a model, or of a run's base and tuned model, at several numbers of steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo.assembly import build_model
from sdpo.assembly.model import load_model, load_tuned, matrix_precision, warn_of_truncated
from sdpo.assembly.rewards import load_rewards
from sdpo.backbones import PipelineBackbone
from sdpo.commands.target import open_target
from sdpo.config import Config
from sdpo.distributed.processes import Processes
from sdpo.errors import UserError
from sdpo.evaluation.choice import choose
from sdpo.evaluation.conditions import Conditions, differences
from sdpo.evaluation.evaluate import EvaluatedImages, evaluate
from sdpo.evaluation.record import ImageScores, Weights
from sdpo.loop.micro_batch_search import default_samples
from sdpo.prompts import Prompt, load_prompts
from sdpo.report.stats import paired_gain
from sdpo.rewards.base import PlacedReward
from sdpo.rewards.registry import REWARDS
from sdpo.run.directory import RunDirectory
from sdpo.run.environment import check_format
from sdpo.run.result import read_result
from sdpo.system.dotted_path import is_dotted

WRITTEN = ("prompts", "seeds", "base", "summary")
"""Keys of every result, by which its file is recognised."""


def default_output(target: str, eta: str | None = None, sweep: bool = False) -> Path | None:
    """The file for the result where the user names none; None for a model, whose result is only printed.

    Each sampler has its own file, so that the results by two of them can lie side by side.

    Args:
        target: a run's directory, or a model as `model.path` names it.
        eta: the sampler as for `evaluate_target`.
        sweep: whether the result is that of several strengths of the LoRA, which has a file of its own.

    Raises:
        UserError: if a newer version wrote the run, its configuration cannot be read, or `eta` names no sampler.
    """
    run = RunDirectory(Path(target))
    if not run.is_run:
        return None
    check_format(run)
    config = Config.of_run(run.config)
    return _output(run, config, _with_sampler(config, eta), sweep)


def _output(run: RunDirectory, config: Config, drawn: Config, sweep: bool = False) -> Path:
    """The file for the result.

    Args:
        run: the run's directory.
        config: the run's configuration.
        drawn: the configuration with the sampler that draws the images.
        sweep: whether the result is that of several strengths of the LoRA.
    """
    level = drawn.evaluate.eta
    own = level == config.evaluate.eta
    return run.evaluate_output(None if own else "own" if level is None else f"eta-{level:g}", sweep)


def evaluate_target(
    target: str,
    steps: list[int],
    prompts: str | None,
    rewards: list[str] | None,
    images_per_prompt: int,
    device: str = "auto",
    eta: str | None = None,
    max_prompts: int | None = None,
) -> tuple[dict[str, Any], Path | None]:
    """Score the base model and, for a run, the tuned one on the same prompts and seeds.

    Args:
        target: a run's directory, or a model as `model.path` names it.
        steps: the numbers of sampling steps.
        prompts: a named set or a file of prompts; None takes those that the run evaluates.
        rewards: names of rewards; None takes those that the run was trained on and observed by.
        images_per_prompt: images a prompt at each number of steps.
        device: a device as torch names it, or `auto` for the fastest.
        eta: the sampler: `own` for that of the pipeline's own call, `training` for the run's training sampler, or η of
            the training sampler; None takes the run's `evaluate.eta`.
        max_prompts: the largest number of prompts, a fixed choice of them; None takes all that `prompts` names, or
            `evaluate.max_prompts` of the run's own.

    Returns:
        The result (`prompts`, `seeds`, `conditions`, `weights`, `base`, `after`, `summary`), and the file to write it
        to by default; None for a model, which has no `after` either.

    Raises:
        UserError: if the target, the prompts or a reward cannot be loaded, or a reward fails.
    """
    found = open_target(target)
    scoring = Scoring.of(found.config, steps, prompts, rewards, images_per_prompt, device, eta, max_prompts)
    config, processes, names = scoring.config, scoring.processes, list(scoring.rewards)
    backbone = load_model(config, processes.device)
    warn_of_truncated(backbone, [p.text for p in scoring.prompts])
    base, conditions = scoring.scores(backbone)
    del backbone  # its memory is for the tuned model
    weights = {"base": Weights("base")}
    result: dict[str, Any] = {
        "prompts": base.prompts,
        "seeds": base.seeds,
        "conditions": {**conditions.as_json(), "steps": steps, "images_per_prompt": images_per_prompt},
        "sampler": conditions.text,
        "weights": weights,
        "base": base.as_json()["scores"],
    }
    if found.run is None:
        result["summary"] = {n: {str(s): {"base": base.mean(n, s)} for s in steps} for n in names}
        return _plain(result), None
    tuned, tuned_conditions = scoring.scores(load_tuned(config, found.run, processes.device))
    if different := differences(conditions, tuned_conditions):
        raise UserError(f"the base model's and the tuned model's images cannot be compared: {'; '.join(different)}")
    record = read_result(found.run, config)
    weights["after"] = Weights("trained", averaged=record is not None and record.averaged)
    result["after"] = tuned.as_json()["scores"]
    result["summary"] = {n: {str(s): _gain(base, tuned, n, s) for s in steps} for n in names}
    return _plain(result), _output(found.run, found.config, config)


def _plain(result: dict[str, Any]) -> dict[str, Any]:
    """The result with the weights as plain mappings."""
    return {**result, "weights": {name: dataclasses.asdict(weights) for name, weights in result["weights"].items()}}


def _prompts(config: Config, source: str | None, limit: int | None) -> list[Prompt]:
    """The prompts that are evaluated.

    Raises:
        UserError: if the prompts cannot be read.
    """
    own = config.evaluate.prompts if config.evaluate.prompts is not None else config.prompts.train
    if source is None and limit is None:
        limit = config.evaluate.max_prompts
    return choose(load_prompts(source if source is not None else own), limit)


def _with_sampler(config: Config, eta: str | None) -> Config:
    """The configuration with `evaluate.eta` as `--eta` names it.

    Raises:
        UserError: if the text is neither a sampler nor a number in 0 … 1.
    """
    if eta is None:
        return config
    named = {"own": None, "training": config.sample.eta}
    try:
        level = named[eta] if eta in named else float(eta)
    except ValueError as error:
        raise UserError(f"--eta {eta}: use own, training, or a number in 0 … 1") from error
    if level is not None and not 0 <= level <= 1:
        raise UserError(f"--eta {eta}: use own, training, or a number in 0 … 1")
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"eta": level})})


@dataclass(frozen=True)
class Scoring:
    """The settings that the base model and the tuned one are scored with.

    Attributes:
        config: the configuration of the target.
        prompts: the prompts.
        rewards: the rewards by name.
        steps: the numbers of sampling steps.
        images_per_prompt: images a prompt at each number of steps.
        processes: the processes of this launch.
    """

    config: Config
    prompts: Sequence[Prompt]
    rewards: Mapping[str, PlacedReward]
    steps: Sequence[int]
    images_per_prompt: int
    processes: Processes

    @classmethod
    def of(
        cls,
        config: Config,
        steps: Sequence[int],
        prompts: str | None,
        rewards: list[str] | None,
        images_per_prompt: int,
        device: str,
        eta: str | None,
        max_prompts: int | None,
    ) -> Scoring:
        """Collect the settings; the arguments are those of `evaluate_target`.

        Raises:
            UserError: if the prompts or a reward cannot be loaded, or `eta` names no sampler.
        """
        processes = Processes(device)
        drawn, names = _with_sampler(config, eta), rewards or _rewards_of_run(config)
        return cls(
            config=drawn,
            prompts=_prompts(drawn, prompts, max_prompts),
            rewards=load_rewards(drawn, names, processes.device),
            steps=steps,
            images_per_prompt=images_per_prompt,
            processes=processes,
        )

    def scores(self, backbone: PipelineBackbone) -> tuple[ImageScores, Conditions]:
        """Draw and score the images of a model; returns the scores and their conditions."""
        found, conditions = self.evaluated(backbone)
        return found.scores, conditions

    def evaluated(self, backbone: PipelineBackbone, monitored: int = 0) -> tuple[EvaluatedImages, Conditions]:
        """Draw and score the images of a model.

        Args:
            backbone: the model.
            monitored: images of each prompt that the monitors see; 0 measures none.

        Returns:
            The scores and monitors, and the conditions of the images.
        """
        micro_batch = default_samples(math.prod(backbone.latent_shape), self.processes.device)
        parts = build_model(self.config, self.processes, [p.text for p in self.prompts], backbone)
        with matrix_precision(self.config.model.tf32):
            drawing = parts.drawing(micro_batch)
            found = evaluate(
                drawing,
                self.prompts,
                self.rewards,
                steps=self.steps,
                images_per_prompt=self.images_per_prompt,
                monitored=monitored,
            )
        return found, drawing.conditions(drawing.sampler)


def _rewards_of_run(config: Config) -> list[str]:
    """The rewards that a run was trained on, and those that observed it.

    Raises:
        UserError: if one of them was an object in Python, which has no name to load it by.
    """
    for name in config.rewards:
        if name not in REWARDS and not is_dotted(name):
            raise UserError(
                f"this run's reward {name!r} was a Python object: name one with --reward; `sdpo rewards` lists them"
            )
    return [*config.rewards, *config.evaluate.observers]


def _gain(base: ImageScores, tuned: ImageScores, name: str, steps: int) -> dict[str, float | None]:
    """The means of both models, and the paired gain with its standard error."""
    gain = paired_gain(base.scores[name][steps], tuned.scores[name][steps])
    return {
        "base": base.mean(name, steps),
        "tuned": tuned.mean(name, steps),
        "gain": gain.mean,
        "standard_error": gain.standard_error if gain.images > 1 else None,
    }
