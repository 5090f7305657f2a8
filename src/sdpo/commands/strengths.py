"""`sdpo evaluate --strength`: a run's scores and monitors at several strengths of its LoRA.

Over-optimisation shows as a reward that rises while a judge, held-out rewards or diversity fall. A smaller strength
takes part of the change back, without training.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from sdpo.assembly.model import load_tuned, warn_of_truncated
from sdpo.commands.evaluate import Scoring
from sdpo.commands.target import open_target
from sdpo.errors import UserError
from sdpo.evaluation.record import Weights
from sdpo.run.result import read_result

WRITTEN = ("prompts", "seeds", "strengths", "summary")
"""Keys of every result, by which its file is recognised."""

_MOST = 2.0
_MONITORED = 2  # images of each prompt, the least that have a diversity


def read_strengths(text: str) -> list[float]:
    """Read a list of strengths, such as `0,0.5,1`.

    Raises:
        UserError: if a part is no number in 0 … 2, or two agree to six digits, by which the result names them.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--strength {text!r}: expected numbers such as 0,0.5,1") from error
    if not all(0 <= strength <= _MOST for strength in found):
        raise UserError(f"--strength {text!r}: use numbers in 0 … {_MOST:g}; 0 is the base model, 1 the tuned one")
    if len({f"{strength:g}" for strength in found}) != len(found):
        raise UserError(f"--strength {text!r} names a strength twice")
    return found


def evaluate_strengths(
    target: str,
    strengths: Sequence[float],
    steps: list[int],
    prompts: str | None,
    rewards: list[str] | None,
    images_per_prompt: int,
    device: str = "auto",
    eta: str | None = None,
    max_prompts: int | None = None,
) -> dict[str, Any]:
    """Score a run at several strengths of its LoRA, on the same prompts and seeds as `sdpo evaluate`.

    Args:
        target: a run's directory.
        strengths: factors of the LoRA's change of the weights; 0 is the base model, 1 the tuned one.
        steps: the numbers of sampling steps.
        prompts: as for `evaluate_target`.
        rewards: as for `evaluate_target`.
        images_per_prompt: images a prompt at each number of steps.
        device: a device as torch names it, or `auto` for the fastest.
        eta: the sampler, as for `evaluate_target`.
        max_prompts: the largest number of prompts, as for `evaluate_target`.

    Returns:
        The result: `prompts`, `seeds`, `conditions`, `sampler`, `strengths` (weights and scores of each), and `summary`
        (means and monitors of each).

    Raises:
        UserError: if the target is no run with a LoRA, the prompts or a reward cannot be loaded, or a reward fails.
    """
    found = open_target(target)
    if found.run is None:
        raise UserError(f"--strength scales the LoRA of a run, and there is no run at {target}: name a run's directory")
    if found.config.lora is None:
        raise UserError(f"--strength scales a LoRA, and the run {target} trained all weights: leave --strength out")
    scoring = Scoring.of(found.config, steps, prompts, rewards, images_per_prompt, device, eta, max_prompts)
    backbone = load_tuned(scoring.config, found.run, scoring.processes.device)
    warn_of_truncated(backbone, [p.text for p in scoring.prompts])
    record = read_result(found.run, scoring.config)
    averaged = record is not None and record.averaged
    result: dict[str, Any] = {"strengths": {}, "summary": {}}
    for strength in strengths:
        # The base model itself, and not a product with 0, so that the scores are those of `sdpo evaluate`.
        context = backbone.base() if strength == 0 else backbone.lora_strength(strength)
        with context if strength != 1 else contextlib.nullcontext():
            images, conditions = scoring.evaluated(backbone, _MONITORED)
        weights = Weights("base") if strength == 0 else Weights("trained", averaged, lora_strength=strength)
        scores = images.scores
        result["strengths"][f"{strength:g}"] = {
            "weights": dataclasses.asdict(weights),
            "scores": scores.as_json()["scores"],
            "monitors": {name: {str(n): v for n, v in values.items()} for name, values in images.monitors.items()},
        }
        means = {name: {str(n): scores.mean(name, n) for n in steps} for name in scoring.rewards}
        monitors = {n: {str(k): v for k, v in values.items()} for n, values in images.monitors.items()}
        result["summary"][f"{strength:g}"] = {**means, **monitors}
    common = {
        "prompts": scores.prompts,
        "seeds": scores.seeds,
        "conditions": {**conditions.as_json(), "steps": steps, "images_per_prompt": images_per_prompt},
        "sampler": conditions.text,
    }
    return {**common, **result}
