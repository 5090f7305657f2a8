"""Warns of steps with so little noise that their log-probability says hardly anything."""

from __future__ import annotations

from sdpo.assembly.update import visits
from sdpo.config import Config
from sdpo.config.branching_checks import branching_of
from sdpo.method.denoisers import Denoiser

QUIET = 0.05
"""A standard deviation below which a step is warned of: the gradient of its log-probability grows as the inverse."""

_LISTED = 4  # steps that a message names


def describe_quiet_steps(config: Config, denoiser: Denoiser) -> str:
    """Say which of the steps that the update visits have hardly any noise; empty where none does.

    Args:
        config: the configuration of a run.
        denoiser: the steps of its training sampler.
    """
    algorithm, visited = config.policy_algorithm(), visits(config, denoiser.ends_random)
    if algorithm is None or visited is None or not algorithm.needs_log_prob:
        return ""
    branching, deviations = branching_of(config.sample), denoiser.std.tolist()
    trained = range(visited.eligible(denoiser.num_steps)) if branching is None else branching.steps
    quiet = {step + 1: deviations[step] for step in trained if 0 < deviations[step] < QUIET}
    if not quiet:
        return ""
    listed = ", ".join(f"{step} ({std:.2g})" for step, std in list(quiet.items())[:_LISTED])
    more = ", …" if len(quiet) > _LISTED else ""
    first = min(quiet)
    fix = f"train.first_steps={first - 1} leaves them out" if first > 1 else "raise sample.eta"
    if branching is not None:
        fix = "let the branches part at noisier ones (sample.branch_at, or sample.branch_weights), or raise sample.eta"
    return (
        f"the noise of step {listed}{more} of {denoiser.num_steps} has a standard deviation below {QUIET:g}: the "
        f"gradient of its log-probability grows as 1/σ and is mostly noise; {fix}"
    )
