"""What a configuration names, looked up without loading the model: rewards, prompts, stopping rules, a local model."""

from __future__ import annotations

from sdpo.assembly.checks import check_density, check_names
from sdpo.config import Config
from sdpo.estimate.model_sizes import peek
from sdpo.prompts import load_prompts


def ends_random(config: Config) -> bool:
    """Whether the last step of the schedule is stochastic, as far as the model's small files tell."""
    return peek(config.model.path).ends_random(config.model.scheduler)


def check_references(config: Config) -> None:
    """Refuse a configuration that names what does not exist.

    Raises:
        UserError: naming what is missing, or saying that the model's only step has nothing to learn from.
    """
    check_names(config)
    for source in (config.prompts.train, config.prompts.unseen):
        if source is not None:
            load_prompts(source)
    check_density(config, ends_random(config) or config.sample.num_steps > 1)
