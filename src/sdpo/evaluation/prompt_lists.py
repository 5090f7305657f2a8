"""The prompts of a run: those that are trained on, those that are evaluated, and unseen ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdpo.config import Config
from sdpo.evaluation.choice import choose
from sdpo.prompts import Prompt, load_prompts


@dataclass(frozen=True)
class PromptLists:
    """The prompts of a run.

    Attributes:
        train: the prompts that are trained on.
        evaluated: the prompts that every evaluation draws.
        unseen: the prompts that are drawn before the first and after the last epoch only; may be empty.
        left_out: the number of prompts that `evaluate.max_prompts` leaves out.
    """

    train: list[Prompt]
    evaluated: list[Prompt]
    unseen: list[Prompt]
    left_out: int = 0

    @property
    def texts(self) -> list[str]:
        """The texts of all prompts, each once."""
        return list(dict.fromkeys(p.text for p in [*self.train, *self.evaluated, *self.unseen]))

    def describe_cut(self, limit: int | None) -> str:
        """A sentence that says how many prompts evaluations leave out; empty where none is."""
        if not self.left_out:
            return ""
        return (
            f"evaluations draw a fixed choice of {len(self.evaluated)} prompts"
            f"{f' and {len(self.unseen)} unseen ones' if self.unseen else ''}, as evaluate.max_prompts={limit}; "
            f"{self.left_out} are left out"
        )


def prompt_lists(config: Config, train: Sequence[Prompt] | None = None) -> PromptLists:
    """Load the prompts of a run.

    Args:
        config: the configuration of the run.
        train: prompts that are trained on and evaluated, without unseen ones; None loads the configuration's.

    Raises:
        UserError: if a list of prompts cannot be read.
    """
    if train is not None:
        return PromptLists(list(train), list(train), [])
    seen, evaluate = load_prompts(config.prompts.train), config.evaluate
    evaluated = load_prompts(evaluate.prompts) if evaluate.prompts is not None else seen
    unseen = load_prompts(config.prompts.unseen) if config.prompts.unseen is not None else []
    kept = [choose(prompts, evaluate.max_prompts) for prompts in (evaluated, unseen)]
    left_out = len(evaluated) + len(unseen) - sum(map(len, kept))
    return PromptLists(seen, kept[0], kept[1], left_out)
