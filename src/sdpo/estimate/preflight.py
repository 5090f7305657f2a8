"""Checks that need no loaded model: the rewards, prompts, stopping rules and model that a configuration names."""

from __future__ import annotations

from sdpo.assembly.branching import no_deterministic_steps
from sdpo.assembly.checks import check_density, check_names
from sdpo.config import Config
from sdpo.estimate.model_sizes import model_facts


def ends_random(config: Config) -> bool:
    """Whether the last step of the schedule is stochastic, as far as the model's small files tell.

    Raises:
        UserError: if a file of a local model is damaged.
    """
    return model_facts(config.model.path).ends_random(config.model.scheduler)


def check_references(config: Config) -> None:
    """Reject a configuration that names a reward, prompts, a metric or a model that does not exist.

    Args:
        config: the configuration of a run.

    Raises:
        UserError: naming what is missing, or saying that the only step of the schedule is deterministic, or none is
            where the settings ask for that.
    """
    check_names(config)
    facts = model_facts(config.model.path)
    if config.sample.after_branch == "none" and not facts.can_be_deterministic(config.model.scheduler):
        raise no_deterministic_steps("every step of a consistency model draws fresh noise")
    check_density(config, ends_random(config) or config.sample.num_steps > 1)
