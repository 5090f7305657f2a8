"""The cost of a run's evaluations in images, reward queries and network evaluations."""

from __future__ import annotations

from dataclasses import dataclass

from sdpo.config import Config
from sdpo.estimate.model_sizes import model_facts
from sdpo.evaluation.monitors import DRIFT_IMAGES
from sdpo.evaluation.prompt_lists import PromptLists, prompt_lists


@dataclass(frozen=True)
class EvaluationCost:
    """The cost of one evaluation or of several, over all processes.

    Attributes:
        images: images that rewards score.
        queries: scores.
        evaluations: network evaluations.
    """

    images: int
    queries: int
    evaluations: int

    def times(self, count: int) -> EvaluationCost:
        """The cost of `count` such evaluations."""
        return EvaluationCost(self.images * count, self.queries * count, self.evaluations * count)

    def plus(self, other: EvaluationCost) -> EvaluationCost:
        """The cost of both."""
        return EvaluationCost(
            self.images + other.images, self.queries + other.queries, self.evaluations + other.evaluations
        )


def evaluation_cost(config: Config, prompts: PromptLists, full: bool) -> EvaluationCost:
    """Count what one evaluation costs, at most.

    Args:
        config: a configuration whose references have been checked.
        prompts: the prompts of the run.
        full: whether the evaluation is one at the ends of the run: on more images, of the unseen prompts too, and by
            both samplers, unless the model's own sampler turns out to be the training sampler.
    """
    evaluate = config.evaluate
    each = evaluate.images_per_prompt if full else evaluate.images_between
    scored, drawn = len(prompts.evaluated) * each, len(prompts.evaluated) * max(each, evaluate.monitored)
    if full:
        others = len(prompts.unseen) * each
        both = len(prompts.evaluated) * evaluate.images_between if evaluate.eta != config.sample.eta else 0
        scored, drawn = scored + others + both, drawn + others + both
    guided = config.sample.guidance_scale not in (None, 1) and not model_facts(config.model.path).embeds_guidance
    steps = sum(evaluate.steps)
    # The drift from the base model takes two evaluations at each step of some trajectories.
    drift = 2 * min(DRIFT_IMAGES, len(prompts.evaluated) * evaluate.monitored)
    rewards = len(dict.fromkeys([*config.rewards, *evaluate.observers]))
    images = scored * len(evaluate.steps)
    return EvaluationCost(images, images * rewards, (drawn + drift) * steps * (2 if guided else 1))


def describe_evaluations(config: Config) -> str:
    """Say what the evaluations of a run will cost, in a line that YAML takes for a comment."""
    prompts, every = prompt_lists(config), config.evaluate.every
    between = len(range(every, config.epochs, every)) if every else 0
    ends = 3 if config.lora is not None and config.lora.path is not None else 2  # the bare base model too
    end = evaluation_cost(config, prompts, full=True)
    total = end.times(ends).plus(evaluation_cost(config, prompts, full=False).times(between))
    cut = prompts.describe_cut(config.evaluate.max_prompts)
    return (
        f"# evaluations: {ends} at the ends of {end.images} images each, {between} in between; at most {total.images} "
        f"images, {total.queries} reward queries and {total.evaluations} network evaluations in all, beside those of "
        f"training" + (f"\n# {cut}" if cut else "")
    )
