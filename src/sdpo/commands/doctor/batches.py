"""The check that the numbers of a run go together: batches, warm-up, statistics of advantages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sdpo.assembly.prompt_statistics import describe_statistics
from sdpo.assembly.update import optimizer_steps
from sdpo.commands.doctor.finding import Finding
from sdpo.config import Config
from sdpo.estimate.preflight import ends_random
from sdpo.prompts import Prompt


def check_batches(config: Config, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """Check numbers that are legal, but may not do what the user wants.

    Args:
        config: the configuration of a run.
        prompts: the training prompts.
    """
    sample, train, algorithm = config.sample, config.train, config.build_algorithm()
    steps = optimizer_steps(config, ends_random(config))
    legal = [str(n) for n in range(1, train.batch_size + 1) if train.batch_size % n == 0][:8]
    yield Finding(
        "batches",
        "ok",
        f"an epoch has {sample.prompts_per_epoch} groups of {algorithm.branches} and {steps} optimizer steps of "
        f"{train.batch_size} groups; they divide over {', '.join(legal)} processes",
    )
    if train.warmup_steps >= steps * config.epochs:
        yield Finding(
            "warm-up",
            "WARN",
            f"train.warmup_steps ({train.warmup_steps}) is not less than the run's {steps * config.epochs} optimizer "
            "steps: the learning rate never reaches its value. Lower it",
        )
    if late := describe_statistics(config, len(prompts)):
        yield Finding("advantages", "WARN", late)
